"""An artifact's bytes on one node: files named by their SHA-256, on disk before anybody says so."""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterable, Iterable
from pathlib import Path

from aether_core.errors import ConfigError, IntegrityError

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


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
