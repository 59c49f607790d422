"""Artifacts: names, holders, and bytes that are whole, verified and on disk or not there."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.artifacts import COPIES, choose_holders
from aether_core.blobs import Blobs, digest_of, name_and_version
from aether_core.errors import ConfigError, IntegrityError
from aether_core.model import NodeId

SUFFIXES = (".jar", ".whl", ".pyz", ".tar.gz")
BYTES = bytes(range(256)) * 40
SHA = hashlib.sha256(BYTES).hexdigest()


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("my-service-1.0.0.jar", ("my-service", "1.0.0", ".jar")),
        ("web-2.tar.gz", ("web", "2", ".tar.gz")),
        ("web-1.0.0-SNAPSHOT.jar", ("web", "1.0.0-SNAPSHOT", ".jar")),
        ("web-1.0.0-rc.1+build.5.pyz", ("web", "1.0.0-rc.1+build.5", ".pyz")),
        ("v2-api-3.1.jar", ("v2-api", "3.1", ".jar")),
        ("s3-sync-0.1.tar.gz", ("s3-sync", "0.1", ".tar.gz")),
        ("shop_web-1.0.0-py3-none-any.whl", ("shop-web", "1.0.0", ".whl")),
        ("numpy-2.1.0-1-cp311-cp311-linux_x86_64.whl", ("numpy", "2.1.0", ".whl")),
    ],
)
def test_file_names_say_name_and_version(file_name: str, expected: tuple[str, str, str]) -> None:
    assert name_and_version(file_name, SUFFIXES) == expected


@pytest.mark.parametrize(
    ("file_name", "message"),
    [
        ("web.jar", "'web.jar' does not say its name and version"),
        ("web-latest.pyz", "'web-latest.pyz' does not say its name and version"),
        ("-1.0.jar", "'-1.0.jar' does not say its name and version"),
        ("web.whl", "'web.whl' does not say its name and version"),
        ("web-1.0.zip", "'web-1.0.zip' is of no known kind: .jar, .pyz, .tar.gz, .whl"),
        ("web-1.0.gz", "'web-1.0.gz' is of no known kind: .jar, .pyz, .tar.gz, .whl"),
        ("", "'' is of no known kind: .jar, .pyz, .tar.gz, .whl"),
    ],
)
def test_file_names_that_do_not(file_name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        name_and_version(file_name, SUFFIXES)
    assert caught.value.message == message


nodes = st.lists(st.integers(1, 12).map(lambda n: NodeId(f"n{n}")), unique=True, max_size=9)


@given(held=nodes, live=nodes, digest=st.text(alphabet="0123456789abcdef", min_size=4, max_size=8))
def test_holders(held: list[NodeId], live: list[NodeId], digest: str) -> None:
    holders = choose_holders(held, live, digest)
    assert set(holders) <= set(live), "a dead node holds nothing"
    assert len(set(holders)) == len(holders)
    kept = set(held) & set(live)
    assert kept <= set(holders), "a copy that is there is not given up"
    assert len(holders) == max(min(COPIES, len(live)), len(kept))
    assert holders == choose_holders(held, reversed(live), digest), "repeatable"
    assert set(choose_holders(holders, live, digest)) == set(holders), "settled"


def test_holders_are_spread_evenly() -> None:
    live = [NodeId(f"n{n}") for n in range(6)]
    counts = dict.fromkeys(live, 0)
    for number in range(300):
        for node in choose_holders((), live, hashlib.sha256(bytes([number % 256])).hexdigest()):
            counts[node] += 1
    assert min(counts.values()) > 100, counts


async def chunks(content: bytes, *, fail: bool = False) -> AsyncIterator[bytes]:
    for begin in range(0, len(content), 1000):
        yield content[begin : begin + 1000]
        await asyncio.sleep(0)
    if fail:
        raise ConnectionResetError


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


async def test_what_came_whole_is_there(blobs: Blobs, tmp_path: Path) -> None:
    assert (blobs.has(SHA), blobs.received(SHA), blobs.all()) == (False, 0, [])
    await blobs.receive(SHA, len(BYTES), 0, chunks(BYTES))
    assert blobs.path(SHA).read_bytes() == BYTES
    assert (blobs.has(SHA), blobs.received(SHA), blobs.all()) == (True, len(BYTES), [SHA])
    assert digest_of(blobs.path(SHA)) == SHA
    assert list((tmp_path / "partial").iterdir()) == []
    assert Blobs(tmp_path).has(SHA)
    blobs.remove(SHA)
    blobs.remove(SHA)
    assert not blobs.has(SHA)


@pytest.mark.parametrize("fail", [False, True])
async def test_what_stopped_early_goes_on_where_it_stopped(
    blobs: Blobs, tmp_path: Path, fail: bool
) -> None:
    expected = ConnectionResetError if fail else IntegrityError
    with pytest.raises(expected):
        await blobs.receive(SHA, len(BYTES), 0, chunks(BYTES[:4321], fail=fail))
    assert not blobs.has(SHA)
    again = Blobs(tmp_path)  # The node began anew meanwhile.
    assert again.received(SHA) == 4321
    await again.receive(SHA, len(BYTES), 4321, chunks(BYTES[4321:]))
    assert again.path(SHA).read_bytes() == BYTES


@pytest.mark.parametrize("offset", [0, 4320, 4322, len(BYTES)])
async def test_going_on_at_the_wrong_place_is_refused_and_changes_nothing(
    blobs: Blobs, offset: int
) -> None:
    with pytest.raises(IntegrityError, match="cut short: 4321 of 10240 bytes came"):
        await blobs.receive(SHA, len(BYTES), 0, chunks(BYTES[:4321]))
    message = f"continues at byte {offset}, but 4321 are here"
    with pytest.raises(IntegrityError, match=message):
        await blobs.receive(SHA, len(BYTES), offset, chunks(BYTES[offset:]))
    assert blobs.received(SHA) == 4321


@pytest.mark.parametrize(
    "content",
    [b"x" + BYTES[1:], BYTES[:-1] + b"x", bytes(len(BYTES)), BYTES + b"x"],
    ids=["first byte", "last byte", "zeros", "one more"],
)
async def test_damaged_bytes_are_thrown_away(blobs: Blobs, content: bytes) -> None:
    with pytest.raises(IntegrityError, match="damaged") as caught:
        await blobs.receive(SHA, len(BYTES), 0, chunks(content))
    assert caught.value.fields == {
        "expected": SHA,
        "actual": hashlib.sha256(content).hexdigest(),
    }
    assert (blobs.has(SHA), blobs.received(SHA)) == (False, 0)
    await blobs.receive(SHA, len(BYTES), 0, chunks(BYTES))
    assert blobs.has(SHA)


async def test_the_right_bytes_of_another_length_are_refused(blobs: Blobs) -> None:
    with pytest.raises(IntegrityError):
        await blobs.receive(SHA, len(BYTES) - 1, 0, chunks(BYTES))
    assert not blobs.has(SHA)


async def test_a_stream_without_end_does_not_fill_the_disk(blobs: Blobs) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10**6:
            sent += 1000
            yield bytes(1000)

    with pytest.raises(IntegrityError, match="damaged"):
        await blobs.receive(SHA, len(BYTES), 0, endless())
    assert sent <= len(BYTES) + 1000


async def test_many_senders_of_the_same_bytes(blobs: Blobs) -> None:
    results = await asyncio.gather(
        *(blobs.receive(SHA, len(BYTES), 0, chunks(BYTES)) for _ in range(5))
    )
    assert results == [None] * 5
    assert blobs.path(SHA).read_bytes() == BYTES


async def test_a_sender_that_breaks_off_does_not_harm_the_next(blobs: Blobs) -> None:
    first, second = await asyncio.gather(
        blobs.receive(SHA, len(BYTES), 0, chunks(BYTES[:2000], fail=True)),
        blobs.receive(SHA, len(BYTES), 0, chunks(BYTES)),
        return_exceptions=True,
    )
    assert isinstance(first, ConnectionResetError)
    assert isinstance(second, IntegrityError), "it began at 0, but 2000 bytes were there by then"
    await blobs.receive(SHA, len(BYTES), blobs.received(SHA), chunks(BYTES[2000:]))
    assert blobs.path(SHA).read_bytes() == BYTES


async def test_different_bytes_do_not_wait_for_each_other(blobs: Blobs) -> None:
    gate = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await gate.wait()
        yield BYTES

    other = b"other"
    first = asyncio.ensure_future(blobs.receive(SHA, len(BYTES), 0, slow()))
    await blobs.receive(hashlib.sha256(other).hexdigest(), len(other), 0, chunks(other))
    gate.set()
    await first
    assert len(blobs.all()) == 2
