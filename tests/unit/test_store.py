"""The mirror: what a watch tells is what it shows, after any history."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core import keys
from aether_core.errors import IntegrityError
from aether_core.model import FleetId, NodeId, RouteTable, SliceRecord, encode
from aether_core.store import Batch, Change, Compare, Delete, Entry, Listing, Mirror, Put, put


def entry(key: str, value: object, revision: int) -> Entry:
    return Entry(key, encode(value), revision, revision)


def changes(revision: int, *pairs: tuple[str, object], is_snapshot: bool = False) -> Batch:
    """Return a batch that sets keys; a value of None deletes."""
    made = (
        Change(key, None if value is None else entry(key, value, revision)) for key, value in pairs
    )
    return Batch(tuple(made), revision, is_snapshot)


WEB, API = keys.slice_record("web"), keys.slice_record("api")
BLUEPRINT = keys.blueprint("shop")


def test_changes_are_applied_in_order() -> None:
    mirror = Mirror()
    mirror.apply(changes(3, (WEB, SliceRecord("web", "shop")), (API, SliceRecord("api", "shop"))))
    mirror.apply(changes(5, (WEB, SliceRecord("web", "shop", 2)), (API, None)))
    assert mirror.get(SliceRecord, WEB) == SliceRecord("web", "shop", 2)
    assert mirror.all(SliceRecord, keys.SLICES) == [SliceRecord("web", "shop", 2)]
    assert (mirror.get(SliceRecord, API), mirror.entry(API)) == (None, None)
    assert (mirror.revision, mirror.modified(WEB), mirror.modified(API)) == (5, 5, 0)


def test_a_snapshot_replaces_everything() -> None:
    mirror = Mirror()
    mirror.apply(changes(3, (WEB, SliceRecord("web", "a")), (BLUEPRINT, "old")))
    mirror.apply(changes(9, (API, SliceRecord("api", "a")), is_snapshot=True))
    assert [e.key for e in mirror.under(keys.ROOT + "desired/slices/")] == [API]
    assert mirror.entry(BLUEPRINT) is None
    assert mirror.newest(keys.BLUEPRINTS) == 9, "what the snapshot lacks was deleted by then"


def test_newest_knows_changes_and_deletions_of_a_family() -> None:
    mirror = Mirror()
    mirror.apply(changes(3, (WEB, SliceRecord("web", "a"))))
    mirror.apply(changes(4, (BLUEPRINT, "x")))
    mirror.apply(Batch((), 7))
    assert mirror.newest(keys.SLICES) == 3
    assert mirror.newest(keys.SLICES, keys.BLUEPRINTS) == 4
    assert mirror.newest(keys.NODES) == 0
    mirror.apply(changes(8, (WEB, None)))
    assert mirror.newest(keys.SLICES) == 8
    assert mirror.revision == 8


def test_prefixes_of_one_family_are_told_apart() -> None:
    mirror = Mirror()
    one, ten = NodeId("n1"), NodeId("n10")
    mirror.apply(changes(1, (keys.copy(one, "a"), 1), (keys.copy(ten, "b"), 1)))
    assert [e.key for e in mirror.under(keys.copies(one))] == [keys.copy(one, "a")]
    assert len(mirror.under(keys.COPIES)) == 2


def test_one_bad_record_does_not_hide_the_others() -> None:
    mirror = Mirror()
    mirror.apply(changes(1, (API, "no record"), (WEB, SliceRecord("web", "a"))))
    assert mirror.all(SliceRecord, keys.SLICES) == [SliceRecord("web", "a")]
    with pytest.raises(IntegrityError, match="stored SliceRecord is not readable"):
        mirror.get(SliceRecord, API)


def test_values_are_decoded_once_per_write() -> None:
    mirror = Mirror()
    mirror.apply(changes(1, (keys.ROUTES, RouteTable())))
    assert mirror.get(RouteTable, keys.ROUTES) is mirror.get(RouteTable, keys.ROUTES)
    mirror.apply(changes(2, (keys.ROUTES, RouteTable(shares={"web": {FleetId("web@1"): 10_000}}))))
    table = mirror.get(RouteTable, keys.ROUTES)
    assert table is not None
    assert table.shares == {"web": {"web@1": 10_000}}


FAMILIES = [keys.SLICES, keys.NODES, keys.COPIES + "n1/"]
some_key = st.builds(
    lambda family, name: family + name, st.sampled_from(FAMILIES), st.sampled_from("abc")
)
commit = st.dictionaries(some_key, st.none() | st.integers(), max_size=4)


@given(history=st.lists(st.tuples(commit, st.booleans()), max_size=12))
def test_any_history_gives_what_a_dictionary_gives(
    history: list[tuple[dict[str, int | None], bool]],
) -> None:
    mirror, truth = Mirror(), dict[str, Entry]()
    for revision, (writes, lists_again) in enumerate(history, start=1):
        for key, value in writes.items():
            if value is None:
                truth.pop(key, None)
            else:
                truth[key] = entry(key, value, revision)
        if lists_again:  # The watch was broken, what it missed comes as a snapshot.
            every = tuple(Change(key, found) for key, found in truth.items())
            mirror.apply(Batch(every, revision, is_snapshot=True))
        else:
            mirror.apply(changes(revision, *writes.items()))
        assert mirror.revision == revision
    for family in FAMILIES:
        expected = [truth[key] for key in sorted(truth) if key.startswith(family)]
        assert mirror.under(family) == expected
        assert mirror.newest(family) >= max([e.modified for e in expected], default=0)


async def test_reach_waits_for_a_revision() -> None:
    mirror = Mirror()
    await mirror.reach(0)
    reaching = asyncio.ensure_future(mirror.reach(5))
    for revision in (1, 4):
        mirror.apply(Batch((), revision))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reaching.done()
    mirror.apply(Batch((), 6))
    await asyncio.wait_for(reaching, 20)


async def test_whoever_watches_hears_of_every_batch_until_they_stop() -> None:
    mirror = Mirror()
    with mirror.watching() as one, mirror.watching() as two:
        mirror.apply(Batch((), 1))
        assert one.is_set()
        assert two.is_set()
        one.clear()
        assert two.is_set()
    mirror.apply(Batch((), 2))
    assert not one.is_set()


class ListedStore:
    """A store whose watch yields what it was given; nothing else is asked of it here."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = batches
        self.is_closed = False

    async def watch(self, prefix: str) -> AsyncGenerator[Batch, None]:
        try:
            for batch in self.batches:
                yield batch
            await asyncio.Event().wait()
        finally:
            self.is_closed = True

    async def get(self, key: str) -> Entry | None:
        raise AssertionError

    async def list(self, prefix: str) -> Listing:
        raise AssertionError

    async def revision(self) -> int:
        raise AssertionError

    async def commit(self, writes: object, *, compares: object = ()) -> int | None:
        raise AssertionError

    async def grant(self, ttl_s: int) -> int:
        raise AssertionError

    async def keep_alive(self, lease: int) -> bool:
        raise AssertionError

    async def revoke(self, lease: int) -> None:
        raise AssertionError


async def test_follow_takes_in_what_the_watch_yields_and_ends_it() -> None:
    store = ListedStore(changes(1, (WEB, 1), is_snapshot=True), changes(2, (API, 2)))
    mirror = Mirror()
    following = asyncio.ensure_future(mirror.follow(store, keys.ROOT))
    await asyncio.wait_for(mirror.reach(2), 20)
    assert [e.key for e in mirror.under(keys.SLICES)] == [API, WEB]
    following.cancel()
    await asyncio.wait([following])
    assert store.is_closed


def test_writes_never_show_what_they_write() -> None:
    write = put(WEB, {"token": "secret"})
    assert "secret" not in repr(write)
    assert (write, Delete(WEB).prefix) == (Put(WEB, b'{"token":"secret"}'), False)
    assert Compare(WEB, modified=0) != Compare(WEB, created=0)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        (keys.ROUTES, "/aether/desired/routes"),
        (keys.LEADER, "/aether/leader"),
        (WEB, "/aether/desired/slices"),
        (keys.copy(NodeId("n1"), "0"), "/aether/observed/copies"),
        (keys.COPIES, "/aether/observed/copies"),
    ],
)
def test_families(key: str, family: str) -> None:
    assert keys.family(key) == family


def test_no_two_kinds_of_document_share_a_place() -> None:
    prefixes = [
        value for name, value in vars(keys).items() if name.isupper() and value.endswith("/")
    ]
    outside = [keys.ROOT, keys.DESIRED, keys.OBSERVED]
    kinds = [prefix for prefix in prefixes if prefix not in outside]
    assert len({keys.family(kind) for kind in kinds}) == len(kinds)
    assert not keys.REQUESTS.startswith(keys.ROOT)
    assert not keys.AUDIT.startswith(keys.ROOT)
