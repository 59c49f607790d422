"""/v1/slices, /v1/instances: what runs where, and how many."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require
from aether_core.api.once import RequestId, answer_of, commit_once
from aether_core.blueprint import parse_blueprint
from aether_core.errors import NotFound, Refused
from aether_core.landscape import landscape, live_nodes
from aether_core.model import (
    Assignment,
    Fleet,
    InstanceState,
    InstanceStatus,
    Role,
    RouteTable,
    SliceRecord,
    slice_of,
    to_plain,
)
from aether_core.node import Node
from aether_core.placement import place
from aether_core.store import Compare, Mirror, put

router = APIRouter(prefix="/v1", tags=["slices"])


class Scale(BaseModel, extra="forbid"):
    instances: int = Field(ge=1, le=10_000)


@router.get("/slices")
async def list_slices(
    _: Annotated[Caller, require(Role.VIEWER)], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """Every slice: its fleets, their shares, how many instances are ready."""
    mirror = await node.fresh()
    records = mirror.all(SliceRecord, keys.SLICES)
    return {"slices": [_shown(record, mirror) for record in records]}


@router.get("/instances")
async def list_instances(
    _: Annotated[Caller, require(Role.VIEWER)],
    node: Annotated[Node, Depends(get_node)],
    name: str | None = None,
) -> dict[str, Any]:
    """Every instance, of one slice if named; those assigned but not heard of yet too."""
    mirror = await node.fresh()
    statuses = {s.id: s for s in mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)}
    unheard = [a for a in mirror.all(Assignment, keys.INSTANCES) if a.id not in statuses]
    lines = [to_plain(status) for status in statuses.values()]
    lines += [
        {"id": a.id, "node": a.node, "fleet": a.fleet, "state": "ASSIGNED", "why": ""}
        for a in unheard
    ]
    live = live_nodes(mirror)
    for line in lines:
        line["slice"] = slice_of(line["fleet"])
        line["is_node_live"] = line["node"] in live
    wanted = [line for line in lines if name in (None, line["slice"])]
    return {"instances": sorted(wanted, key=lambda line: (line["slice"], line["id"]))}


@router.post("/slices/{name}/scale")
async def scale(
    name: str,
    body: Scale,
    request_id: RequestId,
    _: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Pin the slice's number of instances."""
    mirror = await node.fresh()
    if before := await answer_of(node, request_id):
        return dict(before)
    record = mirror.get(SliceRecord, keys.slice_record(name))
    if record is None:
        raise NotFound(f"slice '{name}' not found")
    fleet = _scalable(record, body.instances, mirror)
    writes = [
        put(keys.slice_record(name), replace(record, pinned=body.instances)),
        put(keys.fleet(fleet.id), replace(fleet, instances=body.instances)),
    ]
    compares = [Compare(write.key, modified=mirror.modified(write.key)) for write in writes]
    # No deployment may have begun since: it would have read the old number.
    compares.append(Compare(keys.active(record.blueprint), created=0))
    answer = {"slice": name, "fleet": fleet.id, "before": fleet.instances, "now": body.instances}
    return await commit_once(node, request_id, writes, compares=compares, answer=answer)


def _shown(record: SliceRecord, mirror: Mirror) -> dict[str, Any]:
    shares = (mirror.get(RouteTable, keys.ROUTES) or RouteTable()).shares.get(record.name, {})
    statuses = mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)
    fleets = []
    for fleet in mirror.all(Fleet, keys.FLEETS):
        if fleet.spec.slice == record.name:
            mine = [status for status in statuses if status.fleet == fleet.id]
            fleets.append(
                {
                    "fleet": fleet.id,
                    "version": fleet.spec.version,
                    "wanted": fleet.instances,
                    "ready": sum(status.state == InstanceState.READY for status in mine),
                    "share_bp": shares.get(fleet.id, 0),
                }
            )
    return {
        "name": record.name,
        "blueprint": record.blueprint,
        "pinned": record.pinned,
        "fleets": fleets,
    }


def _scalable(record: SliceRecord, instances: int, mirror: Mirror) -> Fleet:
    """Return the fleet to scale. Errors: Refused with what is in the way."""
    active = mirror.get(str, keys.active(record.blueprint))
    if active is not None:
        raise Refused(f"deployment '{active}' is not over", hint=f"aether deploy status {active}")
    land = landscape(mirror)
    serving = [land.fleets[f] for f in land.routes.shares.get(record.name, {}) if f in land.fleets]
    if len(serving) != 1:
        raise Refused(f"slice '{record.name}' has {len(serving)} versions serving, not one")
    fleet = serving[0]
    document = mirror.get(dict[str, Any], keys.blueprint(record.blueprint))
    pieces = parse_blueprint(document).slices if document else ()
    for piece in pieces:
        if piece.name == record.name and not piece.scale.min <= instances <= piece.scale.max:
            raise Refused(
                f"{instances} instances are outside the blueprint's bounds for '{record.name}': "
                f"{piece.scale.min} to {piece.scale.max}"
            )
    grown = {**land.fleets, fleet.id: replace(fleet, instances=instances)}
    ordinals = {r.name: r.next_ordinal for r in land.slices.values()}
    placing = place(grown.values(), land.assignments, land.seats, ordinals)
    if fleet.id in placing.unplaced:
        raise Refused(
            f"{placing.unplaced[fleet.id]} of {instances} instances of '{record.name}' find no "
            "node with room"
        )
    return fleet
