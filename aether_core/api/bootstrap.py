"""/v1/bootstrap: what the bootstrap asks of nodes that do not know each other yet."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from aether_core import keys
from aether_core.api.auth import get_node, require_node
from aether_core.boot import Peers, write_peers
from aether_core.election import leader_of
from aether_core.errors import Conflict, NoQuorum
from aether_core.model import NodeId, NodeRecord, NodeState, RouteTable, TokenRecord
from aether_core.node import Node
from aether_core.store import Compare, put

router = APIRouter(prefix="/v1/bootstrap", tags=["bootstrap"])


class Init(BaseModel, extra="forbid"):
    cluster: dict[str, Any]
    token: TokenRecord
    peers: Peers


@router.get("/status")
async def status(
    _: Annotated[NodeId, require_node()], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """How far this node is."""
    record = node.mirror.get(NodeRecord, keys.node(node.id))
    try:
        revision = await node.store.revision() if node.store else 0
    except NoQuorum:
        revision = 0
    return {
        "node": node.id,
        "has_peers": node.peers is not None,
        "revision": revision,
        "leader": leader_of(node.mirror),
        "artifacts_free_bytes": node.blobs.free_bytes(),
        "state": record.state if record else "",
        "error": node.error,
    }


@router.post("/join")
async def join(
    peers: Peers, _: Annotated[NodeId, require_node()], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """Learn who else there is; then start. Told twice the same is fine."""
    peers.of(node.id)
    if node.peers is None:
        write_peers(node.data_dir, peers)
        node.peers = peers
        node.joined.set()
    elif node.peers != peers:
        raise Conflict(f"node '{node.id}' was told other peers before")
    return {"joined": node.id}


@router.post("/init")
async def init(
    body: Init, _: Annotated[NodeId, require_node()], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """Write the first documents, once for ever."""
    now = node.clock.at()
    records = [
        NodeRecord(
            id=peer.node,
            address=peer.address,
            ports=peer.ports,
            is_core=peer.is_core,
            machine=peer.machine,
            state=NodeState.JOINING,
            since=now,
            why="made by the bootstrap",
        )
        for peer in body.peers.peers
    ]
    writes = [
        put(keys.CLUSTER, body.cluster),
        put(keys.ROUTES, RouteTable()),
        put(keys.token(body.token.id), body.token),
        *(put(keys.node(record.id), record) for record in records),
    ]
    compares = [Compare(keys.CLUSTER, created=0)]
    revision = await node.joined_store().commit(writes, compares=compares)
    return {"written": revision is not None}
