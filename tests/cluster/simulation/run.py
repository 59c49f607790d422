"""Plays a seed: makes the cluster, deploys in waves, lets faults strike, waits for the end."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from aether_core import keys
from aether_core.api import deployments as api
from aether_core.api.auth import Caller
from aether_core.api.begin import Wish
from aether_core.deployment import Ask, Deployment
from aether_core.election import leader_of
from aether_core.errors import AetherError, Conflict, Unavailable
from aether_core.evidence import LATENCY_BOUNDS_MS, Window
from aether_core.model import (
    ArtifactRecord,
    ArtifactState,
    FleetId,
    InstanceSpec,
    NodeId,
    NodeRecord,
    NodeState,
    Ports,
    Role,
)
from aether_core.node import Node
from aether_core.store import put
from tests.cluster.simulation.agent import Agent, Manners
from tests.cluster.simulation.link import Link, Weather
from tests.cluster.simulation.machine import Machine, Temper
from tests.cluster.simulation.referee import Referee
from tests.cluster.simulation.scenario import GOOD, Mood, Scenario, Storm, Wave, scenario
from tests.cluster.simulation.store import MemoryStore
from tests.cluster.simulation.virtual import BEGIN, VirtualClock, VirtualLoop

CALLER = Caller("alice", Role.OPERATOR)
CALL_TIMEOUT_S = 10.0
#: After faults: late writes arrive, leases end, a leader is elected, lost nodes are counted.
CALM_S = 15.0
#: Faults go on for so long after a deployment is over.
AFTERMATH_S = 5.0
#: For instances to be replaced, crashed ones to come out of their backoff, Envoys to follow.
SETTLE_S = 150.0


@dataclass(frozen=True)
class Outcome:
    """What a seed showed. `states`: how its deployments ended."""

    seed: int
    violations: tuple[str, ...]
    trace: tuple[str, ...]
    states: tuple[str, ...]
    seconds: float  # Virtual.


def play(seed: int, plan: Scenario | None = None) -> Outcome:
    """Play the seed to its end or its first violation."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_play(seed, plan or scenario(seed)))


async def _play(seed: int, plan: Scenario) -> Outcome:
    cluster = Cluster(plan, Random(seed))  # noqa: S311
    states: list[str] = []
    async with asyncio.TaskGroup() as background:
        tasks = [background.create_task(cluster.requests())]
        tasks += [background.create_task(cluster.keep(node)) for node in cluster.machines]
        try:
            for number, wave in enumerate(plan.waves, start=1):
                states.append(await cluster.surf(wave, number))
                if cluster.referee.violations:
                    break
        except _Failed:
            pass
        for task in tasks:
            task.cancel()
        cluster.end()
    referee = cluster.referee
    now_s = asyncio.get_running_loop().time()
    return Outcome(seed, tuple(referee.violations), tuple(referee.trace), tuple(states), now_s)


class _Failed(Exception):
    """A violation was found: the rest of the play would show only its consequences."""


@dataclass
class _Seat:
    """A machine's agent, if one runs."""

    agent: Agent | None = None
    task: asyncio.Task[None] | None = None
    may_run: asyncio.Event = field(default_factory=asyncio.Event)


class Cluster:
    """Machines and their agents around one store."""

    def __init__(self, plan: Scenario, chance: Random) -> None:
        self.chance = chance
        self.weather = Weather()
        self.manners = Manners(Mood().judge())
        self.storm = Storm()
        self.tempers: dict[str, Temper] = {}
        self.requests_s = 0
        self.machines: dict[NodeId, Machine] = {}
        self.referee = Referee(self.machines)
        self.store = MemoryStore(self.referee.on_commit)
        self.seats: dict[NodeId, _Seat] = {}
        self._calls = 0
        for number in range(1, plan.nodes + 1):
            self._add(NodeId(f"node-{number}"))

    def _add(self, node: NodeId) -> None:
        clock = VirtualClock(self.chance.uniform(-1.0, 1.0))
        self.machines[node] = Machine(
            node, self.chance, clock, self._temper_of, self.referee.hurt, lambda: self.storm.flaky
        )
        self.seats[node] = _Seat()
        self.seats[node].may_run.set()
        record = NodeRecord(
            node, "10.0.0.1", Ports(0, 0, 0, 0, 0, 0), True, node, NodeState.JOINING, BEGIN
        )
        self.store.commit("bootstrap", [put(keys.node(node), record)], [])

    def _temper_of(self, spec: InstanceSpec) -> Temper:
        return self.tempers.get(spec.artifact, GOOD)

    # A deployment from its beginning to its end

    async def surf(self, wave: Wave, number: int) -> str:
        """Deploy, under faults until they stop; return the state it ended in."""
        self.tempers |= wave.tempers
        self.requests_s = wave.requests_s
        self.manners.judge = wave.mood.judge()
        self._store_artifacts(wave)
        deployment = await self._begin(wave, number)
        began_s = asyncio.get_running_loop().time()
        asking = [asyncio.create_task(self._ask_later(*ask, deployment)) for ask in wave.asks]
        try:
            await self._weather_storm(wave.storm, deployment)
            calm_s = asyncio.get_running_loop().time()
            state = await self._await_end(deployment, calm_s)
        finally:
            await _cancelled(asking)
        self.tempers = {}  # Whatever landed gets well: what is checked is how it was deployed.
        self.referee.note(f"{deployment} ended {state} after {calm_s - began_s:.0f} s of storm")
        await self._await_settled(deployment)
        return state

    def _store_artifacts(self, wave: Wave) -> None:
        for piece in (wave.document or {"slices": []})["slices"]:
            name, _, version = piece["artifact"].partition(":")
            record = ArtifactRecord(
                name, version, "pyz", 1, "0" * 64, ArtifactState.STORED, (), BEGIN, "alice"
            )
            if self.store.get(keys.artifact(name, version)) is None:
                self.store.commit("alice", [put(keys.artifact(name, version), record)], [])

    async def _begin(self, wave: Wave, number: int) -> str:
        if wave.document is not None:
            wish = Wish(blueprint=wave.document)
            answer = await self._call(lambda node, id: api.deploy(wish, id, CALLER, node))
        else:
            answer = await self._call(lambda node, id: api.undeploy("shop", id, CALLER, node))
        if isinstance(answer, AetherError):
            self.referee.blame(f"deployment {number} was not accepted: {answer}")
            raise _Failed
        strategy = wave.document["strategy"] if wave.document else "removal"
        self.referee.note(f"{answer['id']} begins: {strategy}")
        return str(answer["id"])

    async def _ask_later(self, delay_s: float, what: Ask, deployment: str) -> None:
        await asyncio.sleep(delay_s)
        wanted = api.Wanted(what=what, name=deployment)
        answer = await self._call(lambda node, id: api.ask(wanted, id, CALLER, node))
        said = answer.message if isinstance(answer, AetherError) else "accepted"
        self.referee.note(f"ask {what}: {said}")

    async def _call(
        self, call: Callable[[Node, str], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any] | AetherError:
        """Call some node's API as a client does: again, with the same id, when no answer came."""
        self._calls += 1
        id = f"request-{self._calls}"
        while True:
            agents = [seat.agent for seat in self.seats.values() if seat.agent]
            if agents:
                node = _api_node(self.chance.choice(agents))
                try:
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        return await call(node, id)
                except (Unavailable, Conflict, TimeoutError):
                    pass
                except AetherError as error:
                    return error
            await asyncio.sleep(0.5)

    async def _await_end(self, id: str, calm_s: float) -> str:
        """Wait until the deployment is over, but not longer than it promised."""
        while True:
            deployment = self._deployment(id)
            if deployment.is_over:
                return str(deployment.state)
            patience = timedelta(seconds=calm_s + 4 * deployment.deadline_s)
            promised = max(deployment.deadline_at, BEGIN + patience) + timedelta(seconds=CALM_S)
            self._fail_if(
                VirtualClock().at() > promised,
                f"'{id}' is {deployment.state} at stage {deployment.stage} after its deadline",
            )
            await asyncio.sleep(0.5)

    def _deployment(self, id: str) -> Deployment:
        deployment = self.referee.mirror.get(Deployment, keys.deployment(id))
        assert deployment is not None, "it was begun"
        return deployment

    async def _await_settled(self, id: str) -> None:
        until_s = asyncio.get_running_loop().time() + SETTLE_S
        while lacking := self.referee.unsettled():
            is_late = asyncio.get_running_loop().time() > until_s
            self._fail_if(is_late, f"after '{id}': {'; '.join(lacking)}")
            await asyncio.sleep(0.5)

    def _fail_if(self, is_wrong: bool, text: str) -> None:
        if is_wrong:
            self.referee.blame(text)
        if self.referee.violations:
            raise _Failed

    # Faults

    async def _weather_storm(self, storm: Storm, deployment: str) -> None:
        """Let the faults strike until the storm or the deployment is over, then end all of them."""
        self.storm = storm
        vars(self.weather).update(vars(storm.weather))
        self.manners.slow_apply, self.manners.rejected = storm.slow_apply, storm.rejected
        strikes = (
            (storm.agent_dies_each_s, self._kill_agent),
            (storm.machine_dies_each_s, self._kill_machine),
            (storm.pause_each_s, self._pause),
            (storm.cut_each_s, self._cut),
        )
        tasks = [asyncio.create_task(_each(p, s, self.chance)) for p, s in strikes if p]
        if storm.outage_s:
            tasks.append(asyncio.create_task(self._outage(storm.outage_s)))
        with suppress(TimeoutError):
            async with asyncio.timeout(storm.lasts_s):
                while not self._deployment(deployment).is_over:
                    await asyncio.sleep(0.5)
                await asyncio.sleep(AFTERMATH_S)
        await _cancelled(tasks)
        self.storm = Storm()
        vars(self.weather).update(vars(Weather()))
        self.manners.slow_apply = self.manners.rejected = 0.0
        for node, seat in self.seats.items():
            self.machines[node].is_up = True
            seat.may_run.set()
            if seat.agent is not None:
                seat.agent.link.is_cut = False
                seat.agent.link.running.set()

    async def _kill_agent(self) -> None:
        """Its Envoy and its instances go on."""
        node = self._victim()
        self._stop_agent(node)
        await asyncio.sleep(self.chance.choice((0.1, 1.0, 8.0)))
        self.seats[node].may_run.set()

    async def _kill_machine(self) -> None:
        node = self._victim()
        self._stop_agent(node)
        self.referee.note(f"the machine of {node} dies")
        self.machines[node].die()
        await asyncio.sleep(self.chance.choice((1.0, 5.0, 30.0)))
        self.machines[node].is_up = True
        self.seats[node].may_run.set()

    async def _pause(self) -> None:
        agent = self.seats[self._victim()].agent
        if agent is not None:
            self.referee.note(f"{agent.link.author} is paused")
            agent.link.running.clear()
            await asyncio.sleep(self.chance.choice((0.5, 4.0, 12.0)))
            agent.link.running.set()

    async def _cut(self) -> None:
        agent = self.seats[self._victim()].agent
        if agent is not None:
            self.referee.note(f"{agent.link.author} is cut off")
            agent.link.is_cut = True
            await asyncio.sleep(self.chance.choice((0.5, 4.0, 12.0)))
            agent.link.is_cut = False

    async def _outage(self, lasts_s: float) -> None:
        await asyncio.sleep(self.chance.uniform(0.0, 10.0))
        self.referee.note("the store is out of reach")
        self.weather.is_out = True
        await asyncio.sleep(lasts_s)
        self.weather.is_out = False

    def _victim(self) -> NodeId:
        leader = leader_of(self.referee.mirror)
        if leader is not None and self.chance.random() < 0.5:
            return leader
        return self.chance.choice(list(self.machines))

    def _stop_agent(self, node: NodeId) -> None:
        seat = self.seats[node]
        seat.may_run.clear()
        if seat.task is not None:
            self.referee.note(f"the agent of {node} dies")
            seat.task.cancel()

    # What goes on all the time

    async def keep(self, node: NodeId) -> None:
        """Run an agent on the machine, whenever one may."""
        seat, life = self.seats[node], 0
        while True:
            await seat.may_run.wait()
            life += 1
            author = f"{node}/{life}"
            on_commit = lambda: self._maybe_assassinate(node)  # noqa: E731
            link = Link(self.store, author, self.chance, self.weather, on_commit)
            machine = self.machines[node]
            seat.agent = Agent(machine, link, self.chance, self.manners, self.referee.blame)
            seat.task = asyncio.create_task(seat.agent.run())
            await asyncio.gather(seat.task, return_exceptions=True)
            seat.agent, seat.task = None, None

    def _maybe_assassinate(self, node: NodeId) -> None:
        is_leader = leader_of(self.referee.mirror) == node
        if is_leader and self.chance.random() < self.storm.assassin:
            self._stop_agent(node)
            asyncio.get_running_loop().call_later(
                self.chance.choice((0.1, 4.0)), self.seats[node].may_run.set
            )

    async def requests(self) -> None:
        """Send every Envoy requests for every slice, once a second; have the referee look."""
        while True:
            await asyncio.sleep(1.0)
            self.referee.check_requests()
            for machine in self.machines.values():
                for shares in machine.view.routes.shares.values():
                    for fleet, bp in shares.items():
                        self._send(machine, fleet, self.requests_s * bp / 10_000)

    def _send(self, machine: Machine, fleet: FleetId, expected: float) -> None:
        count = int(expected) + (self.chance.random() < expected % 1)
        if not count:
            return
        artifact = fleet.rpartition("-")[0].replace("@", ":")
        rate = self.tempers.get(artifact, GOOD).error_rate
        errors = sum(self.chance.random() < rate for _ in range(count)) if rate else 0
        if not self.referee.serving_for(machine, fleet):
            errors = count
        latency = (0,) * 10 + (count,) + (0,) * (len(LATENCY_BOUNDS_MS) - 10)
        machine.count(fleet, Window(count, errors, latency))

    def end(self) -> None:
        """Stop everything that still runs."""
        for seat in self.seats.values():
            if seat.task is not None:
                seat.task.cancel()
        for machine in self.machines.values():
            machine.die()


async def _each(
    period_s: float, strike: Callable[[], Coroutine[Any, Any, None]], chance: Random
) -> None:
    while True:
        await asyncio.sleep(chance.expovariate(1 / period_s))
        await strike()


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Hooks:
    """No plugin objects."""

    async def admit_deployment(self, plan: object) -> None:
        return None


def _api_node(agent: Agent) -> Node:
    """Return what the API of this agent's node works on."""
    nothing = cast(Any, None)
    return Node(
        boot=cast(Any, SimpleNamespace(node=agent.machine.id)),
        data_dir=nothing,
        clock=agent.clock,
        client=nothing,
        hooks=cast(Any, _Hooks()),
        blobs=nothing,
        ingress=nothing,
        mirror=agent.mirror,
        store=cast(Any, agent.link),
    )
