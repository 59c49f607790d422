"""A node's way to the store: it takes time, loses answers, is cut, or waits with a paused node."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from aether_core.errors import AetherError, NoQuorum, OutcomeUnknown
from aether_core.store import Batch, Compare, Delete, Entry, Listing, Put
from tests.cluster.simulation.store import MemoryStore

T = TypeVar("T")

TRAVEL_S = (0.0005, 0.004)
SLOW_S = (0.05, 1.5)
TIMEOUT_S = 2.0
POLL_S = 0.1
# A write whose answer was lost may still reach the log this much later.
LATE_S = (0.01, 4.0)


@dataclass(frozen=True)
class Weather:
    """How bad the network is, as chances per message."""

    slow: float = 0.0
    lost: float = 0.0  # The request never arrives.
    late: float = 0.0  # It arrives long after its sender gave up.
    unheard: float = 0.0  # The answer never arrives.
    relisted: float = 0.0  # A watch breaks, and history is gone when it comes back.
    is_out: bool = False  # Nobody reaches the store.


class Link:
    """The `Store` of one agent, until it is closed."""

    def __init__(
        self,
        store: MemoryStore,
        author: str,
        chance: Random,
        weather: Callable[[], Weather],
        on_commit: Callable[[], None],
    ) -> None:
        self.author = author
        self.is_cut = False
        self.running = asyncio.Event()  # Cleared: the process is paused.
        self.running.set()
        self._store = store
        self._chance = chance
        self._weather = weather
        self._on_commit = on_commit

    async def get(self, key: str) -> Entry | None:
        return await self._ask(lambda: self._store.get(key))

    async def list(self, prefix: str) -> Listing:
        return await self._ask(lambda: self._store.listing(prefix))

    async def revision(self) -> int:
        return await self._ask(self._store.revision)

    async def commit(
        self, writes: Iterable[Put | Delete], *, compares: Iterable[Compare] = ()
    ) -> int | None:
        kept = tuple(writes), tuple(compares)
        return await self._tell(lambda: self._store.commit(self.author, *kept))

    async def grant(self, ttl_s: int) -> int:
        return await self._tell(lambda: self._store.grant(ttl_s))

    async def keep_alive(self, lease: int) -> bool:
        return await self._ask(lambda: self._store.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        await self._tell(lambda: self._store.revoke(lease))

    async def watch(self, prefix: str) -> AsyncGenerator[Batch, None]:
        while True:
            async with aclosing(self._store.watch(prefix)) as batches:
                async for batch in batches:
                    await self._travel()
                    while self._is_away():
                        await asyncio.sleep(POLL_S)
                    yield batch
                    if self._chance.random() < self._weather().relisted:
                        break

    async def _ask(self, read: Callable[[], T]) -> T:
        await self._travel()
        await self._refuse_cut()
        if self._chance.random() < self._weather().lost + self._weather().unheard:
            await asyncio.sleep(TIMEOUT_S)
            raise NoQuorum("no answer")
        answer = read()
        await self._travel()
        return answer

    async def _tell(self, write: Callable[[], T]) -> T:
        await self._travel()
        await self._refuse_cut()
        fate, weather = self._chance.random(), self._weather()
        if fate < weather.lost:
            await asyncio.sleep(TIMEOUT_S)
            raise OutcomeUnknown("no answer, and nothing was written")
        if fate < weather.lost + weather.late:
            delay_s = self._chance.uniform(*LATE_S)
            asyncio.get_running_loop().call_later(delay_s, _try, write)
            await asyncio.sleep(TIMEOUT_S)
            raise OutcomeUnknown("no answer, and it will be written later")
        answer = write()
        self._on_commit()
        if fate < weather.lost + weather.late + weather.unheard:
            await asyncio.sleep(TIMEOUT_S)
            raise OutcomeUnknown("no answer, but it was written")
        await self._travel()
        return answer

    async def _travel(self) -> None:
        is_slow = self._chance.random() < self._weather().slow
        await asyncio.sleep(self._chance.uniform(*(SLOW_S if is_slow else TRAVEL_S)))
        await self.running.wait()

    def _is_away(self) -> bool:
        return self.is_cut or self._weather().is_out

    async def _refuse_cut(self) -> None:
        if self._is_away():
            await asyncio.sleep(TIMEOUT_S)
            raise NoQuorum("cut off from the store")


def _try(write: Callable[[], object]) -> None:
    """Carry out a late write: nobody hears what came of it."""
    with suppress(AetherError):
        write()
