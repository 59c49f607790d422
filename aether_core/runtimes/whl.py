"""Python wheels: a virtual environment made by uv, then an ASGI application or a console script."""

import asyncio
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from aether_core.drivers import API_VERSION
from aether_core.errors import AetherError
from aether_core.model import InstanceSpec
from aether_core.process import machine_environment
from aether_core.runtimes.jar import refuse_broken_zip


class WheelRuntime:
    """`.whl`: `entry` is "module:app" (served by uvicorn) or the name of a console script."""

    api_version: ClassVar[int] = API_VERSION
    suffix: ClassVar[str] = ".whl"

    async def prepare(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> None:
        await refuse_broken_zip(artifact, spec)
        venv = work_dir / "venv"
        await _uv("venv", "--quiet", "--python", sys.executable, str(venv))
        wheel = work_dir / _wheel_name(spec)
        wheel.symlink_to(artifact)
        wanted = ["--python", str(venv / "bin" / "python"), str(wheel)]
        if ":" in spec.entry:
            wanted.append(f"uvicorn=={version('uvicorn')}")
        try:
            # What uv has seen before needs no network, and no second look at the index.
            await _uv("pip", "install", "--quiet", "--offline", *wanted)
        except AetherError:
            await _uv("pip", "install", "--quiet", *wanted)

    def command(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> list[str]:
        binaries = work_dir / "venv" / "bin"
        if ":" not in spec.entry:
            return [str(binaries / spec.entry)]
        port = ["/bin/sh", "-c", 'exec "$0" "$@" --port "$PORT"']
        uvicorn = [str(binaries / "python"), "-m", "uvicorn", spec.entry, "--host", "127.0.0.1"]
        quiet = ["--no-access-log", "--timeout-graceful-shutdown", str(int(spec.grace_s) or 1)]
        return [*port, *uvicorn, *quiet]


def _wheel_name(spec: InstanceSpec) -> str:
    """Return a name by PEP 427: the store keeps artifacts under their digest."""
    name, _, version_ = spec.artifact.partition(":")
    return f"{name.replace('-', '_')}-{version_}-py3-none-any.whl"


async def _uv(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        _uv_program(),
        *arguments,
        env=machine_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        last = output.decode(errors="replace").strip().splitlines()[-3:]
        raise AetherError(f"uv {arguments[0]} failed: {' / '.join(last)}")


def _uv_program() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise AetherError("uv not found: it makes the environments of .whl artifacts")
    return found
