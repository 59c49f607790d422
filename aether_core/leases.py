"""A lease that lets keys die by themselves: for what is kept for a while and then of no use."""

from aether_core.clock import Clock
from aether_core.store import Store


class ExpiringLease:
    """Keys put with `current()` live between half of `ttl_s` and all of it."""

    def __init__(self, store: Store, clock: Clock, ttl_s: int) -> None:
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s
        self._lease = 0
        self._granted_s = 0.0

    async def current(self) -> int:
        """Return a lease with at least half its time left. Errors: as `Store.grant`."""
        now_s = self._clock.now_s()
        if not self._lease or now_s - self._granted_s > self._ttl_s / 2:
            self._lease = await self._store.grant(self._ttl_s)
            self._granted_s = now_s
        return self._lease
