"""A lease that lets keys die by themselves: for what is kept for a while and then of no use."""

from collections.abc import Sequence
from dataclasses import replace

from aether_core.clock import Clock
from aether_core.errors import NotFound
from aether_core.store import Compare, Delete, Put, Store


class ExpiringLease:
    """Keys put with it live between half of `ttl_s` and all of it."""

    def __init__(self, store: Store, clock: Clock, ttl_s: int) -> None:
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s
        self._lease = 0
        self._granted_s = 0.0

    async def commit(
        self,
        leased: Put,
        writes: Sequence[Put | Delete] = (),
        *,
        compares: Sequence[Compare] = (),
    ) -> int | None:
        """Commit `writes` and, to die with the lease, `leased`. Errors: as `Store.commit`."""
        try:
            return await self._commit(leased, writes, compares)
        except NotFound:
            # Gone without our noticing, such as while this machine slept: its clock stood still.
            self._lease = 0
            return await self._commit(leased, writes, compares)

    async def _commit(
        self, leased: Put, writes: Sequence[Put | Delete], compares: Sequence[Compare]
    ) -> int | None:
        lease = await self._current()
        return await self._store.commit([*writes, replace(leased, lease=lease)], compares=compares)

    async def _current(self) -> int:
        """Return a lease with at least half its time left."""
        now_s = self._clock.now_s()
        if not self._lease or now_s - self._granted_s > self._ttl_s / 2:
            self._lease = await self._store.grant(self._ttl_s)
            self._granted_s = now_s
        return self._lease
