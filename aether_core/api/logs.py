"""/v1/logs, /v1/node/logs: what instances write, from all nodes, as one stream of JSON lines.

A stream that has nothing to say sends an empty line now and then: whoever reads it knows that it
lives, and it finds out that nobody reads any more.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require, require_node
from aether_core.errors import AetherError, NotFound
from aether_core.model import InstanceId, InstanceStatus, NodeId, Role, slice_of
from aether_core.node import Node

router = APIRouter(prefix="/v1", tags=["logs"])

POLL_S = 0.2
# Well below the half minute after which a reader gives a silent node up.
BEAT_S = 10.0
BEAT = b"\n"
CHUNK_BYTES = 64 * 1024
# A longer one is cut in pieces: it must not be held in memory.
LONGEST_LINE_BYTES = 64 * 1024
TAIL_BYTES = 256 * 1024
QUEUED_LINES = 100

Lines = Annotated[int, Query(ge=0)]
Stream = AsyncGenerator[bytes, None]


class LineStream(StreamingResponse):
    """Ends its generator when the reader leaves, also while it waits for the reader."""

    media_type = "application/x-ndjson"

    def __init__(self, lines: Stream) -> None:
        super().__init__(lines)
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._lines):
            await super().__call__(scope, receive, send)


@router.get("/logs")
async def logs(
    _: Annotated[Caller, require(Role.VIEWER)],
    node: Annotated[Node, Depends(get_node)],
    name: str,
    lines: Lines = 100,
    follow: bool = False,
) -> LineStream:
    """What a slice's instances (or one instance) wrote, from all nodes, one JSON line each.

    A line with `lost` says that no more comes from this instance, and why.
    """
    mirror = await node.fresh()
    statuses = mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)
    meant = [s for s in statuses if name in (s.id, slice_of(s.fleet))]
    if not meant:
        raise NotFound(f"no slice and no instance is called '{name}'", hint="aether instances")
    streams = [_lines_of(node, status, lines=lines, follow=follow) for status in meant]
    return LineStream(_merged(streams))


@router.get("/node/logs/{instance}")
async def own_logs(
    instance: Annotated[InstanceId, InPath(pattern="^[a-z0-9-]+$")],
    _: Annotated[NodeId, require_node()],
    node: Annotated[Node, Depends(get_node)],
    lines: Lines = 100,
    follow: bool = False,
) -> LineStream:
    """What one instance of this very node wrote, for other nodes."""
    return LineStream(_own_lines(node, instance, lines=lines, follow=follow))


async def _merged(streams: list[Stream]) -> Stream:
    """Yield from all streams as lines come."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=QUEUED_LINES)

    async def pump(stream: Stream) -> None:
        async with aclosing(stream):
            async for line in stream:
                await queue.put(line)

    async def pump_all() -> None:
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(pump(stream))

    pumping = asyncio.ensure_future(pump_all())
    getting = asyncio.ensure_future(queue.get())
    try:
        while not pumping.done():
            await asyncio.wait({getting, pumping}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                line, getting = getting.result(), asyncio.ensure_future(queue.get())
                yield line
        await pumping
        if getting.done():
            yield getting.result()
        while not queue.empty():
            yield queue.get_nowait()
    finally:
        for task in (getting, pumping):
            task.cancel()
        await asyncio.gather(getting, pumping, return_exceptions=True)


async def _lines_of(node: Node, status: InstanceStatus, *, lines: int, follow: bool) -> Stream:
    """Yield an instance's lines, from this node or from the one it runs on."""
    if status.node == node.id:
        async with aclosing(_own_lines(node, status.id, lines=lines, follow=follow)) as own:
            async for line in own:
                yield line
        return
    path = f"/v1/node/logs/{status.id}?lines={lines}&follow={str(follow).lower()}"
    try:
        async with node.client.stream(node.peer(status.node), path) as chunks:
            rest = b""
            async for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line + b"\n"
    except AetherError as error:
        yield _json_line({"node": status.node, "instance": status.id, "lost": error.message})


async def _own_lines(node: Node, instance: InstanceId, *, lines: int, follow: bool) -> Stream:
    path = node.data_dir / "instances" / instance / "output.log"
    async with aclosing(_tail(node, path, lines=lines, follow=follow)) as tail:
        async for line in tail:
            if line is None:
                yield BEAT
            else:
                text = line.decode(errors="replace")
                yield _json_line({"node": node.id, "instance": instance, "line": text})


def _json_line(content: dict[str, str]) -> bytes:
    return json.dumps(content).encode() + b"\n"


async def _tail(
    node: Node, path: Path, *, lines: int, follow: bool
) -> AsyncGenerator[bytes | None, None]:
    """Yield a file's last lines, then what is appended; None after each BEAT_S of silence.

    Ends when the file is gone, or without `follow` where its end was in the beginning.
    """
    position, end = _last_lines(path, lines)
    rest, heard_s = b"", node.clock.now_s()
    while follow or position < end:
        found = _read(path, position)
        if found is None:
            break
        chunk, position = found
        if chunk:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line
            if len(rest) > LONGEST_LINE_BYTES:
                yield rest
                rest = b""
            heard_s = node.clock.now_s()
        elif not follow:
            break
        else:
            await node.clock.sleep(POLL_S)
            if node.clock.now_s() - heard_s >= BEAT_S:
                yield None
                heard_s = node.clock.now_s()
    if rest:
        yield rest


def _read(path: Path, position: int) -> tuple[bytes, int] | None:
    """Return what comes next and where that ends; None when the file is gone."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < position:
                position = 0  # Turned over: the file begins anew.
            file.seek(position)
            chunk = file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return None
    return chunk, position + len(chunk)


def _last_lines(path: Path, lines: int) -> tuple[int, int]:
    """Return where the last lines begin, and where they end."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - TAIL_BYTES))
            found = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0, 0
    return end - sum(len(line) for line in found[max(0, len(found) - lines) :]), end
