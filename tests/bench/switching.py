"""How soon a routing change is answered by every node, and whether a request fails meanwhile.

A change is one transaction on the routing document, sent as the leader sends it. Every node's
public listener is asked again and again over a connection that stays open; a node has switched when
an answer comes from the new fleet. The clock runs from the sending of the transaction to the last
node's first new answer; the store's own acknowledgement of the same transactions is the floor.
"""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from aether_core import certs, keys
from aether_core.clock import SystemClock
from aether_core.model import FleetId, RouteTable, decode
from aether_core.store import put
from aether_core.store_etcd import EtcdStore
from tests.bench import backend
from tests.bench.figures import Figure, Goal, Of
from tests.bench.sizes import Sizes
from tests.e2e.desk import Desk

# Between two questions to a node; and between one change and the next, long enough for every agent
# to have said that it follows and for the others to have heard it.
ASK_AGAIN_S = 0.0003
REST_S = 0.2
CONNECTIONS = 16
SLICE = "web"
VERSIONS = ("1", "2")


@dataclass
class Probe:
    """One connection to a node's public listener."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def until(self, version: str) -> float:
        """Ask until `version` answers; return when it did."""
        while await self._ask() != version:
            await asyncio.sleep(ASK_AGAIN_S)
        return time.perf_counter()

    async def _ask(self) -> str:
        self.writer.write(f"GET /{SLICE} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        await self.reader.readuntil(b"\r\n\r\n")
        return (await self.reader.readexactly(len(VERSIONS[0]))).decode()


@dataclass
class Switchboard:
    """The store, and a probe for every node."""

    store: EtcdStore
    tables: dict[str, RouteTable]
    probes: list[Probe]
    answered_ms: list[float] = field(default_factory=list)
    acknowledged_ms: list[float] = field(default_factory=list)

    async def switch(self, version: str) -> None:
        """Have every node answer with `version`; note how long it took."""
        began_s = time.perf_counter()
        commit = asyncio.ensure_future(self._commit(version))
        seen = await asyncio.gather(*(probe.until(version) for probe in self.probes))
        self.acknowledged_ms.append((await commit - began_s) * 1000)
        self.answered_ms.append((max(seen) - began_s) * 1000)

    async def _commit(self, version: str) -> float:
        await self.store.commit([put(keys.ROUTES, self.tables[version])])
        return time.perf_counter()


def measure_switch(scratch: Path, sizes: Sizes, nodes: int) -> list[Figure]:
    """Switch at rest, then without a pause under load."""
    with _cluster(scratch, nodes) as desk:
        return uvloop.run(_measure(desk, sizes, nodes))


@contextmanager
def _cluster(scratch: Path, nodes: int) -> Iterator[Desk]:
    """A cluster where two slices run, one for each version."""
    with TemporaryDirectory(dir=scratch) as directory:
        desk = Desk(Path(directory))
        desk.aether("cluster", "bootstrap", "--config", desk.config("switch", nodes))
        try:
            for name, version in zip((SLICE, "other"), VERSIONS, strict=True):
                backend.upload(desk, version)
                backend.deploy(desk, name, version)
            yield desk
        finally:
            desk.aether("cluster", "destroy", "switch", "--yes")


async def _measure(desk: Desk, sizes: Sizes, nodes: int) -> list[Figure]:
    async with _switchboard(desk, nodes) as board:
        for number in range(sizes.switches):
            await board.switch(VERSIONS[(number + 1) % 2])
            await asyncio.sleep(REST_S)
        figures = [_latency(board, nodes, "at rest", quantile) for quantile in (0.5, 0.99)]
    async with _switchboard(desk, nodes) as board:
        requests = sizes.requests if nodes == 1 else sizes.requests // 10
        failed = await _switch_under_load(board, desk.ingress(), requests)
    count = len(board.answered_ms)
    under_load = f"failed of {requests} requests while shares switch {count} times"
    return [
        *figures,
        _latency(board, nodes, "under load", 0.5),
        Figure(f"{_nodes(nodes)}: {under_load}", "", (failed,), goal=Goal(Of.VALUE, 0.0)),
    ]


def _latency(board: Switchboard, nodes: int, when: str, quantile: float) -> Figure:
    goals = {(1, "at rest", 0.99): 5.0, (5, "at rest", 0.5): 8.0}
    bound = goals.get((nodes, when, quantile))
    return Figure(
        f"{_nodes(nodes)}: routing switch {when}, p{quantile * 100:g}",
        "ms",
        tuple(board.answered_ms),
        tuple(board.acknowledged_ms),
        "the store acknowledges the same transactions",
        Goal(Of.VALUE, bound) if bound else None,
        quantile,
    )


def _nodes(nodes: int) -> str:
    return "one node" if nodes == 1 else f"{nodes} nodes"


@asynccontextmanager
async def _switchboard(desk: Desk, nodes: int) -> AsyncIterator[Switchboard]:
    certificates = desk.root / "data" / "clusters" / "switch" / "certs"
    endpoint = f"https://127.0.0.1:{desk.base_port + 3}"
    store = EtcdStore([endpoint], certs.client_context(certificates), SystemClock())
    entry = await store.get(keys.ROUTES)
    assert entry is not None, "two slices are routed"
    table = decode(RouteTable, entry.value)
    probes = [
        Probe(*await asyncio.open_connection("127.0.0.1", desk.base_port + 4 + slot))
        for slot in range(1, nodes + 1)
    ]
    try:
        yield Switchboard(store, dict(zip(VERSIONS, _tables(desk, table), strict=True)), probes)
    finally:
        for probe in probes:
            probe.writer.close()
        await store.close()


def _tables(desk: Desk, table: RouteTable) -> list[RouteTable]:
    """Return the document twice: all of the slice's requests to one fleet, and to the other."""
    fleets = [desk.instances(name)[0]["fleet"] for name in (SLICE, "other")]
    return [
        replace(table, shares=table.shares | {SLICE: {FleetId(fleet): 10_000}}) for fleet in fleets
    ]


async def _switch_under_load(board: Switchboard, url: str, requests: int) -> float:
    """Switch again and again until hey has its answers; return how many were not 200."""
    program = shutil.which("hey")
    assert program, "the bench needs hey: apt install hey"
    count = requests // CONNECTIONS * CONNECTIONS
    hey = await asyncio.create_subprocess_exec(
        program, "-n", str(count), "-c", str(CONNECTIONS), f"{url}/{SLICE}",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output = asyncio.ensure_future(hey.communicate())
    turn = 0
    while not output.done():
        turn += 1
        await board.switch(VERSIONS[turn % 2])
    text = (await output)[0].decode()
    answered = [int(number) for number in re.findall(r"\[200\]\s+(\d+) responses", text)]
    return float(count - sum(answered))
