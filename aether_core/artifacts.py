"""Artifacts: which nodes hold them, and how a node comes to hold what it should.

The files themselves are kept by `blobs.py`.
"""

import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from loguru import logger

from aether_core import keys
from aether_core.errors import AetherError, Unavailable
from aether_core.model import ArtifactRecord, InstanceSpec, NodeId, NodeStatus
from aether_core.node import Node
from aether_core.store import MAX_OPERATIONS, Delete, Mirror, Put

# A version is acknowledged when this many nodes have it on disk, or all if there are fewer.
COPIES = 3
RETRY_S = 1.0


def copies_of(mirror: Mirror, sha256: str) -> list[NodeId]:
    """Return the nodes that have it on disk, as last seen."""
    nodes = (status.id for status in mirror.all(NodeStatus, keys.NODE_STATUSES))
    return [node for node in nodes if mirror.entry(keys.copy(node, sha256)) is not None]


def choose_holders(
    record_holders: Iterable[NodeId], live: Iterable[NodeId], sha256: str
) -> tuple[NodeId, ...]:
    """Return who should hold an artifact: the live ones that do, filled up to COPIES.

    New ones are drawn by the digest, so that artifacts spread evenly and the draw is repeatable.
    """
    alive = sorted(live)
    kept = [node for node in dict.fromkeys(record_holders) if node in alive]
    drawn = sorted(
        (node for node in alive if node not in kept),
        key=lambda node: hashlib.sha256(f"{sha256}{node}".encode()).digest(),
    )
    return tuple((kept + drawn)[: max(COPIES, len(kept))])


async def fetch(node: Node, spec: InstanceSpec) -> Path:
    """Return the artifact's file on this node, from another node if need be.

    Errors: Unavailable when nobody who has it answers; IntegrityError.
    """
    if not node.blobs.has(spec.sha256):
        name, _, version = spec.artifact.partition(":")
        record = node.mirror.get(ArtifactRecord, keys.artifact(name, version))
        if record is None or record.sha256 != spec.sha256:
            raise Unavailable(f"artifact '{spec.artifact}' is not in the cluster any more")
        await _fetch(node, record)
    return node.blobs.path(spec.sha256)


async def replicate(node: Node) -> None:
    """Hold what the records name this node for, say so, and drop what nobody needs, for ever."""
    said = ""
    with node.mirror.watching() as changed:
        while True:
            changed.clear()
            try:
                await _replicate_once(node)
            except AetherError as error:
                if error.message != said:  # Said once, not every second of a long upload.
                    logger.warning("artifacts not complete yet: {}", error)
                    said = error.message
                await node.clock.sleep(RETRY_S)
                continue
            said = ""
            await changed.wait()


async def _replicate_once(node: Node) -> None:
    store, mirror, failures = node.joined_store(), node.mirror, []
    for record in mirror.all(ArtifactRecord, keys.ARTIFACTS):
        if node.id in record.holders and not node.blobs.has(record.sha256):
            try:
                await _fetch(node, record)
            except AetherError as error:
                # One that nobody has yet must not keep back the others.
                failures.append(error.message)
    needed, held = _needed(mirror), set(node.blobs.all())
    writes: list[Put | Delete] = [
        Put(keys.copy(node.id, sha256), b"1")
        for sha256 in sorted(held & needed)
        if mirror.entry(keys.copy(node.id, sha256)) is None
    ]
    writes += [
        Delete(entry.key)
        for entry in mirror.under(keys.copies(node.id))
        if entry.key.rpartition("/")[2] not in held & needed
    ]
    for start in range(0, len(writes), MAX_OPERATIONS):
        await store.commit(writes[start : start + MAX_OPERATIONS])
    # Asked again: what was announced and came meanwhile must not be removed.
    for sha256 in held - _needed(mirror):
        node.blobs.remove(sha256)
    if failures:
        raise Unavailable("; ".join(failures))


def _needed(mirror: Mirror) -> set[str]:
    return {record.sha256 for record in mirror.all(ArtifactRecord, keys.ARTIFACTS)}


async def _fetch(node: Node, record: ArtifactRecord) -> None:
    """Copy it from whoever has it, going on where an earlier try stopped."""
    reasons = []
    # The uploading node has it before its own copy is in the store.
    for holder in dict.fromkeys([*copies_of(node.mirror, record.sha256), *record.holders]):
        if holder == node.id:
            continue
        offset = node.blobs.received(record.sha256)
        path = f"/v1/blobs/{record.sha256}"
        try:
            if offset >= record.size_bytes:  # All came before we ended: it was not verified.
                await node.blobs.receive(record.sha256, record.size_bytes, offset, _nothing())
                return
            async with node.client.stream(node.peer(holder), path, offset=offset) as chunks:
                await node.blobs.receive(record.sha256, record.size_bytes, offset, chunks)
        except AetherError as error:
            reasons.append(f"{holder}: {error}")
        else:
            return
    name = f"{record.name}:{record.version}"
    raise Unavailable(f"artifact '{name}' not fetched: {'; '.join(reasons) or 'nobody has it'}")


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""  # What makes it a generator.
