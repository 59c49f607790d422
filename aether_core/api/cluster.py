"""/v1/cluster: the whole at a glance."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require
from aether_core.deployment import Deployment
from aether_core.election import leader_of
from aether_core.landscape import live_nodes
from aether_core.model import (
    IngressStatus,
    InstanceState,
    InstanceStatus,
    NodeRecord,
    NodeStatus,
    Role,
    SliceRecord,
    to_plain,
)
from aether_core.node import Node
from aether_core.store import Mirror

router = APIRouter(prefix="/v1", tags=["cluster"])


@router.get("/cluster")
async def status(
    _: Annotated[Caller, require(Role.VIEWER)], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """The cluster, its nodes, and what runs."""
    mirror = await node.fresh()
    deployments = mirror.all(Deployment, keys.DEPLOYMENTS)
    return {
        "cluster": mirror.get(dict[str, Any], keys.CLUSTER),
        "revision": mirror.revision,
        "leader": leader_of(mirror),
        "nodes": [_shown(record, mirror) for record in mirror.all(NodeRecord, keys.NODES)],
        "slices": len(mirror.all(SliceRecord, keys.SLICES)),
        "active_deployments": [d.id for d in deployments if not d.is_over],
    }


@router.get("/nodes")
async def list_nodes(
    _: Annotated[Caller, require(Role.VIEWER)], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """Every node."""
    mirror = await node.fresh()
    return {"nodes": [_shown(record, mirror) for record in mirror.all(NodeRecord, keys.NODES)]}


def _shown(record: NodeRecord, mirror: Mirror) -> dict[str, Any]:
    status = mirror.get(NodeStatus, keys.node_status(record.id))
    ingress = mirror.get(IngressStatus, keys.ingress_status(record.id))
    prefix = keys.instance_statuses(record.id)
    instances = mirror.all(InstanceStatus, prefix)
    return {
        **to_plain(record),
        "is_live": record.id in live_nodes(mirror),
        "is_leader": leader_of(mirror) == record.id,
        "capacity": to_plain(status.capacity) if status else None,
        "agent_version": status.agent_version if status else None,
        "agent_pid": status.agent_pid if status else None,
        "ingress_error": ingress.error if ingress else "not heard of yet",
        "instances": len(instances),
        "ready": sum(one.state == InstanceState.READY for one in instances),
    }
