"""What is there, whoever looks: machines, each with an Envoy and running instances."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from random import Random

from aether_core.evidence import Window
from aether_core.model import (
    Assignment,
    FleetId,
    InstanceId,
    InstanceSpec,
    InstanceState,
    InstanceStatus,
    NodeId,
    RouteTable,
)
from aether_core.traffic import add
from tests.cluster.simulation.virtual import VirtualClock

S = InstanceState
BACKOFF_LAST_S = 60.0


@dataclass(frozen=True)
class Temper:
    """How the instances of one version behave."""

    start_s: float = 1.0  # From its start until it is healthy, give or take half.
    is_ever_healthy: bool = True
    ends_after_s: float | None = None  # It ends so long after every start.
    error_rate: float = 0.0  # Of its answers.


@dataclass(frozen=True)
class View:
    """What an Envoy answers by, as of `revision`: shares, and the instances it would send to."""

    revision: int = 0
    routes: RouteTable = field(default_factory=RouteTable)
    endpoints: dict[FleetId, frozenset[InstanceId]] = field(default_factory=dict)


@dataclass
class Instance:
    """One process. `is_serving`: it answers requests now, whatever was said about it."""

    assignment: Assignment
    spec: InstanceSpec
    status: InstanceStatus
    is_serving: bool = False
    life: asyncio.Task[None] | None = None


@dataclass
class Machine:
    """One machine. `say` and `forget`: the agent hears of an instance's news and of its end;
    `hurt`: the referee hears that a fault took one."""

    id: NodeId
    chance: Random
    clock: VirtualClock
    temper_of: Callable[[InstanceSpec], Temper]
    hurt: Callable[[FleetId], None]
    flaky: Callable[[], float]  # The chance that an instance fails once after it became ready.
    is_up: bool = True
    view: View = View()
    is_loading: bool = False
    is_refusing: bool = False  # Its Envoy did not take what it was told last.
    counted: dict[FleetId, Window] = field(default_factory=dict)
    instances: dict[InstanceId, Instance] = field(default_factory=dict)
    say: Callable[[InstanceStatus], None] = lambda status: None
    forget: Callable[[InstanceId], None] = lambda name: None

    def start(self, assignment: Assignment, spec: InstanceSpec) -> None:
        status = InstanceStatus(
            assignment.id, self.id, assignment.fleet, S.FETCHING, self.clock.at(), port=1
        )
        instance = Instance(assignment, spec, status)
        self.instances[assignment.id] = instance
        instance.life = asyncio.create_task(self._live(instance))

    async def end(self, instance: Instance, idle: Callable[[], Awaitable[None]]) -> None:
        """Have no request come to it any more, then stop it; interrupted, it can begin again."""
        assert instance.life is not None, "it was started"
        instance.life.cancel()
        if instance.status.state in (S.READY, S.UNHEALTHY, S.DRAINING):
            self._become(instance, S.DRAINING)
            await idle()
        self._become(instance, S.STOPPING)
        instance.is_serving = False
        await asyncio.sleep(self.chance.uniform(0.0, 0.3))
        self.instances.pop(instance.assignment.id, None)
        self.forget(instance.assignment.id)

    def die(self) -> None:
        """Lose everything that runs."""
        self.is_up = False
        for instance in self.instances.values():
            assert instance.life is not None, "it was started"
            instance.life.cancel()
            instance.is_serving = False
            self.hurt(instance.assignment.fleet)
        self.instances = {}
        self.view, self.counted = View(), {}

    def count(self, fleet: FleetId, window: Window) -> None:
        self.counted[fleet] = add(self.counted.get(fleet, Window()), window)

    async def _live(self, instance: Instance) -> None:
        """Start; run or fail as the version's temper has it; start again, later each time."""
        restarts = 0
        while True:
            why = await self._run_once(instance, self.temper_of(instance.spec))
            restarts += 1
            instance.is_serving = False
            self._become(instance, S.BACKOFF, why=why, restarts=restarts)
            await asyncio.sleep(min(BACKOFF_LAST_S, 2.0 ** (restarts - 1)))

    async def _run_once(self, instance: Instance, temper: Temper) -> str:
        """Return why it ended."""
        chance = self.chance
        self._become(instance, S.FETCHING)
        await asyncio.sleep(chance.uniform(0.0, 0.2))
        self._become(instance, S.STARTING)
        if not temper.is_ever_healthy:
            await asyncio.sleep(instance.spec.health.start_s)
            return "not healthy in time"
        await asyncio.sleep(temper.start_s * chance.uniform(0.5, 1.5))
        instance.is_serving = True
        self._become(instance, S.READY)
        if temper.ends_after_s is not None:
            await asyncio.sleep(temper.ends_after_s * chance.uniform(0.5, 1.5))
            self.hurt(instance.assignment.fleet)
            return "ended with exit status 1"
        while chance.random() < self.flaky():
            await asyncio.sleep(chance.expovariate(1 / 10))
            self.hurt(instance.assignment.fleet)
            if chance.random() < 0.5:
                return "ended with exit status 139"
            instance.is_serving = False
            self._become(instance, S.UNHEALTHY)
            await asyncio.sleep(chance.uniform(0.5, 3.0))
            instance.is_serving = True
            self._become(instance, S.READY)
        await asyncio.Event().wait()
        raise AssertionError("an event nobody sets was set")

    def _become(self, instance: Instance, state: InstanceState, **changes: object) -> None:
        instance.status = replace(
            instance.status,
            state=state,
            since=self.clock.at(),
            **changes,  # type: ignore[arg-type]
        )
        self.say(instance.status)
