"""What a node says in the store, kept true whatever became of earlier writes.

A write whose answer was lost may arrive late, after newer ones. So each write here compares the
revision that it replaces, and what the store says is compared with the truth until both agree.
"""

import asyncio

from loguru import logger

from aether_core import keys
from aether_core.clock import Clock
from aether_core.election import changed_or
from aether_core.errors import Unavailable
from aether_core.model import InstanceId, InstanceStatus, NodeId, encode
from aether_core.store import Compare, Delete, Mirror, Put, Store

RETRY_S = 1.0
# So few at once that a transaction holds them.
BATCH = 100


class Statuses:
    """The statuses of one node's instances; nobody else writes them while the node lives."""

    def __init__(self, node: NodeId, store: Store, mirror: Mirror, clock: Clock) -> None:
        self._node, self._store, self._mirror, self._clock = node, store, mirror, clock
        self._true: dict[str, bytes | None] = {}  # By key; None: nothing said so far.
        self._changed = asyncio.Event()

    def keep(self, name: InstanceId) -> None:
        """Let stand what the store has of an instance that has said nothing yet."""
        self._true.setdefault(self._key(name), None)

    def say(self, status: InstanceStatus) -> None:
        self._true[self._key(status.id)] = encode(status)
        self._changed.set()

    def forget(self, name: InstanceId) -> None:
        """The instance is gone."""
        self._true.pop(self._key(name), None)
        self._changed.set()

    async def publish(self) -> None:
        """Bring the store to the truth, for ever."""
        await self._mirror.reach(1)
        with self._mirror.watching() as self._changed:
            while True:
                self._changed.clear()
                writes = self._difference()[:BATCH]
                if not writes:
                    await self._changed.wait()
                elif not await self._write(writes):
                    await changed_or(self._changed, RETRY_S)

    def _difference(self) -> list[Put | Delete]:
        prefix = keys.instance_statuses(self._node)
        stored = {entry.key: entry.value for entry in self._mirror.under(prefix)}
        gone = [Delete(key) for key in stored if key not in self._true]
        news = [
            Put(key, value)
            for key, value in self._true.items()
            if value is not None and stored.get(key) != value
        ]
        return [*gone, *news]

    async def _write(self, writes: list[Put | Delete]) -> bool:
        try:
            return await replace_own(self._store, self._mirror, writes)
        except Unavailable as error:
            logger.warning("statuses not written: {}", error)
            await self._clock.sleep(RETRY_S)
            return True

    def _key(self, name: InstanceId) -> str:
        return keys.instance_status(self._node, name)


async def replace_own(store: Store, mirror: Mirror, writes: list[Put | Delete]) -> bool:
    """Write keys that only this node writes; False: an earlier write is not in the mirror yet.

    Errors: as `Store.commit`; look at the mirror again and repeat what it does not show.
    """
    compares = [Compare(write.key, modified=mirror.modified(write.key)) for write in writes]
    revision = await store.commit(writes, compares=compares)
    if revision is not None:
        await mirror.reach(revision)
    return revision is not None
