"""A thread for somebody else's code: what hangs in it hangs alone.

Python cannot end a thread. What does not come back is left behind: nobody waits for it any longer,
it hears of nothing new, and it does not keep the process from ending. Code that never gives the
interpreter back (a loop in C) still stops everything; only a process of its own would prevent it.
"""

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from threading import Lock, Thread
from typing import Any

from aether_core.errors import PluginError

WAITING_CALLS = 1000  # More than that wait only for a worker that hangs.


class Worker:
    """Calls functions one at a time, in order, on a daemon thread that begins with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.Queue[tuple[Future[Any], Callable[[], Any]]] = queue.Queue(WAITING_CALLS)
        self._thread: Thread | None = None
        self._beginning = Lock()

    def call(self, function: Callable[[], Any], *, limit_s: float) -> Any:
        """Return what the function returns. Errors: its own; PluginError when it takes too long."""
        future = self.submit(function)
        wait([future], timeout=limit_s)
        return self._answer(future, limit_s)

    async def call_aside(self, function: Callable[[], Any], *, limit_s: float) -> Any:
        """Do the same while the event loop goes on."""
        future = asyncio.wrap_future(self.submit(function))
        await asyncio.wait([future], timeout=limit_s)
        return self._answer(future, limit_s)

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Have the function called, some time. Errors: PluginError when too many calls wait."""
        future: Future[Any] = Future()
        try:
            self._calls.put_nowait((future, function))
        except queue.Full:
            raise PluginError(f"it hangs: {WAITING_CALLS} calls wait for it") from None
        with self._beginning:
            if self._thread is None:
                self._thread = Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return future

    def _answer(self, future: Future[Any] | asyncio.Future[Any], limit_s: float) -> Any:
        if not future.done():
            future.cancel()  # What has not begun never will; what has begun is not waited for.
            raise PluginError(f"it did not come back within {limit_s:g} s")
        return future.result()

    def _work(self) -> None:
        while True:
            future, function = self._calls.get()
            if future.set_running_or_notify_cancel():
                _settle(future, function)


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        settle = partial(future.set_result, function())
    except Exception as error:  # noqa: BLE001  It belongs to who waits for the answer.
        settle = partial(future.set_exception, error)
    except BaseException as error:  # noqa: BLE001  sys.exit() in a plugin must not end the process.
        settle = partial(future.set_exception, PluginError(f"it raised {error!r}"))
    settle()
