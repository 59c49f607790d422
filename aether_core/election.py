"""A node's presence and the election of a leader: one lease, one key, fenced by its revision.

The key LEADER belongs to whoever created it; it vanishes with the creator's lease. Its create
revision is the term: every write of the leader compares it in the same transaction, so one that
was deposed without noticing (paused, cut off) writes nothing.
Source: etcd issues 11456 and 11457, on why holding a lock alone protects nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loguru import logger

from aether_core import keys
from aether_core.clock import Clock
from aether_core.errors import Unavailable
from aether_core.model import NodeId
from aether_core.store import Compare, Mirror, Put, Store

# Missed for this long, a node counts as gone and a leader as deposed.
LEASE_S = 3
KEEP_ALIVE_S = 1.0
RETRY_S = 0.5


class Presence:
    """This node's lease. `lease` is 0 while it holds none."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.lease = 0
        self._store = store
        self._clock = clock

    async def hold(self, announce: Callable[[int], Awaitable[None]]) -> None:
        """Keep a lease for ever; `announce` writes what belongs to a new one."""
        while True:
            try:
                self.lease = await self._store.grant(LEASE_S)
                await announce(self.lease)
                await self._keep_alive()
                logger.warning("the node's lease ran out: others saw it as gone")
            except Unavailable as error:
                logger.warning("no lease: {}", error)
                await self._clock.sleep(RETRY_S)
            self.lease = 0

    async def _keep_alive(self) -> None:
        last_s = self._clock.now_s()
        while self._clock.now_s() - last_s < LEASE_S:
            await self._clock.sleep(KEEP_ALIVE_S)
            asked_s = self._clock.now_s()
            try:
                if not await self._store.keep_alive(self.lease):
                    return
                last_s = asked_s
            except Unavailable as error:
                logger.warning("lease not extended: {}", error)


@dataclass(frozen=True)
class Term:
    """One time in office. `fence` goes into every transaction of the leader."""

    revision: int

    @property
    def fence(self) -> Compare:
        return Compare(keys.LEADER, created=self.revision)


def leader_of(mirror: Mirror) -> NodeId | None:
    """Return the node that leads, as last seen."""
    entry = mirror.entry(keys.LEADER)
    return NodeId(entry.value.decode()) if entry else None


async def campaign(
    store: Store,
    mirror: Mirror,
    presence: Presence,
    node: NodeId,
    lead: Callable[[Term], Awaitable[None]],
) -> None:
    """Stand for election for ever; run `lead` while this node is the leader, cancel it after."""
    with mirror.watching() as changed:
        while True:
            entry = mirror.entry(keys.LEADER)
            if entry is None and presence.lease:
                await _claim(store, mirror, presence.lease, node)
            elif entry is not None and presence.lease and entry.lease == presence.lease:
                await _serve(Term(entry.created), mirror, lead)
                continue
            await changed_or(changed, RETRY_S)


async def _claim(store: Store, mirror: Mirror, lease: int, node: NodeId) -> None:
    try:
        won = await store.commit(
            [Put(keys.LEADER, node.encode(), lease)], compares=[Compare(keys.LEADER, created=0)]
        )
    except Unavailable as error:
        # Also when the outcome is unknown: the mirror will show who the leader is.
        logger.warning("not elected: {}", error)
        return
    if won is not None:
        await mirror.reach(won)


async def _serve(term: Term, mirror: Mirror, lead: Callable[[Term], Awaitable[None]]) -> None:
    logger.info("this node leads, term {}", term.revision)
    work = asyncio.ensure_future(lead(term))
    deposed = asyncio.ensure_future(_deposed(term, mirror))
    try:
        await asyncio.wait({work, deposed}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()  # A defect in the leader ends this loop too; the agent restarts it.
    finally:
        for task in (work, deposed):
            task.cancel()
        await asyncio.gather(work, deposed, return_exceptions=True)
    logger.warning("this node no longer leads, term {}", term.revision)


async def _deposed(term: Term, mirror: Mirror) -> None:
    with mirror.watching() as changed:
        while (entry := mirror.entry(keys.LEADER)) and entry.created == term.revision:
            await changed.wait()
            changed.clear()


async def changed_or(changed: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for the next change, but not longer than `timeout_s`; None: however long."""
    try:
        async with asyncio.timeout(timeout_s):
            await changed.wait()
    except TimeoutError:
        pass
    changed.clear()
