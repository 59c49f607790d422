"""One node's agent: the product's election, leader and mirror; simulated doors to the machine."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from aether_core import keys
from aether_core.agent import INGRESS_FAMILIES, RELOAD_S, TRAFFIC_S
from aether_core.deployment import Deployment
from aether_core.election import Presence, Term, campaign, changed_or
from aether_core.errors import AetherError
from aether_core.evidence import Evidence
from aether_core.judge import Judgement, Limits
from aether_core.leader import Leader
from aether_core.model import (
    Assignment,
    Fleet,
    FleetId,
    IngressStatus,
    InstanceId,
    InstanceState,
    InstanceStatus,
    NodeStatus,
    Resources,
    RouteTable,
)
from aether_core.reconcile import difference
from aether_core.statuses import Statuses, replace_own
from aether_core.store import Mirror, put
from aether_core.traffic import TrafficStatus
from tests.cluster.simulation.link import Link
from tests.cluster.simulation.machine import Instance, Machine, View

RETRY_S = 0.5
APPLY_S, SLOW_APPLY_S = (0.005, 0.1), (2.0, 25.0)
SETTLE_S = 0.05
CAPACITY = Resources(cpu=64, memory_bytes=2**36)


@dataclass
class Manners:
    """How the Envoys behave now, and what the judge says; changed when faults begin and stop."""

    judge: Callable[[Evidence, Limits], Awaitable[Judgement]]
    slow_apply: float = 0.0  # The chance that an Envoy takes seconds to load what it is told.
    rejected: float = 0.0  # The chance that it refuses.


class Agent:
    """Runs until cancelled; what it leaves on its machine the next one takes over."""

    def __init__(
        self,
        machine: Machine,
        link: Link,
        chance: Random,
        manners: Manners,
        on_defect: Callable[[str], None],
    ) -> None:
        self.machine, self.link, self.clock = machine, link, machine.clock
        self.mirror = Mirror()
        self.presence = Presence(link, self.clock)
        self._chance, self._manners, self._on_defect = chance, manners, on_defect
        self._statuses = Statuses(machine.id, link, self.mirror, self.clock)
        self._draining: set[InstanceId] = set()

    async def run(self) -> None:
        machine = self.machine
        machine.say, machine.forget = self._statuses.say, self._statuses.forget
        for instance in machine.instances.values():
            self._statuses.say(instance.status)
        async with asyncio.TaskGroup() as self._loops:
            for loop in (
                lambda: self.mirror.follow(self.link, keys.ROOT),
                lambda: self.presence.hold(self._announce),
                self._stand,
                self._follow_routes,
                self._reconcile,
                self._statuses.publish,
                self._publish_traffic,
            ):
                self._loops.create_task(self._supervise(loop))

    async def _supervise(self, loop: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await loop()
            except AetherError:
                pass  # As in the product: it begins again.
            except Exception as error:  # A defect: the seed has failed.
                self._on_defect(f"{self.link.author} raised {type(error).__name__}: {error}")
                raise
            await self.clock.sleep(RETRY_S)

    async def _announce(self, lease: int) -> None:
        machine = self.machine
        status = NodeStatus(machine.id, CAPACITY, 1, "0", self.clock.at())
        write = put(keys.node_status(machine.id), status, lease=lease)
        with self.mirror.watching() as changed:
            while not await replace_own(self.link, self.mirror, [write]):
                await changed_or(changed, RETRY_S)

    async def _stand(self) -> None:
        async def lead(term: Term) -> None:
            link, mirror = self.link, self.mirror
            await Leader(link, mirror, self.clock, term, self._manners.judge, _nobody).run()

        await campaign(self.link, self.mirror, self.presence, self.machine.id, lead)

    async def _follow_routes(self) -> None:
        """As the product's agent: load what the mirror has, then say up to where it is loaded."""
        mirror, loaded = self.mirror, -1
        key, status = keys.ingress_status(self.machine.id), None
        with mirror.watching() as changed:
            while True:
                changed.clear()
                newest = mirror.newest(*INGRESS_FAMILIES)
                if newest != loaded and mirror.revision:
                    status = await self._load_routes(newest)
                    loaded = -1 if status.error else newest
                if status is not None and mirror.get(IngressStatus, key) != status:
                    await replace_own(self.link, mirror, [put(key, status)])
                await changed_or(changed, RELOAD_S if loaded == -1 else None)

    async def _load_routes(self, revision: int) -> IngressStatus:
        machine, chance, manners = self.machine, self._chance, self._manners
        view, is_slow = self._view(revision), chance.random() < manners.slow_apply
        machine.is_loading = True
        await self.clock.sleep(chance.uniform(*(SLOW_APPLY_S if is_slow else APPLY_S)))
        machine.is_loading, machine.is_refusing = False, chance.random() < manners.rejected
        if machine.is_refusing:
            return IngressStatus(machine.id, 0, "Envoy refuses")
        machine.view = view
        return IngressStatus(machine.id, revision)

    def _view(self, revision: int) -> View:
        mirror = self.mirror
        assigned = {assignment.id for assignment in mirror.all(Assignment, keys.INSTANCES)}
        ready: dict[FleetId, set[InstanceId]] = {}
        for status in mirror.all(InstanceStatus, keys.INSTANCE_STATUSES):
            if status.state == InstanceState.READY and status.id in assigned:
                ready.setdefault(status.fleet, set()).add(status.id)
        routes = mirror.get(RouteTable, keys.ROUTES) or RouteTable()
        return View(revision, routes, {fleet: frozenset(ids) for fleet, ids in ready.items()})

    async def _reconcile(self) -> None:
        mirror, machine, done = self.mirror, self.machine, -1
        with mirror.watching() as changed:
            while True:
                changed.clear()
                newest = mirror.newest(keys.INSTANCES, keys.FLEETS)
                if newest != done and mirror.revision:
                    done = newest
                    desired = mirror.all(Assignment, keys.assignments(machine.id))
                    to_do = difference(desired, machine.instances)
                    for assignment in to_do.start:
                        fleet = mirror.get(Fleet, keys.fleet(assignment.fleet))
                        if fleet is not None:
                            machine.start(assignment, fleet.spec)
                    for name in to_do.drain:
                        if name not in self._draining:
                            self._draining.add(name)
                            self._loops.create_task(self._drain(machine.instances[name]))
                await changed.wait()

    async def _drain(self, instance: Instance) -> None:
        async def idle() -> None:
            try:
                async with asyncio.timeout(instance.spec.drain_s):
                    await self._wait_idle()
            except TimeoutError:
                pass

        await self.machine.end(instance, idle)
        self._draining.discard(instance.assignment.id)

    async def _wait_idle(self) -> None:
        """Return when every live node's Envoy has turned away."""
        mirror = self.mirror
        turned_away = mirror.newest(keys.INSTANCES)
        with mirror.watching() as changed:
            while not all(s.revision >= turned_away for s in self._live_ingresses()):
                await changed.wait()
                changed.clear()
        await self.clock.sleep(SETTLE_S)

    def _live_ingresses(self) -> list[IngressStatus]:
        live = {status.id for status in self.mirror.all(NodeStatus, keys.NODE_STATUSES)}
        statuses = self.mirror.all(IngressStatus, keys.INGRESS_STATUSES)
        return [status for status in statuses if status.node in live]

    async def _publish_traffic(self) -> None:
        machine, said = self.machine, None
        while True:
            await self.clock.sleep(TRAFFIC_S)
            if not self.mirror.under(keys.ACTIVE):
                continue
            counted = dict(machine.counted)
            if counted != said:
                status = TrafficStatus(machine.id, self.clock.at(), counted)
                write = put(keys.traffic(machine.id), status)
                if await replace_own(self.link, self.mirror, [write]):
                    said = counted


def _nobody(before: Deployment, after: Deployment) -> None:
    """Nobody listens to a simulated leader's moves."""
