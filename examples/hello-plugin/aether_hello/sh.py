"""Shell scripts as artifacts: `greeting-1.0.0.sh`, run by /bin/sh."""

import asyncio
from pathlib import Path
from typing import ClassVar

from aether_core.errors import IntegrityError
from aether_core.model import InstanceSpec

SHELL = "/bin/sh"


class ShellRuntime:
    """A `drivers.Runtime`. There is no base class: having its methods is enough."""

    api_version: ClassVar[int] = 1
    suffix: ClassVar[str] = ".sh"

    async def prepare(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> None:
        if not artifact.read_bytes().startswith(b"#!"):
            raise IntegrityError(f"artifact '{spec.artifact}' is no script: it lacks '#!'")
        checking = await asyncio.create_subprocess_exec(
            SHELL, "-n", str(artifact), stderr=asyncio.subprocess.PIPE
        )
        _, complaint = await checking.communicate()
        if checking.returncode:
            reason = complaint.decode(errors="replace").strip()
            raise IntegrityError(f"artifact '{spec.artifact}' is no shell script: {reason}")

    def command(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> list[str]:
        return [SHELL, str(artifact)]
