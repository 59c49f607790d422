"""Distributions as pip leaves them, made by hand: for plugins that are ill."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AETHER = str(Path(sys.executable).with_name("aether"))
BOUND_S = 60.0


@dataclass(frozen=True)
class Shelf:
    """A folder that is on the import path of who looks for plugins."""

    directory: Path

    def add(self, distribution: str, source: str, *, group: str = "aether", **points: str) -> None:
        """Install a distribution of one module, named as it is.

        `points`: entry point name to attribute; without any, one that is the module.
        """
        module = distribution.replace("-", "_")
        (self.directory / f"{module}.py").write_text(source)
        about = self.directory / f"{module}-1.0.dist-info"
        about.mkdir()
        head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (about / "METADATA").write_text(head)
        named = {name: f"{module}:{attribute}" for name, attribute in points.items()}
        lines = [f"{name} = {value}" for name, value in (named or {module: module}).items()]
        (about / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")

    def aether(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a command line that finds what is on the shelf."""
        return subprocess.run(
            [AETHER, *words],
            env={**os.environ, "PYTHONPATH": str(self.directory), **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=BOUND_S,
            check=False,
        )

    def lines(self, *, only: str = "", **env: str) -> list[dict[str, Any]]:
        """Return what `aether plugin list` says, of all distributions or of one."""
        done = self.aether("plugin", "list", "--json", **env)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["plugins"]
        return [line for line in found if only in ("", line["distribution"])]
