"""/v1/artifacts, /v1/uploads, /v1/blobs: immutable versions, acknowledged when they are safe."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require, require_node
from aether_core.api.once import RequestId, answer_of, commit_once
from aether_core.artifacts import COPIES, choose_holders, copies_of
from aether_core.deployment import Deployment
from aether_core.errors import Conflict, IntegrityError, NotFound, Refused, Unavailable
from aether_core.landscape import live_nodes
from aether_core.model import (
    ArtifactRecord,
    ArtifactState,
    Fleet,
    NodeId,
    Role,
    to_plain,
)
from aether_core.node import Node
from aether_core.plugins import load_driver
from aether_core.store import Compare, Delete, Mirror, put

router = APIRouter(prefix="/v1", tags=["artifacts"])

REPLICATION_TIMEOUT_S = 300.0
DISK_RESERVE_BYTES = 64 * 1024**2
# A sender that is silent for this long is gone; until then nobody else may go on with its upload.
SILENCE_S = 60.0
SHA256 = "^[0-9a-f]{64}$"

Digest = Annotated[str, Path(pattern=SHA256)]
#: What a blueprint can refer to.
Name = Annotated[str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Version = Annotated[str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]


class Announced(BaseModel, extra="forbid"):
    """What the sender says of the bytes: `offset` of the first one that comes now."""

    kind: str = Field(pattern="^[a-z_]+$")
    sha256: str = Field(pattern=SHA256)
    size_bytes: int = Field(ge=1)
    offset: int = Field(0, ge=0)


@router.get("/artifacts")
async def list_artifacts(
    _: Annotated[Caller, require(Role.VIEWER)], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """Every version of every artifact."""
    mirror = await node.fresh()
    records = mirror.all(ArtifactRecord, keys.ARTIFACTS)
    return {"artifacts": [_shown(record, mirror) for record in records]}


@router.get("/artifacts/{name}/{version}")
async def show(
    name: str,
    version: str,
    _: Annotated[Caller, require(Role.VIEWER)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """One version: its digest and which nodes hold it."""
    mirror = await node.fresh()
    return _shown(_record(mirror, name, version), mirror)


@router.get("/uploads/{sha256}")
async def upload_state(
    sha256: Digest,
    _: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """How many bytes this node has: where an upload goes on."""
    return {"received": node.blobs.received(sha256), "whole": node.blobs.has(sha256)}


@router.put("/artifacts/{name}/{version}")
async def upload(
    name: Name,
    version: Version,
    announced: Annotated[Announced, Query()],
    request: Request,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Take an artifact's bytes from `offset` on; answer when enough nodes have them on disk."""
    load_driver("aether.runtimes", announced.kind)  # Refuses what no node could run.
    mirror = await node.fresh()
    wanted = ArtifactRecord(
        name=name,
        version=version,
        kind=announced.kind,
        size_bytes=announced.size_bytes,
        sha256=announced.sha256,
        state=ArtifactState.STAGED,
        holders=choose_holders([node.id], live_nodes(mirror), announced.sha256),
        created_at=node.clock.at(),
        by=caller.name,
    )
    known = mirror.get(ArtifactRecord, keys.artifact(name, version))
    _refuse_other_bytes(known, wanted)
    if known is not None and known.state == ArtifactState.STORED:
        return _shown(known, mirror) | {"uploaded": False}
    free_bytes = node.blobs.free_bytes()
    missing_bytes = announced.size_bytes - announced.offset
    if missing_bytes + DISK_RESERVE_BYTES > free_bytes:
        raise Refused(f"node '{node.id}' has {free_bytes} bytes free, {missing_bytes} are needed")
    # Announced before the bytes come: what no record names is swept away.
    await _put_record(node, wanted)
    chunks = _arriving(request)
    await node.blobs.receive(wanted.sha256, wanted.size_bytes, announced.offset, chunks)
    stored = await _replicated(node, wanted)
    return _shown(stored, node.mirror) | {"uploaded": True}


@router.delete("/artifacts/{name}/{version}")
async def delete(
    name: str,
    version: str,
    request_id: RequestId,
    _: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Forget a version that nothing runs or is about to run; the nodes remove its bytes."""
    mirror = await node.fresh()
    if before := await answer_of(node, request_id):
        return dict(before)
    record = _record(mirror, name, version)
    if users := _users(record, mirror):
        raise Refused(f"artifact '{name}:{version}' is used by {', '.join(users)}")
    key = keys.artifact(name, version)
    compares = [
        Compare(key, modified=mirror.modified(key)),
        # No deployment may have begun since: it may have been planned with this version.
        Compare(keys.BEGUN, modified=mirror.modified(keys.BEGUN)),
    ]
    answer = {"deleted": f"{name}:{version}"}
    return await commit_once(node, request_id, [Delete(key)], compares=compares, answer=answer)


@router.get("/blobs/{sha256}")
async def blob(
    sha256: Digest,
    _: Annotated[NodeId, require_node()],
    node: Annotated[Node, Depends(get_node)],
) -> FileResponse:
    """The bytes themselves, for other nodes; ranges are honoured."""
    if not node.blobs.has(sha256):
        raise NotFound(f"node '{node.id}' does not have {sha256[:12]}")
    return FileResponse(node.blobs.path(sha256), media_type="application/octet-stream")


async def _arriving(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Errors: IntegrityError when the sender is gone."""
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except (ClientDisconnect, TimeoutError):
            raise IntegrityError(
                "the sender stopped before the artifact was whole",
                hint="send it again: it goes on where it stopped",
            ) from None
        yield chunk


async def _put_record(node: Node, record: ArtifactRecord) -> None:
    key = keys.artifact(record.name, record.version)
    compare = Compare(key, modified=node.mirror.modified(key))
    revision = await node.joined_store().commit([put(key, record)], compares=[compare])
    if revision is None:
        raise Conflict(f"artifact '{record.name}:{record.version}' is being uploaded by another")
    await node.mirror.reach(revision)


async def _replicated(node: Node, record: ArtifactRecord) -> ArtifactRecord:
    """Wait until enough nodes hold it, then say so in the store."""
    mirror, key = node.mirror, keys.artifact(record.name, record.version)
    try:
        async with asyncio.timeout(REPLICATION_TIMEOUT_S):
            with mirror.watching() as changed:
                while True:
                    live = live_nodes(mirror)
                    have = copies_of(mirror, record.sha256)
                    # At least one, also when this node itself is thought to be gone.
                    if len(have) >= max(1, min(COPIES, len(live))):
                        break
                    if not set(record.holders) <= live:  # One died meanwhile: another steps in.
                        holders = choose_holders(record.holders, live, record.sha256)
                        record = replace(record, holders=holders)
                        await _put_record(node, record)
                    await changed.wait()
                    changed.clear()
    except TimeoutError:
        raise Unavailable(
            f"artifact '{record.name}:{record.version}' is on "
            f"{len(copies_of(mirror, record.sha256))} of {COPIES} nodes and not acknowledged",
            hint="upload it again: what is there is not sent twice",
        ) from None
    stored = replace(record, state=ArtifactState.STORED)
    compare = Compare(key, modified=mirror.modified(key))
    revision = await node.joined_store().commit([put(key, stored)], compares=[compare])
    if revision is None:
        current = mirror.get(ArtifactRecord, key)
        if current is None or current.sha256 != record.sha256:
            raise Conflict(f"artifact '{record.name}:{record.version}' changed meanwhile")
        return current
    await mirror.reach(revision)
    return stored


def _refuse_other_bytes(known: ArtifactRecord | None, wanted: ArtifactRecord) -> None:
    """A version that was acknowledged never changes; one that never was may begin anew."""
    if known is not None and known.state == ArtifactState.STORED and known.sha256 != wanted.sha256:
        raise Conflict(
            f"artifact '{wanted.name}:{wanted.version}' exists with other bytes: "
            f"SHA-256 {known.sha256[:12]}, not {wanted.sha256[:12]}",
            hint="versions never change: upload it as a new version",
        )


def _users(record: ArtifactRecord, mirror: Mirror) -> list[str]:
    """Return the fleets and unfinished deployments that need the artifact's bytes."""
    fleets = [f.id for f in mirror.all(Fleet, keys.FLEETS) if f.spec.sha256 == record.sha256]
    active = [d for d in mirror.all(Deployment, keys.DEPLOYMENTS) if not d.is_over]
    return fleets + [
        f"deployment '{deployment.id}'"
        for deployment in active
        if any(c.new and c.new.spec.sha256 == record.sha256 for c in deployment.changes)
    ]


def _record(mirror: Mirror, name: str, version: str) -> ArtifactRecord:
    record = mirror.get(ArtifactRecord, keys.artifact(name, version))
    if record is None:
        raise NotFound(f"artifact '{name}:{version}' not found")
    return record


def _shown(record: ArtifactRecord, mirror: Mirror) -> dict[str, Any]:
    return {**to_plain(record), "copies": copies_of(mirror, record.sha256)}
