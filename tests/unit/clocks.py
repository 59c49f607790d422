"""A clock that a test moves."""

import asyncio
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class HandClock:
    """Stands still until `advance`; whoever sleeps wakes when their time has come.

    `naps`: how long every sleep begun so far wanted to be, in order.
    """

    def __init__(self) -> None:
        self._now_s = 1_000_000.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []
        self.naps: list[float] = []

    def now_s(self) -> float:
        return self._now_s

    def at(self) -> datetime:
        return START + timedelta(seconds=self._now_s - 1_000_000.0)

    async def sleep(self, delay_s: float) -> None:
        self.naps.append(delay_s)
        if delay_s > 0:
            woken = asyncio.Event()
            self._sleepers.append((self._now_s + delay_s, woken))
            await woken.wait()

    def advance(self, delay_s: float) -> None:
        """Let `delay_s` pass at once."""
        self._now_s += delay_s
        due = [sleeper for sleeper in self._sleepers if sleeper[0] <= self._now_s]
        self._sleepers = [sleeper for sleeper in self._sleepers if sleeper not in due]
        for _, woken in due:
            woken.set()
