"""Who gets which version: shares and A/B splits, as two real Envoys on two nodes carry them out."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aether_core.clock import SystemClock
from aether_core.envoy import World
from aether_core.evidence import Window
from aether_core.ingress import Ingress
from aether_core.model import Fleet, FleetId, Variants
from tests.cluster.visitors import Answer, Visit, visit
from tests.cluster.worlds import (
    Backend,
    empty_world,
    fleet,
    record_of,
    with_instances,
    with_shares,
)

BOUND_S = 30.0
OLD, NEW = fleet("1"), fleet("2")
CONTEXTS = [f"visitor-{number}" for number in range(2_000)]
SURE = 3.29  # Standard deviations that hold 99.9 % of a binomial's draws.
NEVER = 6.0  # Where each run draws anew: chance alone leaves this far less than once in a million.

Starter = Callable[[str], Awaitable[Backend]]
Homes = tuple[Fleet, list[Backend], list[Backend]]  # Its instances on the first, the second node.


@dataclass
class Pair:
    """Two nodes, each with its Envoy, which know of each other's instances."""

    worlds: list[World]
    ingresses: list[Ingress]

    def serve(self, *homes: Homes) -> None:
        """Let there be these instances; nothing is routed to them yet."""
        fleets = [
            (one, [("node-1", b.port) for b in here] + [("node-2", b.port) for b in there])
            for one, here, there in homes
        ]
        self.worlds = [with_instances(world, *fleets) for world in self.worlds]

    async def share(self, shares: dict[str, dict[str, int]], **variants: Variants) -> None:
        """Give each slice's fleets these basis points, on both nodes; every slice but "web" is
        found at its name."""
        prefixes = {name: f"/{name}" for name in shares if name != "web"}
        for world, ingress in zip(self.worlds, self.ingresses, strict=True):
            routed = with_shares(world, shares, **prefixes)
            await ingress.apply(replace(routed, routes=replace(routed.routes, variants=variants)))

    async def ask(self, node: int, visits: Iterable[Visit], *, inner: bool = False) -> list[Answer]:
        """Return what the node's Envoy, 0 or 1, answers to each visit in turn."""
        world = self.worlds[node]
        return await visit(world.inner_port if inner else world.public_port, visits)

    async def counted(self, node: int) -> dict[FleetId, Window]:
        return await self.ingresses[node].counted([OLD.id, NEW.id])


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    names = ("node-1", "node-2")
    worlds = [empty_world(tmp_path / name, name) for name in names]
    nodes = {world.node: record_of(world) for world in worlds}
    worlds = [replace(world, nodes=nodes) for world in worlds]
    ingresses = [Ingress(tmp_path / name, SystemClock(), threads=1) for name in names]
    for ingress, world in zip(ingresses, worlds, strict=True):
        await ingress.start(world)
    yield Pair(worlds, ingresses)
    for ingress in ingresses:
        await ingress.stop()


@pytest.fixture
async def backend() -> AsyncIterator[Starter]:
    running: list[Backend] = []

    async def start(name: str) -> Backend:
        running.append(await Backend(name).start())
        return running[-1]

    yield start
    for server in running:
        server.hold.set()
        await server.stop()


@pytest.fixture
async def shop(pair: Pair, backend: Starter) -> Pair:
    """The old version on the first node, the new one on the second: half of what comes in crosses
    the mesh."""
    pair.serve((OLD, [await backend("old")], []), (NEW, [], [await backend("new")]))
    return pair


def split(new_bp: int) -> dict[str, dict[str, int]]:
    return {"web": {OLD.id: 10_000 - new_bp, NEW.id: new_bp}}


def variants(
    by: str = "header", *, test: str = "shop-2", old: Fleet = OLD, new: Fleet = NEW
) -> Variants:
    return Variants(test, by, "x-user", "X-Variant", new.id, {old.id: "A", new.id: "B"})


def visit_of(by: str, context: str, path: str = "/", host: str = "shop.example") -> Visit:
    if by == "query":
        return Visit(f"{path}?page=1&x-user={context}", host=host)
    if by == "cookie":
        return Visit(path, {"Cookie": f"theme=dark; x-user={context}; z=1"}, host=host)
    return Visit(path, {"X-User": context}, host=host)


def assert_share(count: int, total: int, share: float, deviations: float) -> None:
    margin = deviations * math.sqrt(share * (1 - share) / total)
    assert abs(count / total - share) <= margin, f"{count} of {total}, not {share:.0%}"


@pytest.mark.parametrize("by", ["header", "cookie", "query"])
async def test_a_context_decides_the_same_on_every_node_and_keeps_what_it_has(
    shop: Pair, by: str
) -> None:
    have_new: list[set[str]] = []
    for new_bp in (1_000, 2_000):
        await shop.share(split(new_bp), web=variants(by))
        visits = [visit_of(by, context) for context in CONTEXTS]
        first, second = await asyncio.gather(shop.ask(0, visits), shop.ask(1, visits))
        assert [a.text for a in first] == [a.text for a in second]
        assert not any(answer.cookie for answer in first), "the context is enough"
        got = dict(zip(CONTEXTS, first, strict=True))
        have_new.append({context for context, answer in got.items() if answer.text == "new"})
        assert_share(len(have_new[-1]), len(CONTEXTS), new_bp / 10_000, SURE)
    at_ten_percent, at_twenty_percent = have_new
    assert at_ten_percent < at_twenty_percent


async def test_a_tester_chooses_by_the_forced_header(shop: Pair) -> None:
    await shop.share(split(5_000), web=variants())
    for node in (0, 1):
        for name, text in (("A", "old"), ("B", "new")):
            visits = [Visit("/", {"X-User": c, "x-variant": name}) for c in CONTEXTS[:50]]
            visits.append(Visit("/", {"x-variant": name, "Cookie": "aether-web=shop-2.A"}))
            assert {answer.text for answer in await shop.ask(node, visits)} == {text}
    unknown = [Visit("/", {"X-User": c, "x-variant": "C"}) for c in CONTEXTS[:50]]
    usual = [visit_of("header", context) for context in CONTEXTS[:50]]
    assert await shop.ask(0, unknown) == await shop.ask(0, usual)


async def test_a_visitor_without_context_keeps_by_a_cookie_what_chance_gave(shop: Pair) -> None:
    await shop.share(split(3_000), web=variants("query"))
    met = await shop.ask(0, [Visit()] * 1_000)
    assert_share(sum(answer.text == "new" for answer in met), len(met), 0.3, NEVER)
    cookies = {answer.text: answer.cookie for answer in met}
    assert cookies == {"old": "aether-web=shop-2.A", "new": "aether-web=shop-2.B"}
    assert all(answer.cookie == cookies[answer.text] for answer in met)
    assert "Path=/" in met[0].cookie_attributes
    assert "HttpOnly" in met[0].cookie_attributes
    for text, cookie in cookies.items():
        again = await shop.ask(1, [Visit("/", {"Cookie": f"a=b; {cookie}; c=d"})] * 50)
        assert {answer.text for answer in again} == {text}
        assert not any(answer.cookie for answer in again)


async def test_a_cookie_keeps_its_variant_while_the_share_grows(shop: Pair) -> None:
    for new_bp in (1_000, 9_000):
        await shop.share(split(new_bp), web=variants())
        for text, name in (("old", "A"), ("new", "B")):
            kept = await shop.ask(0, [Visit("/", {"Cookie": f"aether-web=shop-2.{name}"})] * 50)
            assert {answer.text for answer in kept} == {text}


@pytest.mark.parametrize(
    "cookie", ["aether-web=shop-1.B", "aether-web=shop-2.C", "aether-api=shop-2.B", "aether-web="]
)
async def test_a_cookie_of_anything_else_means_nothing(shop: Pair, cookie: str) -> None:
    await shop.share(split(5_000), web=variants(test="shop-2"))
    met = await shop.ask(0, [Visit("/", {"Cookie": cookie})] * 100)
    assert {answer.text for answer in met} == {"old", "new"}
    assert all(answer.cookie.startswith("aether-web=shop-2.") for answer in met)


async def test_several_slices_are_tested_at_once(pair: Pair, backend: Starter) -> None:
    old_api, new_api = fleet("1", slice_name="api"), fleet("2", slice_name="api")
    pair.serve(
        (OLD, [await backend("old")], []),
        (NEW, [], [await backend("new")]),
        (old_api, [await backend("old api")], []),
        (new_api, [], [await backend("new api")]),
    )
    shares = split(5_000) | {"api": {old_api.id: 5_000, new_api.id: 5_000}}
    await pair.share(shares, web=variants(), api=variants(old=old_api, new=new_api))
    users = CONTEXTS[:200]
    web = await pair.ask(0, [visit_of("header", user) for user in users])
    api = await pair.ask(1, [visit_of("header", user, "/api") for user in users])
    # One deployment is one test: whoever sees the new front is served by what belongs to it.
    assert [f"{answer.text} api" for answer in web] == [answer.text for answer in api]
    met = await pair.ask(0, [Visit("/api")] * 50)
    assert {answer.cookie for answer in met} == {"aether-api=shop-2.A", "aether-api=shop-2.B"}


async def test_inner_calls_are_split_as_those_from_outside(shop: Pair) -> None:
    await shop.share(split(3_000), web=variants())
    users = CONTEXTS[:500]
    outside = await shop.ask(0, [visit_of("header", user) for user in users])
    inside = [visit_of("header", user, host="web.aether") for user in users]
    for node in (0, 1):
        answers = await shop.ask(node, inside, inner=True)
        assert [a.text for a in answers] == [a.text for a in outside]
    await shop.share(split(3_000))
    drawn = await shop.ask(0, [Visit(host="web.aether")] * 2_000, inner=True)
    assert_share(sum(answer.text == "new" for answer in drawn), len(drawn), 0.3, NEVER)


@pytest.mark.parametrize("seed", range(4))
async def test_shares_hold_whatever_the_numbers_of_instances(
    pair: Pair, backend: Starter, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    homes: list[Homes] = []
    for one, text in ((OLD, "old"), (NEW, "new")):
        here, there = [[await backend(text) for _ in range(n)] for n in _on_two_nodes(chance)]
        homes.append((one, here, there))
    pair.serve(*homes)
    for share_bp in (100, chance.randint(101, 9_899), 9_900):
        await pair.share(split(share_bp))
        both = await asyncio.gather(*(pair.ask(node, [Visit()] * 1_000) for node in (0, 1)))
        texts = Counter(answer.text for answers in both for answer in answers)
        assert texts.keys() <= {"old", "new"}
        assert_share(texts["new"], 2_000, share_bp / 10_000, NEVER)


def _on_two_nodes(chance: random.Random) -> tuple[int, int]:
    """Return how many of 1 to 5 instances are on each of the two nodes."""
    total = chance.randint(1, 5)
    here = chance.randint(0, total)
    return here, total - here


async def test_every_request_is_counted_once_where_it_came_in(shop: Pair) -> None:
    await shop.share(split(5_000), web=variants())
    wanted = [Visit("/", {"x-variant": "A"})] * 30 + [Visit("/", {"x-variant": "B"})] * 20
    wanted += [Visit("/broken", {"x-variant": "B"})] * 7
    inner = [Visit(host="web.aether", headers={"x-variant": "B"})] * 5
    await shop.ask(0, wanted)
    await shop.ask(0, inner, inner=True)
    first = await _settled(shop, 0)
    assert (first[OLD.id].requests, first[OLD.id].errors) == (30, 0)
    assert (first[NEW.id].requests, first[NEW.id].errors) == (32, 7), "passed on to another node"
    assert await shop.counted(1) == {OLD.id: Window(), NEW.id: Window()}
    await shop.ask(1, [Visit("/broken", {"x-variant": "A"})] * 3)
    second = await _settled(shop, 1)
    assert (second[OLD.id].requests, second[OLD.id].errors) == (3, 3)
    assert await shop.counted(0) == first


async def _settled(pair: Pair, node: int) -> dict[FleetId, Window]:
    """Return the counts once Envoy has put every request's latency into its bucket."""
    async with asyncio.timeout(BOUND_S):
        while True:
            found = await pair.counted(node)
            if all(sum(window.latency) == window.requests for window in found.values()):
                return found
            await asyncio.sleep(0.05)


async def test_streams_and_websockets_survive_a_switch_of_shares(
    pair: Pair, backend: Starter
) -> None:
    old, new = await backend("old"), await backend("new")
    pair.serve((OLD, [old], []), (NEW, [], [new]))
    await pair.share({"web": {OLD.id: 10_000}})
    for node in (0, 1):
        stream, socket = await _opened(pair, node, "/stream"), await _upgraded(pair, node)
        for shares in (split(5_000), {"web": {NEW.id: 10_000}}):
            await pair.share(shares)
            socket[1].write(b"ping!")
            assert await _read(socket[0].readexactly(5)) == b"ping!"
        assert (await pair.ask(node, [Visit()]))[0].text == "new"
        old.hold.set()
        assert await _read(stream[0].readuntil(b"0\r\n\r\n")) == b"3\r\nold\r\n0\r\n\r\n"
        for _, writer in (stream, socket):
            writer.close()
        old.hold.clear()
        await pair.share({"web": {OLD.id: 10_000}})


Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _opened(pair: Pair, node: int, path: str, headers: str = "") -> Line:
    """Return a connection on which the answer's head and first piece have come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.worlds[node].public_port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    head = await _read(reader.readuntil(b"\r\n\r\n"))
    if b" 200 " in head:
        assert await _read(reader.readuntil(b"old\r\n")) == b"3\r\nold\r\n"
    return reader, writer


async def _upgraded(pair: Pair, node: int) -> Line:
    return await _opened(
        pair,
        node,
        "/",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"
        "Sec-WebSocket-Version: 13\r\n",
    )


async def _read(reading: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(BOUND_S):
        return await reading
