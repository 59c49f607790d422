"""Tarballs: unpacked, then the command that the blueprint names."""

import asyncio
import gzip
import re
import shlex
import tarfile
import zlib
from pathlib import Path
from typing import ClassVar

from aether_core.drivers import API_VERSION
from aether_core.errors import IntegrityError
from aether_core.model import InstanceSpec

CHUNK_BYTES = 1024**2


class TarballRuntime:
    """`.tar.gz`: `entry` is a command line; a relative program is looked for in the tarball."""

    api_version: ClassVar[int] = API_VERSION
    suffix: ClassVar[str] = ".tar.gz"

    async def prepare(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> None:
        try:
            await asyncio.to_thread(_unpack, artifact, work_dir)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise IntegrityError(
                f"artifact '{spec.artifact}' cannot be unpacked: {error}"
            ) from error

    def command(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> list[str]:
        program, *arguments = shlex.split(spec.entry)
        inside = work_dir / program
        # Through a shell, so that `$PORT` in the entry means what it says.
        words = [shlex.quote(str(inside) if inside.exists() else program)]
        words += [_quoted(argument) for argument in arguments]
        return ["/bin/sh", "-c", f"exec {' '.join(words)}"]


def _quoted(argument: str) -> str:
    """Return a word for the shell, in which variables are replaced and nothing else happens."""
    escaped = re.sub(r'(["`\\]|\$(?![A-Za-z_{]))', r"\\\1", argument)
    return f'"{escaped}"'


def _unpack(artifact: Path, work_dir: Path) -> None:
    with gzip.open(artifact) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        # The filter refuses what would leave the directory, devices, and set-uid bits (PEP 706).
        archive.extractall(work_dir, filter="data")
        while stream.read(CHUNK_BYTES):
            pass  # The checksum is behind all that tarfile reads.
