"""Python zip applications (PEP 441): started by the node's own Python."""

import sys
from pathlib import Path
from typing import ClassVar

from aether_core.drivers import API_VERSION
from aether_core.model import InstanceSpec
from aether_core.runtimes.jar import refuse_broken_zip


class PyzRuntime:
    """`.pyz`: everything it needs is inside; it sees none of the agent's packages."""

    api_version: ClassVar[int] = API_VERSION
    suffix: ClassVar[str] = ".pyz"

    async def prepare(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> None:
        await refuse_broken_zip(artifact, spec)

    def command(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> list[str]:
        # The base interpreter, isolated: not the virtual environment that the agent runs in.
        python = Path(sys.base_prefix) / "bin" / "python3"
        return [str(python), "-I", "-u", str(artifact)]
