"""The store's promises, against three real etcd members that are killed and paused."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable

import pytest

from aether_core.clock import SystemClock
from aether_core.election import Presence, Term, campaign
from aether_core.errors import NoQuorum, OutcomeUnknown, Unavailable
from aether_core.model import NodeId
from aether_core.store import Batch, Compare, Delete, Mirror, Put
from aether_core.store_etcd import EtcdStore
from tests.cluster.conftest import Member, wait_for_quorum

BOUND_S = 30.0


@pytest.fixture
async def store(members: list[Member]) -> AsyncIterator[EtcdStore]:
    store = make_store(members)
    yield store
    await store.close()


def make_store(members: list[Member]) -> EtcdStore:
    return EtcdStore([m.endpoint for m in members], ssl.create_default_context(), SystemClock())


async def next_batch(batches: AsyncIterator[Batch]) -> Batch:
    async with asyncio.timeout(BOUND_S):
        return await anext(batches)


async def test_a_transaction_is_all_or_nothing(store: EtcdStore) -> None:
    first = await store.commit([Put("/a", b"1"), Put("/b", b"2")])
    assert first is not None
    refused = await store.commit(
        [Put("/a", b"x"), Delete("/b")], compares=[Compare("/a", modified=first + 99)]
    )
    assert refused is None
    listing = await store.list("/")
    assert [(e.key, e.value) for e in listing.entries] == [("/a", b"1"), ("/b", b"2")]
    assert await store.commit([Delete("/", prefix=True)], compares=[Compare("/a", modified=first)])
    assert (await store.list("/")).entries == ()


async def test_eight_writers_lose_no_increment(store: EtcdStore) -> None:
    await store.commit([Put("/count", b"0")])

    async def increment() -> None:
        for _ in range(25):
            while True:
                entry = await store.get("/count")
                assert entry is not None
                value = str(int(entry.value) + 1).encode()
                compare = Compare("/count", modified=entry.modified)
                if await store.commit([Put("/count", value)], compares=[compare]) is not None:
                    break

    await asyncio.gather(*(increment() for _ in range(8)))
    final = await store.get("/count")
    assert final is not None
    assert final.value == b"200"


async def test_a_listing_is_paged_without_loss(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aether_core.store_etcd.PAGE_ENTRIES", 7)
    await store.commit([Put(f"/p/{i:03}", b"") for i in range(50)])
    listing = await store.list("/p/")
    assert [entry.key for entry in listing.entries] == [f"/p/{i:03}" for i in range(50)]


async def test_a_watch_goes_on_without_a_gap_when_its_member_dies(
    members: list[Member], store: EtcdStore
) -> None:
    batches = store.watch("/w/")
    assert (await next_batch(batches)).is_snapshot
    other = make_store(members[1:])
    await other.commit([Put("/w/1", b"")])
    assert (await next_batch(batches)).changes[0].key == "/w/1"
    members[0].kill()
    for i in range(2, 6):
        await _commit_surely(other, Put(f"/w/{i}", b""))
    seen: list[str] = []
    while len(seen) < 4:
        batch = await next_batch(batches)
        assert not batch.is_snapshot
        seen += [change.key for change in batch.changes]
    assert seen == ["/w/2", "/w/3", "/w/4", "/w/5"]
    await batches.aclose()
    await other.close()


async def test_a_watch_lists_again_after_a_compaction(
    members: list[Member], store: EtcdStore
) -> None:
    mirror = Mirror()
    only_first = EtcdStore([members[0].endpoint], ssl.create_default_context(), SystemClock())
    await store.commit([Put("/aether/w/old", b"1")])
    following = asyncio.ensure_future(mirror.follow(only_first, "/aether/"))
    await _until(mirror, lambda: mirror.entry("/aether/w/old") is not None)
    members[0].kill()
    other = make_store(members[1:])
    await _commit_surely(other, Delete("/aether/w/old"))
    await _commit_surely(other, Put("/aether/w/new", b"2"))
    await other.compact(await other.revision())
    members[0].start()
    await wait_for_quorum(members)
    await _until(mirror, lambda: mirror.entry("/aether/w/new") is not None)
    assert mirror.entry("/aether/w/old") is None
    await _end(following)
    await only_first.close()
    await other.close()


async def test_without_a_majority_reads_fail_and_writes_are_never_called_done(
    members: list[Member], store: EtcdStore
) -> None:
    await store.commit([Put("/a", b"1")])
    members[1].kill()
    members[2].kill()
    with pytest.raises(NoQuorum):
        await store.get("/a")
    with pytest.raises(Unavailable):
        await store.commit([Put("/a", b"2")])


async def test_a_watch_on_a_member_that_is_cut_off_ends_and_finds_another(
    members: list[Member],
) -> None:
    store = make_store(members)
    batches = store.watch("/c/")
    await next_batch(batches)
    members[0].pause()  # Silent, not closed: only the progress check can notice.
    other = make_store(members[1:])
    await _commit_surely(other, Put("/c/1", b""))
    assert (await next_batch(batches)).changes[0].key == "/c/1"
    await batches.aclose()
    await store.close()
    await other.close()


async def test_a_lost_answer_is_an_unknown_outcome(
    members: list[Member], store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aether_core.store_etcd.WRITE_TIMEOUT_S", 1.0)
    await store.commit([Put("/a", b"1")])
    for member in members:
        member.pause()
    with pytest.raises(OutcomeUnknown):
        await store.commit([Put("/a", b"2")])
    for member in members:
        member.resume()


async def test_a_deposed_leader_writes_nothing(members: list[Member], store: EtcdStore) -> None:
    mirror, clock = Mirror(), SystemClock()
    terms: asyncio.Queue[tuple[str, Term]] = asyncio.Queue()

    async def announce(lease: int) -> None:
        pass

    async def stand(name: str) -> None:
        presence = Presence(store, clock)
        async with asyncio.TaskGroup() as group:
            group.create_task(presence.hold(announce))

            async def lead(term: Term) -> None:
                await terms.put((name, term))
                await asyncio.Event().wait()

            group.create_task(campaign(store, mirror, presence, NodeId(name), lead))

    following = asyncio.ensure_future(mirror.follow(store, "/aether/"))
    first = asyncio.ensure_future(stand("one"))
    async with asyncio.timeout(BOUND_S):
        name, old_term = await terms.get()
    assert name == "one"
    assert await store.commit([Put("/aether/x", b"1")], compares=[old_term.fence])
    await _end(first)  # Nobody keeps its lease alive: it runs out, like a paused process's.
    second = asyncio.ensure_future(stand("two"))
    async with asyncio.timeout(BOUND_S):
        name, new_term = await terms.get()
    assert name == "two"
    assert await store.commit([Put("/aether/x", b"2")], compares=[old_term.fence]) is None
    assert await store.commit([Put("/aether/x", b"3")], compares=[new_term.fence])
    await _end(following)
    await _end(second)


async def _commit_surely(store: EtcdStore, write: Put | Delete) -> None:
    """Write although a member just died: repeating these writes is harmless."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                assert await store.commit([write]) is not None
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _until(mirror: Mirror, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        with mirror.watching() as changed:
            while not holds():
                await changed.wait()
                changed.clear()
