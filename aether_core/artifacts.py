"""Artifacts: immutable files named by their SHA-256, on disk before anybody says so.

`Blobs` keeps a node's files; `replicate` brings the node what its records say it should hold.
"""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import Path

from loguru import logger

from aether_core import keys
from aether_core.errors import AetherError, ConfigError, IntegrityError, Unavailable
from aether_core.model import ArtifactRecord, InstanceSpec, NodeId, NodeStatus
from aether_core.node import Node
from aether_core.store import MAX_OPERATIONS, Delete, Mirror, Put

# A version is acknowledged when this many nodes have it on disk, or all if there are fewer.
COPIES = 3
RETRY_S = 1.0
HASH_CHUNK_BYTES = 1024**2


class Blobs:
    """A node's files: `sha256/<digest>` whole and verified, `partial/<digest>` on their way."""

    def __init__(self, root: Path) -> None:
        self._whole = root / "sha256"
        self._partial = root / "partial"
        self._locks: dict[str, asyncio.Lock] = {}
        for directory in (self._whole, self._partial):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, sha256: str) -> Path:
        return self._whole / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).exists()

    def all(self) -> list[str]:
        return sorted(path.name for path in self._whole.iterdir())

    def received(self, sha256: str) -> int:
        """Return how many bytes of it are here: where a sender goes on."""
        for path in (self.path(sha256), self._partial / sha256):
            if path.exists():
                return path.stat().st_size
        return 0

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._whole).free

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    async def receive(
        self, sha256: str, size_bytes: int, offset: int, chunks: AsyncIterable[bytes]
    ) -> None:
        """Take the bytes from `offset` on; return when all are verified and on disk.

        Errors: IntegrityError when they are not what `sha256` says, or stop early: what came
        of a stream that stopped early is kept, so that it can go on.
        """
        async with self._locks.setdefault(sha256, asyncio.Lock()):
            if self.has(sha256):
                return
            partial = self._partial / sha256
            if offset != self.received(sha256):
                raise IntegrityError(
                    f"upload continues at byte {offset}, but {self.received(sha256)} are here"
                )
            with partial.open("ab") as file:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
                    if file.tell() > size_bytes:
                        break  # Damaged, as `_accept` says; more of it only fills the disk.
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            await self._accept(partial, sha256, size_bytes)

    async def _accept(self, partial: Path, sha256: str, size_bytes: int) -> None:
        length = partial.stat().st_size
        if length < size_bytes:
            raise IntegrityError(
                f"artifact is cut short: {length} of {size_bytes} bytes came",
                hint="send it again: it goes on where it stopped",
            )
        digest = await asyncio.to_thread(digest_of, partial)
        if digest != sha256 or length != size_bytes:
            partial.unlink()
            raise IntegrityError(
                f"artifact is damaged: its SHA-256 is {digest}, announced was {sha256}",
                expected=sha256,
                actual=digest,
            )
        partial.rename(self.path(sha256))
        await asyncio.to_thread(_flush_directory, self._whole)


def digest_of(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal, without holding the file in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def name_and_version(file_name: str, suffixes: Iterable[str]) -> tuple[str, str, str]:
    """Split "my-service-1.0.0.jar" into name, version and suffix. Errors: ConfigError.

    Wheels: PEP 427, the first two parts; an underscore in the name is written "-".
    """
    suffix = next((s for s in sorted(suffixes, key=len, reverse=True) if file_name.endswith(s)), "")
    if not suffix:
        known = ", ".join(sorted(suffixes))
        raise ConfigError(f"'{file_name}' is of no known kind: {known}")
    stem = file_name.removesuffix(suffix)
    if suffix == ".whl":
        name, _, rest = stem.partition("-")
        version = rest.partition("-")[0]
        if name and version:
            return name.replace("_", "-"), version, suffix
    match = re.fullmatch(r"(.+?)-(\d[A-Za-z0-9._+-]*)", stem)
    if match is None:
        raise ConfigError(
            f"'{file_name}' does not say its name and version",
            hint="call it NAME-VERSION" + suffix + ", or give --name and --version",
        )
    return match[1], match[2], suffix


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


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
