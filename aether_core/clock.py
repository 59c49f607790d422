"""Time as a parameter: everything that waits or stamps takes a Clock."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Units: `now_s` is monotonic seconds; `at` is an aware UTC time."""

    def now_s(self) -> float: ...

    def at(self) -> datetime: ...

    async def sleep(self, delay_s: float) -> None: ...


class SystemClock:
    """The machine's own clocks."""

    def now_s(self) -> float:
        return time.monotonic()

    def at(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251  The one place where the wall clock is read.

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
