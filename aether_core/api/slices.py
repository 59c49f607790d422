"""/v1/slices, /v1/instances, /v1/logs: what runs where, how many, and what it says."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from loguru import logger
from pydantic import BaseModel, Field

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require, require_node
from aether_core.api.once import RequestId, answer_of, commit_once
from aether_core.blueprint import parse_blueprint
from aether_core.errors import AetherError, NotFound, Refused
from aether_core.landscape import landscape, live_nodes
from aether_core.model import (
    Assignment,
    Fleet,
    InstanceState,
    InstanceStatus,
    NodeId,
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

LOG_POLL_S = 0.2
LOG_CHUNK_BYTES = 64 * 1024


class Scale(BaseModel):
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
    if before := await answer_of(node, request_id):
        return dict(before)
    mirror = await node.fresh()
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


@router.get("/logs")
async def logs(
    _: Annotated[Caller, require(Role.VIEWER)],
    node: Annotated[Node, Depends(get_node)],
    name: str,
    lines: int = 100,
    follow: bool = False,
) -> StreamingResponse:
    """What a slice's instances (or one instance) wrote, from all nodes, one JSON line each."""
    mirror = await node.fresh()
    statuses = mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)
    meant = [s for s in statuses if name in (s.id, slice_of(s.fleet))]
    if not meant:
        raise NotFound(f"no slice and no instance is called '{name}'", hint="aether instances")
    streams = [_lines_of(node, status, lines=lines, follow=follow) for status in meant]
    return StreamingResponse(_merged(streams), media_type="application/x-ndjson")


@router.get("/node/logs/{instance}")
async def own_logs(
    instance: str,
    _: Annotated[NodeId, require_node()],
    node: Annotated[Node, Depends(get_node)],
    lines: int = 100,
    follow: bool = False,
) -> StreamingResponse:
    """What one instance of this very node wrote, for other nodes."""
    path = _log_file(node, instance)
    return StreamingResponse(_tail(node, path, lines=lines, follow=follow), media_type="text/plain")


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


async def _merged(streams: list[AsyncIterator[bytes]]) -> AsyncIterator[bytes]:
    """Yield from all streams as lines come."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1000)

    async def pump(stream: AsyncIterator[bytes]) -> None:
        try:
            async for line in stream:
                await queue.put(line)
        except AetherError as error:
            logger.warning("a log stream ended: {}", error)
        finally:
            await queue.put(None)

    tasks = [asyncio.ensure_future(pump(stream)) for stream in streams]
    try:
        open_streams = len(tasks)
        while open_streams:
            line = await queue.get()
            if line is None:
                open_streams -= 1
            else:
                yield line
    finally:
        for task in tasks:
            task.cancel()


async def _lines_of(
    node: Node, status: InstanceStatus, *, lines: int, follow: bool
) -> AsyncIterator[bytes]:
    """Yield an instance's log as JSON lines, from this node or from the one it runs on."""
    about = {"node": status.node, "instance": status.id}
    if status.node == node.id:
        path = _log_file(node, status.id)
        async for line in _tail(node, path, lines=lines, follow=follow):
            yield _json_line(about, line)
        return
    path_there = f"/v1/node/logs/{status.id}?lines={lines}&follow={str(follow).lower()}"
    async with node.client.stream(node.peer(status.node), path_there) as chunks:
        rest = b""
        async for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield _json_line(about, line)


def _json_line(about: dict[str, str], line: bytes) -> bytes:
    text = line.decode(errors="replace").rstrip("\n")
    return json.dumps({**about, "line": text}).encode() + b"\n"


async def _tail(node: Node, path: Path, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
    """Yield the last lines of a file, then what is appended; begin again where it was cut."""
    position, rest = _start_of_last(path, lines), b""
    while True:
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return
        if size_bytes < position:
            position = 0  # Turned over: the file begins anew.
        if size_bytes > position:
            with path.open("rb") as file:
                file.seek(position)
                chunk = file.read(LOG_CHUNK_BYTES)
            position += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line + b"\n"
            continue
        if not follow:
            if rest:
                yield rest + b"\n"
            return
        await node.clock.sleep(LOG_POLL_S)


def _start_of_last(path: Path, lines: int) -> int:
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            begin = max(0, end - LOG_CHUNK_BYTES * 4)
            file.seek(begin)
            found = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    return end - sum(len(line) for line in found[max(0, len(found) - lines) :])


def _log_file(node: Node, instance: str) -> Path:
    if "/" in instance or instance.startswith("."):
        raise NotFound(f"no instance is called '{instance}'")
    return node.data_dir / "instances" / instance / "output.log"
