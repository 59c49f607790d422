"""`make bench`: measures, prints, and writes docs/bench.md, docs/bench/ and bench-results/.

It decides nothing. `--quick` measures a little of everything and leaves the docs alone.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from aether_core import __version__
from tests.bench import page
from tests.bench.cycles import measure_cycles
from tests.bench.figures import Figure
from tests.bench.memory import measure_memory
from tests.bench.sizes import QUICK, Sizes
from tests.bench.starting import measure_bootstrap, measure_commands, measure_deploy
from tests.bench.switching import measure_switch
from tests.bench.throughput import measure_throughput
from tests.e2e.desk import Desk

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "bench-results", ROOT / "docs"


def main() -> None:
    options = _options()
    sizes = QUICK if options.quick else Sizes()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="aether-bench-") as directory:
        for name, measure in parts(Path(directory), sizes).items():
            if not options.only or name in options.only:
                print(f"{name} ...", file=sys.stderr, flush=True)  # noqa: T201
                found = measure()
                print(page.table(found), flush=True)  # noqa: T201
                figures += found
    write(figures, is_whole=not options.quick and not options.only)


def parts(scratch: Path, sizes: Sizes) -> dict[str, Callable[[], list[Figure]]]:
    """Return what is measured, by the names that `--only` takes."""
    return {
        "commands": partial(measure_commands, sizes),
        "bootstrap": partial(measure_bootstrap, scratch, sizes),
        "resting": partial(measure_resting, scratch, sizes),
        "throughput": partial(measure_throughput, scratch, sizes),
        "cycles": partial(measure_cycles, scratch, sizes),
        "switch-1": partial(measure_switch, scratch, sizes, 1),
        "switch-5": partial(measure_switch, scratch, sizes, sizes.nodes),
    }


def measure_resting(scratch: Path, sizes: Sizes) -> list[Figure]:
    """Deployments and memory, in one cluster of all nodes."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        desk = Desk(Path(directory))
        desk.aether("cluster", "bootstrap", "--config", desk.config("rest", sizes.nodes))
        try:
            return [*measure_deploy(desk, sizes), *measure_memory(desk, sizes)]
        finally:
            desk.aether("cluster", "destroy", "rest", "--yes")


def write(figures: list[Figure], *, is_whole: bool) -> None:
    """Write the results; a whole run also becomes the page of figures."""
    about = machine()
    RESULTS.mkdir(exist_ok=True)
    page.write_json(RESULTS / f"{about['at'].replace(':', '')}.json", figures, about)
    if is_whole:
        (DOCS / "bench").mkdir(exist_ok=True)
        page.write_json(DOCS / "bench" / "results.json", figures, about)
        page.draw(DOCS / "bench" / "figures.svg", figures)
        where = (
            f"Measured {about['at'][:10]} with Aether {about['aether']} on {about['cores']} cores "
            f"({about['processor']}), {about['memory_gib']} GiB of memory, {about['system']}."
        )
        page.write_page(DOCS / "bench.md", figures, where)


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "schema": 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251
        "aether": __version__,
        "cores": os.cpu_count(),
        "processor": names[0] if names else platform.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; the docs stay as is")
    parser.add_argument("--only", nargs="+", help="some parts: commands bootstrap resting ...")
    parser.add_argument("--scratch", help="where the clusters live; otherwise the system's tmp")
    return parser.parse_args()


if __name__ == "__main__":
    main()
