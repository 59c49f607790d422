"""Whether a request fails while strategies deploy one version after the other, without a pause.

An independent load generator, hey, counts: every answer that is not 200, and every one that does
not come, is a failed request. It asks one node of three, which passes most of it on to the others.
"""

import asyncio
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import backend
from tests.bench.figures import Figure, Goal, Of
from tests.bench.sizes import Sizes
from tests.e2e.desk import Desk

CONNECTIONS = 20
REQUESTS_PER_S = 2_500
NODES, INSTANCES = 3, 3
SLICE = "web"
VERSIONS = ("1", "2")
#: Strategy: its table, and what ends it where somebody has to.
STRATEGIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "immediate": ('kind = "immediate"', ()),
    "rolling": ('kind = "rolling"', ()),
    "canary": ('kind = "canary"\nstages = [5, 25, 50, 100]\nstage_s = 1.0', ()),
    "blue-green": ('kind = "blue_green"', ("deploy", "complete")),
    "A/B": ('kind = "ab_test"\ncontext = { header = "x-user" }', ("deploy", "complete")),
}


def measure_cycles(scratch: Path, sizes: Sizes) -> list[Figure]:
    """Deploy by each strategy in turn, each under its part of the requests."""
    with TemporaryDirectory(dir=scratch) as directory:
        desk = Desk(Path(directory))
        desk.aether("cluster", "bootstrap", "--config", desk.config("cycles", NODES))
        try:
            for version in VERSIONS:
                backend.upload(desk, version)
            backend.deploy(desk, SLICE, VERSIONS[0], INSTANCES)
            return [
                asyncio.run(_measure(desk, name, sizes.requests // (len(STRATEGIES) - 1)))
                for name in STRATEGIES
            ]
        finally:
            desk.aether("cluster", "destroy", "cycles", "--yes")


async def _measure(desk: Desk, name: str, requests: int) -> Figure:
    count = requests // CONNECTIONS * CONNECTIONS
    url, deployments = f"{desk.ingress()}/{SLICE}", 0
    load = asyncio.ensure_future(_load(url, count))
    # A deployment that is not over when the load is would wait for ever without requests.
    trickle = await _hey("-z", "1h", "-c", "5", "-q", "20", url)
    try:
        while not load.done():
            deployments += 1
            await asyncio.to_thread(_deploy, desk, name, VERSIONS[deployments % 2])
        if deployments % 2:  # The next strategy begins where this one did.
            await asyncio.to_thread(_deploy, desk, "immediate", VERSIONS[0])
    finally:
        trickle.kill()
        await trickle.wait()
    what = f"{name}: failed of {count} requests during {deployments} deployments"
    return Figure(what, "", (await load,), goal=Goal(Of.VALUE, 0.0))


def _deploy(desk: Desk, name: str, version: str) -> None:
    strategy, ending = STRATEGIES[name]
    table = backend.SLICE.format(name=SLICE, version=version, instances=INSTANCES)
    desk.aether("deploy", desk.blueprint(SLICE, version, table, strategy=strategy))
    if ending:
        desk.aether(*ending, SLICE)


async def _load(url: str, count: int) -> float:
    """Return how many of `count` requests were not answered with 200."""
    rate = str(REQUESTS_PER_S // CONNECTIONS)
    hey = await _hey("-n", str(count), "-c", str(CONNECTIONS), "-q", rate, url)
    text = (await hey.communicate())[0].decode()
    answered = [int(number) for number in re.findall(r"\[200\]\s+(\d+) responses", text)]
    return float(count - sum(answered))


async def _hey(*arguments: str) -> asyncio.subprocess.Process:
    program = shutil.which("hey")
    assert program, "the bench needs hey: apt install hey"
    return await asyncio.create_subprocess_exec(program, *arguments, stdout=asyncio.subprocess.PIPE)
