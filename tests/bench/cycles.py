"""Whether a request fails while strategies deploy one version after the other, without a pause.

An independent load generator, hey, counts: every answer that is not 200, and every one that does
not come, is a failed request. It asks every node, as a balancer in front of them would: a canary is
compared with versions that are as far away.
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

# To each node. More than this, and on two cores the nodes themselves would have no time left.
CONNECTIONS = 5
REQUESTS_PER_S = 400
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
    urls, deployments = [f"{desk.ingress(slot + 1)}/{SLICE}" for slot in range(NODES)], 0
    each = requests // NODES // CONNECTIONS * CONNECTIONS
    load = asyncio.gather(*(_load(url, each) for url in urls))
    # A deployment that is not over when the load is would wait for ever without requests.
    trickles = [await _hey("-z", "1h", "-c", "5", "-q", "20", url) for url in urls]
    try:
        while not load.done():
            deployments += 1
            await asyncio.to_thread(_deploy, desk, name, VERSIONS[deployments % 2])
        if deployments % 2:  # The next strategy begins where this one did.
            await asyncio.to_thread(_deploy, desk, "immediate", VERSIONS[0])
    finally:
        for trickle in trickles:
            trickle.kill()
            await trickle.wait()
    what = f"{name}: failed of {NODES * each} requests during {deployments} deployments"
    return Figure(what, "", (sum(await load),), goal=Goal(Of.VALUE, 0.0))


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
