"""The ingress with a real Envoy and real backends."""

import asyncio
import math
import pickle
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from aether_core import certs
from aether_core.clock import SystemClock
from aether_core.envoy import World
from aether_core.envoy_routes import FLEET_HEADER
from aether_core.errors import AetherError
from aether_core.ingress import Ingress
from aether_core.model import InstanceState
from aether_core.process import is_alive
from tests.cluster.worlds import (
    Backend,
    empty_world,
    fleet,
    record_of,
    with_instances,
    with_shares,
)

BOUND_S = 30.0
V1, V2 = fleet("1"), fleet("2")
Starter = Callable[[str], Awaitable[Backend]]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return empty_world(tmp_path / "n1")


@pytest.fixture
async def ingress(tmp_path: Path, world: World) -> AsyncIterator[Ingress]:
    started = Ingress(tmp_path / "n1", SystemClock(), threads=1)
    await started.start(world)
    yield started
    await started.stop()


@pytest.fixture
async def backend() -> AsyncIterator[Starter]:
    running: list[Backend] = []

    async def start(name: str) -> Backend:
        running.append(await Backend(name).start())
        return running[-1]

    yield lambda name: asyncio.ensure_future(start(name))
    for server in running:
        server.hold.set()
        await server.stop()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    base = f"http://127.0.0.1:{world.public_port}"
    async with httpx.AsyncClient(base_url=base, timeout=BOUND_S, trust_env=False) as client:
        yield client


def here(world: World, *backends: Backend) -> list[tuple[str, int]]:
    return [(world.node, backend.port) for backend in backends]


async def test_routes_by_the_longest_prefix_on_whole_segments(
    world: World, ingress: Ingress, http: httpx.AsyncClient, backend: Starter
) -> None:
    web, prices = await backend("web"), await backend("prices")
    other = fleet("1", slice_name="prices")
    both = with_instances(world, (V1, here(world, web)), (other, here(world, prices)))
    shares = {"web": {V1.id: 10_000}, "prices": {other.id: 10_000}}
    await ingress.apply(with_shares(both, shares, prices="/prices"))
    answers = [(await http.get(p)).text for p in ("/", "/prices", "/prices/1", "/pricesx")]
    assert answers == ["web", "prices", "prices", "web"]


async def test_what_nobody_serves_is_said(
    world: World, ingress: Ingress, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/")).status_code == 404
    await ingress.apply(with_shares(world, {"web": {}}))
    answer = await http.get("/")
    assert (answer.status_code, answer.text) == (503, "slice 'web' has nothing to serve it yet\n")


@pytest.mark.parametrize("share_bp", [500, 5_000])
async def test_a_share_holds_at_three_and_three_instances(
    world: World,
    ingress: Ingress,
    http: httpx.AsyncClient,
    backend: Starter,
    share_bp: int,
) -> None:
    old = [await backend("old") for _ in range(3)]
    new = [await backend("new") for _ in range(3)]
    split = with_instances(world, (V1, here(world, *old)), (V2, here(world, *new)))
    shares = {V1.id: 10_000 - share_bp, V2.id: share_bp}
    await ingress.apply(with_shares(split, {"web": shares}))
    total = 4_000
    counted = Counter([(await http.get("/")).text for _ in range(total)])
    share = share_bp / 10_000
    margin = 3.29 * math.sqrt(share * (1 - share) / total)  # 99.9 % of a binomial's draws.
    assert abs(counted["new"] / total - share) <= margin
    assert counted["new"] + counted["old"] == total


async def test_switching_under_load_loses_no_request(
    world: World, ingress: Ingress, http: httpx.AsyncClient, backend: Starter
) -> None:
    old, new = await backend("old"), await backend("new")
    both = with_instances(world, (V1, here(world, old)), (V2, here(world, new)))
    await ingress.apply(with_shares(both, {"web": {V1.id: 10_000}}))
    done = asyncio.Event()
    answers: Counter[str] = Counter()

    async def load() -> None:
        while not done.is_set():
            answer = await http.get("/")
            answers[f"{answer.status_code} {answer.text}"] += 1

    tasks = [asyncio.ensure_future(load()) for _ in range(4)]
    for turn in range(200):
        target = V2 if turn % 2 == 0 else V1
        await ingress.apply(with_shares(both, {"web": {target.id: 10_000}}))
        assert (await http.get("/")).text == ("new" if turn % 2 == 0 else "old")
    done.set()
    await asyncio.gather(*tasks)
    assert set(answers) == {"200 old", "200 new"}


async def test_a_new_fleet_replaces_the_old_one_without_a_failed_request(
    world: World, ingress: Ingress, http: httpx.AsyncClient, backend: Starter
) -> None:
    """Clusters come and go, as in a deployment, while requests run."""
    done = asyncio.Event()
    answers: Counter[int] = Counter()

    async def load() -> None:
        while not done.is_set():
            answers[(await http.get("/")).status_code] += 1

    servers = [await backend(f"v{n}") for n in range(12)]
    fleets = [fleet(str(n)) for n in range(12)]
    first = with_instances(world, (fleets[0], here(world, servers[0])))
    await ingress.apply(with_shares(first, {"web": {fleets[0].id: 10_000}}))
    tasks = [asyncio.ensure_future(load()) for _ in range(4)]
    for old, new in zip(range(11), range(1, 12), strict=True):
        both = with_instances(
            world,
            (fleets[old], here(world, servers[old])),
            (fleets[new], here(world, servers[new])),
        )
        await ingress.apply(with_shares(both, {"web": {fleets[old].id: 10_000}}))
        await ingress.apply(with_shares(both, {"web": {fleets[new].id: 10_000}}))
        only_new = with_instances(world, (fleets[new], here(world, servers[new])))
        await ingress.apply(with_shares(only_new, {"web": {fleets[new].id: 10_000}}))
        assert (await http.get("/")).text == f"v{new}"
    done.set()
    await asyncio.gather(*tasks)
    assert set(answers) == {200}
    assert len(list(ingress.live_dir.glob("eds-*.json"))) == 2


async def test_a_rejected_document_is_an_error_and_traffic_goes_on(
    world: World, ingress: Ingress, http: httpx.AsyncClient, backend: Starter
) -> None:
    server = await backend("fine")
    good = with_shares(with_instances(world, (V1, here(world, server))), {"web": {V1.id: 10_000}})
    await ingress.apply(good)
    bad = replace(good, statuses=(replace(good.statuses[0], port=99_999),))
    with pytest.raises(AetherError, match="envoy did not take"):
        await ingress.apply(bad)
    assert (await http.get("/")).text == "fine"
    await ingress.apply(good)


async def test_a_draining_instance_finishes_and_gets_nothing_new(
    world: World, ingress: Ingress, http: httpx.AsyncClient, backend: Starter
) -> None:
    leaving, staying = await backend("leaving"), await backend("staying")
    both = with_instances(world, (V1, here(world, leaving, staying)))
    both = with_shares(both, {"web": {V1.id: 10_000}})
    await ingress.apply(both)
    held = [asyncio.ensure_future(http.get("/hold")) for _ in range(8)]
    async with asyncio.timeout(BOUND_S):
        while leaving.requests + staying.requests < 8:
            await asyncio.sleep(0.01)
    assert leaving.requests
    assert await ingress.active_requests(leaving.port) == leaving.requests
    draining = replace(both.statuses[0], state=InstanceState.DRAINING)
    await ingress.apply(replace(both, statuses=(draining, both.statuses[1])))
    seen = leaving.requests
    assert {(await http.get("/")).text for _ in range(50)} == {"staying"}
    assert leaving.requests == seen
    leaving.hold.set()
    staying.hold.set()
    assert Counter([(await request).text for request in held])["leaving"] == seen
    assert await ingress.active_requests(leaving.port) == 0


async def test_the_mesh_carries_requests_to_another_node_with_mtls_only(
    tmp_path: Path,
    world: World,
    ingress: Ingress,
    http: httpx.AsyncClient,
    backend: Starter,
) -> None:
    far = empty_world(tmp_path / "n2", "node-2")
    far_ingress = Ingress(tmp_path / "n2", SystemClock(), threads=1)
    nodes = {world.node: record_of(world), far.node: record_of(far)}
    server = await backend("far away")
    places = (V1, [("node-2", server.port)])
    shares = {"web": {V1.id: 10_000}}
    far = with_shares(with_instances(replace(far, nodes=nodes), places), shares)
    near = with_shares(with_instances(replace(world, nodes=nodes), places), shares)
    await far_ingress.start(far)
    try:
        await ingress.apply(near)
        assert (await http.get("/")).text == "far away"
        stranger = certs.trusting(
            certs.authority("test", "a secret for tests only").certificate_pem
        )
        stranger.check_hostname = False
        url = f"https://127.0.0.1:{far.mesh_port}/"
        async with httpx.AsyncClient(verify=stranger, trust_env=False) as client:
            with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                await client.get(url, headers={FLEET_HEADER: V1.id})
        # Nobody outside chooses a fleet: what the client says is overwritten.
        assert (await http.get("/", headers={FLEET_HEADER: "web@9"})).text == "far away"
    finally:
        await far_ingress.stop()


@pytest.mark.parametrize("what", ["fleet", "instances"])
async def test_who_knows_less_than_the_node_it_asks_asks_another(
    tmp_path: Path,
    world: World,
    ingress: Ingress,
    http: httpx.AsyncClient,
    backend: Starter,
    what: str,
) -> None:
    """A node whose agent is dead goes on sending requests to where instances were."""
    far = empty_world(tmp_path / "n2", "node-2")
    far_ingress = Ingress(tmp_path / "n2", SystemClock(), threads=1)
    nodes = {world.node: record_of(world), far.node: record_of(far)}
    here_too, there = await backend("here"), await backend("there")
    places = (V1, [(world.node, here_too.port), ("node-2", there.port)])
    shares = {"web": {V1.id: 10_000}}
    far = with_shares(with_instances(replace(far, nodes=nodes), places), shares)
    near = with_shares(with_instances(replace(world, nodes=nodes), places), shares)
    await far_ingress.start(far)
    try:
        await ingress.apply(near)
        assert {(await http.get("/")).text for _ in range(20)} == {"here", "there"}
        gone = replace(far, assignments=(), statuses=())
        if what == "fleet":
            gone = replace(gone, fleets=(), routes=replace(far.routes, routes=(), shares={}))
        await far_ingress.apply(gone)
        answers = [await http.post("/") for _ in range(40)]
        assert Counter(a.status_code for a in answers) == {200: 40}
    finally:
        await far_ingress.stop()


async def test_slices_reach_each_other_by_host_and_as_a_proxy(
    world: World, ingress: Ingress, backend: Starter
) -> None:
    server = await backend("inner")
    routed = with_shares(with_instances(world, (V1, here(world, server))), {"web": {V1.id: 10_000}})
    await ingress.apply(routed)
    mesh_url = f"http://127.0.0.1:{world.inner_port}"
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(mesh_url, headers={"Host": "web.aether"})).text == "inner"
        assert (await client.get(mesh_url, headers={"Host": "nobody.aether"})).status_code == 404
    async with httpx.AsyncClient(proxy=mesh_url, trust_env=False) as client:
        assert (await client.get("http://web.aether/x")).text == "inner"


async def test_websockets_pass(world: World, ingress: Ingress, backend: Starter) -> None:
    server = await backend("ws")
    routed = with_shares(with_instances(world, (V1, here(world, server))), {"web": {V1.id: 10_000}})
    await ingress.apply(routed)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.public_port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with asyncio.timeout(BOUND_S):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"101" in head.splitlines()[0]
        writer.write(b"both ways")
        assert await reader.readexactly(9) == b"both ways"
    writer.close()


async def test_envoy_outlives_a_killed_agent_and_is_taken_over(
    tmp_path: Path, world: World, http: httpx.AsyncClient
) -> None:
    script = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from aether_core.clock import SystemClock\n"
        "from aether_core.ingress import Ingress\n"
        "import pickle\n"
        "world = pickle.loads(bytes.fromhex(sys.argv[2]))\n"
        "asyncio.run(Ingress(Path(sys.argv[1]), SystemClock(), threads=1).start(world))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    data = pickle.dumps(world).hex()
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, str(tmp_path / "n1"), data], check=False
    )
    assert killed.returncode == -9
    assert (await http.get("/")).status_code == 404  # Envoy answers.
    again = Ingress(tmp_path / "n1", SystemClock(), threads=1)
    await again.start(world)
    assert again.child is not None
    assert is_alive(again.child)
    await again.stop()
    assert not is_alive(again.child)
