"""Java archives: `java -jar`."""

import asyncio
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import ClassVar

from aether_core.drivers import API_VERSION
from aether_core.errors import IntegrityError
from aether_core.model import InstanceSpec

MIB = 1024**2
# Beside the heap a JVM needs room for code, threads and buffers.
HEAP_FRACTION = 0.7


class JarRuntime:
    """`.jar`: needs `java` on the node."""

    api_version: ClassVar[int] = API_VERSION
    suffix: ClassVar[str] = ".jar"

    async def prepare(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> None:
        await refuse_broken_zip(artifact, spec)

    def command(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> list[str]:
        memory = spec.resources.memory_bytes
        heap = [f"-Xmx{int(memory * HEAP_FRACTION) // MIB}m"] if memory else []
        return ["java", *heap, "-XX:+ExitOnOutOfMemoryError", "-jar", str(artifact)]


async def refuse_broken_zip(artifact: Path, spec: InstanceSpec) -> None:
    """Raise IntegrityError unless the artifact is a whole zip archive."""
    try:
        broken = await asyncio.to_thread(_first_broken, artifact)
    except _NOT_READABLE as error:
        raise IntegrityError(f"artifact '{spec.artifact}' is not a {spec.kind}: {error}") from error
    if broken:
        raise IntegrityError(f"artifact '{spec.artifact}' is damaged: '{broken}' in it")


#: What zipfile raises for damaged bytes; RuntimeError for what claims to be encrypted.
_NOT_READABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


def _first_broken(artifact: Path) -> str | None:
    with zipfile.ZipFile(artifact) as archive:
        return archive.testzip()
