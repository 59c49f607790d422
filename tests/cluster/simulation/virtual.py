"""Time that costs nothing: an event loop that jumps to the next moment when something is due."""

import asyncio
import selectors
from datetime import UTC, datetime, timedelta
from typing import Any

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`asyncio.Runner(loop_factory=VirtualLoop)`: sleeps and timeouts take no time at all."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now_s


class _Jump(selectors.DefaultSelector):
    """Instead of waiting for input, which there is none of, moves the loop's time on."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody else: nothing will ever happen"
        self._loop.now_s += max(0.0, timeout)
        return []


class VirtualClock:
    """A node's Clock: the loop's time, and a wall clock that is wrong by `skew_s`."""

    def __init__(self, skew_s: float = 0.0) -> None:
        self._skew_s = skew_s

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def at(self) -> datetime:
        return BEGIN + timedelta(seconds=self.now_s() + self._skew_s)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
