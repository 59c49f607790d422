"""The leader's loop: look at the mirror, decide, write with the term's fence, look again.

It holds nothing that the store does not: a new leader continues where the last one stopped.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from loguru import logger

from aether_core import keys
from aether_core.clock import Clock
from aether_core.deployment import Deployment
from aether_core.election import Term, changed_or
from aether_core.errors import Unavailable
from aether_core.evidence import Evidence
from aether_core.judge import Judgement, Limits
from aether_core.landscape import live_nodes, seats
from aether_core.lifecycle import admit
from aether_core.model import (
    Assignment,
    Fleet,
    IngressStatus,
    InstanceStatus,
    NodeId,
    NodeRecord,
    NodeStatus,
    RouteTable,
    SliceRecord,
)
from aether_core.placement import Placing, place
from aether_core.rollout import Sight, Step, limits_of, step
from aether_core.store import MAX_OPERATIONS, Compare, Delete, Mirror, Put, Store, put
from aether_core.traffic import TrafficStatus, Trial, observe

# The longest time between two looks when nothing changes: deadlines pass without a change.
TICK_S = 1.0
# What was counted is judged this often; an automatic rollback begins within this time.
EVALUATE_S = 1.0
# A node whose lease is gone this long is lost: its instances are placed elsewhere.
LOST_AFTER_S = 3.0
# Placements written at once; the leader's own key comes with them.
BATCH = MAX_OPERATIONS - 20


@dataclass
class Leader:
    """What a leading node needs to decide; made anew for each term."""

    store: Store
    mirror: Mirror
    clock: Clock
    term: Term
    judge: Callable[[Evidence, Limits], Awaitable[Judgement]]
    on_moved: Callable[[Deployment, Deployment], None]
    _absent_since_s: dict[NodeId, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Decide until cancelled."""
        with self.mirror.watching() as changed:
            while True:
                changed.clear()
                try:
                    has_written = await self.turn()
                except Unavailable as error:
                    logger.warning("the leader's turn was cut short: {}", error)
                    await self.clock.sleep(TICK_S)
                    continue
                if not has_written:
                    await changed_or(changed, TICK_S)

    async def turn(self) -> bool:
        """Decide once; return whether anything was written."""
        has_written = await self._admit()
        for deployment in self._active():
            await self._evaluate(deployment)
            taken = step(deployment, self.sight(deployment))
            if taken is not None:
                has_written |= await self._take(deployment, taken)
        return await self._place() or has_written

    async def _admit(self) -> bool:
        """Put joining nodes on duty."""
        mirror, has_written = self.mirror, False
        for record in mirror.all(NodeRecord, keys.NODES):
            status = mirror.get(NodeStatus, keys.node_status(record.id))
            ingress = mirror.get(IngressStatus, keys.ingress_status(record.id))
            admitted = admit(record, status, ingress, at=self.clock.at())
            if admitted is not None:
                key = keys.node(record.id)
                compare = Compare(key, modified=mirror.modified(key))
                has_written |= await self._commit([put(key, admitted)], [compare]) is not None
        return has_written

    def _active(self) -> list[Deployment]:
        ids = self.mirror.all(str, keys.ACTIVE)
        found = [self.mirror.get(Deployment, keys.deployment(name)) for name in ids]
        return [deployment for deployment in found if deployment is not None]

    async def _evaluate(self, deployment: Deployment) -> None:
        """Take in what was counted since the last evaluation, and have it judged."""
        mirror, key, at = self.mirror, keys.trial(deployment.id), self.clock.at()
        trial = mirror.get(Trial, key)
        is_due = trial is None or at - trial.at >= timedelta(seconds=EVALUATE_S)
        if not deployment.trials or not is_due:
            return
        live = live_nodes(mirror)
        counted = [s for s in mirror.all(TrafficStatus, keys.TRAFFIC) if s.node in live]
        observed, limits = observe(trial, deployment, counted, at=at), limits_of(deployment)
        judged = {name: await self.judge(seen, limits) for name, seen in observed.evidence.items()}
        observed = replace(observed, judgements=judged)
        compare = Compare(key, modified=mirror.modified(key))
        await self._commit([put(key, observed)], [compare])

    def sight(self, deployment: Deployment) -> Sight:
        """Return what the deciders may know."""
        mirror = self.mirror
        trial = mirror.get(Trial, keys.trial(deployment.id))
        is_current = trial is not None and trial.stage == deployment.stage
        statuses = mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)
        ingress = {s.node: s.revision for s in mirror.all(IngressStatus, keys.INGRESS_STATUSES)}
        routes = mirror.entry(keys.ROUTES)
        return Sight(
            at=self.clock.at(),
            fleets={fleet.id: fleet for fleet in mirror.all(Fleet, keys.FLEETS)},
            statuses=tuple(statuses),
            status_revisions={
                status.id: mirror.modified(keys.instance_status(status.node, status.id))
                for status in statuses
            },
            routes=mirror.get(RouteTable, keys.ROUTES) or RouteTable(),
            routes_revision=routes.modified if routes else 0,
            confirmed={node: ingress.get(node, 0) for node in sorted(live_nodes(self.mirror))},
            judgements=trial.judgements if trial is not None and is_current else {},
        )

    async def _take(self, before: Deployment, taken: Step) -> bool:
        """Write a step, unless the deployment or a document it changes moved meanwhile."""
        after = taken.deployment
        writes = [put(keys.deployment(after.id), after), *taken.writes]
        touched = [write.key for write in writes]
        compares = [Compare(key, modified=self.mirror.modified(key)) for key in touched]
        revision = await self._commit(writes, compares)
        if revision is None:
            return False
        if after.state != before.state:
            why = after.history[-1].why
            logger.info("deployment '{}': {} -> {}: {}", after.id, before.state, after.state, why)
            self.on_moved(before, after)
        return True

    async def _place(self) -> bool:
        """Bring the assignments to what the fleets want; forget what lost nodes said."""
        lost = self._lost()
        assignments = self.mirror.all(Assignment, keys.INSTANCES)
        records = {r.name: r for r in self.mirror.all(SliceRecord, keys.SLICES)}
        fleets = self.mirror.all(Fleet, keys.FLEETS)
        placing = place(
            fleets,
            assignments,
            seats(self.mirror, lost=frozenset(lost)),
            {name: record.next_ordinal for name, record in records.items()},
        )
        writes = [*_placing_writes(placing, records), *self._forget(lost), *self._sweep(fleets)]
        # A node that came back meanwhile keeps what it runs, and what it said.
        compares = [Compare(keys.node_status(node), modified=0) for node in sorted(lost)]
        for start in range(0, len(writes), BATCH):
            if await self._commit(writes[start : start + BATCH], compares) is None:
                return False
        return bool(writes)

    def _lost(self) -> set[NodeId]:
        """Return the nodes that have been absent for longer than the grace period."""
        now_s, live = self.clock.now_s(), live_nodes(self.mirror)
        absent = {r.id for r in self.mirror.all(NodeRecord, keys.NODES)} - live
        self._absent_since_s = {n: self._absent_since_s.get(n, now_s) for n in absent}
        return {n for n, since_s in self._absent_since_s.items() if now_s - since_s >= LOST_AFTER_S}

    def _sweep(self, fleets: list[Fleet]) -> list[Delete]:
        """Return the removal of fleets that want no instance, have none and get no traffic."""
        table = self.mirror.get(RouteTable, keys.ROUTES) or RouteTable()
        used = {fleet for shares in table.shares.values() for fleet in shares}
        used |= {s.fleet for s in self.mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)}
        used |= {a.fleet for a in self.mirror.all(Assignment, keys.INSTANCES)}
        idle = [fleet.id for fleet in fleets if not fleet.instances and fleet.id not in used]
        return [Delete(keys.fleet(name)) for name in idle]

    def _forget(self, lost: set[NodeId]) -> list[Delete]:
        seen = {s.node for s in self.mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)}
        return [Delete(keys.instance_statuses(node), prefix=True) for node in sorted(lost & seen)]

    async def _commit(self, writes: list[Put | Delete], compares: list[Compare]) -> int | None:
        """Write in this term, and next after the last write that the mirror shows.

        One whose answer was lost may be carried out late: by then its place in the row is taken.
        """
        office = self.mirror.entry(keys.LEADER)
        if office is None:
            return None
        row = Compare(keys.LEADER, modified=office.modified)
        revision = await self.store.commit(
            [*writes, Put(keys.LEADER, office.value, office.lease)],
            compares=[self.term.fence, row, *compares],
        )
        if revision is not None:
            await self.mirror.reach(revision)
        return revision


def _placing_writes(placing: Placing, records: dict[str, SliceRecord]) -> list[Put | Delete]:
    gone = [Delete(keys.assignment(a.node, a.id)) for a in placing.remove]
    new = [put(keys.assignment(a.node, a.id), a) for a in placing.add]
    counted = [
        put(keys.slice_record(name), replace(record, next_ordinal=placing.next_ordinals[name]))
        for name, record in records.items()
        if placing.next_ordinals.get(name, record.next_ordinal) != record.next_ordinal
    ]
    return [*counted, *gone, *new]
