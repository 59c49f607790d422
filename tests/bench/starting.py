"""How long things take to begin: a cluster, three instances, the command line, an agent."""

import subprocess
import sys
import tempfile
import time
import zipapp
from contextlib import ExitStack
from pathlib import Path

from tests.bench import floor
from tests.bench.figures import Figure, Goal, Of
from tests.bench.sizes import Sizes
from tests.e2e.desk import AETHER, SHOP, Desk, free_range

CATALOG = 'name = "catalog"\nartifact = "shop-catalog:1.0.0"\ninstances = 3\n' + (
    'route = { prefix = "/catalog" }\nresources = { cpu = 0.05, memory = "64MiB" }\n'
)


def measure_bootstrap(scratch: Path, sizes: Sizes) -> list[Figure]:
    """A cluster from nothing to READY, beside its engines started bare."""
    took, bare = [], []
    for _ in range(sizes.bootstraps):
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            bare.append(floor.start_bare(Path(directory), free_range(), sizes.nodes))
            desk = Desk(Path(directory))
            config = desk.config("bench", sizes.nodes)
            began_s = time.perf_counter()
            desk.aether("cluster", "bootstrap", "--config", config)
            took.append(time.perf_counter() - began_s)
            desk.aether("cluster", "destroy", "bench", "--yes")
    return [
        Figure(
            f"bootstrap of {sizes.nodes} nodes, from the command to READY",
            "s",
            tuple(took),
            tuple(bare),
            f"{sizes.nodes} bare etcd members and {sizes.nodes} bare Envoys until all answer",
            Goal(Of.RATIO, 2.0),
        )
    ]


def measure_deploy(desk: Desk, sizes: Sizes) -> list[Figure]:
    """Three instances from the command to COMPLETED, beside the same three started by hand."""
    artifact = desk.root / "shop-catalog-1.0.0.pyz"
    zipapp.create_archive(SHOP / "catalog", artifact)
    desk.aether("artifact", "upload", artifact)
    blueprint = desk.blueprint("catalog", "1.0.0", CATALOG)
    took, alone = [], []
    for _ in range(sizes.deploys):
        alone.append(_start_by_hand(artifact, 3))
        began_s = time.perf_counter()
        desk.aether("deploy", blueprint, "--strategy", "immediate")
        took.append(time.perf_counter() - began_s)
        desk.aether("undeploy", "catalog", "--yes")
    return [
        Figure(
            "deploy of three instances, from the command to COMPLETED",
            "s",
            tuple(took),
            tuple(alone),
            "the same three processes started by hand until all answer",
            Goal(Of.EXCESS, 1.0),
        )
    ]


def _start_by_hand(artifact: Path, count: int) -> float:
    # As the pyz runtime does: the base interpreter, isolated.
    argv = [str(Path(sys.base_prefix) / "bin" / "python3"), "-I", "-u", str(artifact)]
    base = free_range()
    began_s = time.perf_counter()
    with ExitStack() as running:
        for port in range(base, base + count):
            env = {"PORT": str(port), "AETHER_VERSION": "1.0.0"}
            running.enter_context(floor.process(argv, env=env))
        for port in range(base, base + count):
            floor.wait_for(f"http://{floor.HOST}:{port}/")
        return time.perf_counter() - began_s


def measure_commands(sizes: Sizes) -> list[Figure]:
    """The command line's help and the agent's modules, beside a Python that does nothing."""
    nothing = [sys.executable, "-c", "pass"]
    asked = {
        "aether --help": [AETHER, "--help"],
        "the agent's modules imported": [sys.executable, "-c", "import aether_core.agent"],
    }
    took: dict[str, list[float]] = {name: [] for name in asked}
    bare = []
    for _ in range(sizes.commands):
        bare.append(_wall_ms(nothing))
        for name, command in asked.items():
            took[name].append(_wall_ms(command))
    goals = {"aether --help": Goal(Of.VALUE, 300.0)}
    return [
        Figure(name, "ms", tuple(took[name]), tuple(bare), "python -c pass", goals.get(name))
        for name in asked
    ]


def _wall_ms(command: list[str]) -> float:
    began_s = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began_s) * 1000
