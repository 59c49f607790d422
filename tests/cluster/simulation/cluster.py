"""Machines and their agents around one store: what runs all the time, and what fails."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from aether_core import keys
from aether_core.election import leader_of
from aether_core.evidence import LATENCY_BOUNDS_MS, Window
from aether_core.model import FleetId, InstanceSpec, NodeId, NodeRecord, NodeState, Ports
from aether_core.store import put
from tests.cluster.simulation.agent import Agent, Manners
from tests.cluster.simulation.link import Link, Weather
from tests.cluster.simulation.machine import Machine, Temper
from tests.cluster.simulation.referee import Referee
from tests.cluster.simulation.scenario import GOOD, Mood, Storm
from tests.cluster.simulation.store import MemoryStore
from tests.cluster.simulation.virtual import BEGIN, VirtualClock

#: Faults go on for so long after a deployment is over.
AFTERMATH_S = 5.0
POLL_S = 0.5


@dataclass
class Seat:
    """A machine's agent, if one runs."""

    agent: Agent | None = None
    task: asyncio.Task[None] | None = None
    may_run: asyncio.Event = field(default_factory=asyncio.Event)


class Cluster:
    """`referee` sees all that happens in it."""

    def __init__(self, nodes: int, chance: Random) -> None:
        self.chance = chance
        self.weather = Weather()
        self.manners = Manners(Mood().judge())
        self.storm = Storm()
        self.tempers: dict[str, Temper] = {}
        self.requests_s = 0
        self.machines: dict[NodeId, Machine] = {}
        self.referee = Referee(self.machines)
        self.store = MemoryStore(self.referee.on_commit)
        self.seats: dict[NodeId, Seat] = {}
        for number in range(1, nodes + 1):
            self._add(NodeId(f"node-{number}"))

    def _add(self, node: NodeId) -> None:
        clock = VirtualClock(self.chance.uniform(-1.0, 1.0))
        self.machines[node] = Machine(
            node, self.chance, clock, self._temper_of, self.referee.hurt, lambda: self.storm.flaky
        )
        self.seats[node] = Seat()
        self.seats[node].may_run.set()
        record = NodeRecord(
            node, "10.0.0.1", Ports(0, 0, 0, 0, 0, 0), True, node, NodeState.JOINING, BEGIN
        )
        self.store.commit("bootstrap", [put(keys.node(node), record)], [])

    def _temper_of(self, spec: InstanceSpec) -> Temper:
        return self.tempers.get(spec.artifact, GOOD)

    # What goes on all the time

    async def keep(self, node: NodeId) -> None:
        """Run an agent on the machine, whenever one may."""
        seat, life = self.seats[node], 0
        while True:
            await seat.may_run.wait()
            life += 1
            author = f"{node}/{life}"
            on_commit = lambda: self._maybe_assassinate(node)  # noqa: E731
            link = Link(self.store, author, self.chance, lambda: self.weather, on_commit)
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

    def some_agent(self) -> Agent | None:
        """Return one that runs, if any does."""
        agents = [seat.agent for seat in self.seats.values() if seat.agent]
        return self.chance.choice(agents) if agents else None

    async def end(self) -> None:
        """Stop everything that still runs."""
        await cancelled([seat.task for seat in self.seats.values() if seat.task is not None])
        for machine in self.machines.values():
            machine.die()

    # Faults

    async def endure(self, storm: Storm, is_over: Callable[[], bool]) -> None:
        """Let the faults strike until the storm or what it strikes is over, then end them all."""
        self.storm = storm
        self.weather = storm.weather
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
                while not is_over():
                    await asyncio.sleep(POLL_S)
                await asyncio.sleep(AFTERMATH_S)
        await cancelled(tasks)
        self.storm = Storm()
        self.weather = Weather()
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
        calm = self.weather
        self.weather = replace(calm, is_out=True)
        await asyncio.sleep(lasts_s)
        self.weather = calm

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


async def _each(
    period_s: float, strike: Callable[[], Coroutine[Any, Any, None]], chance: Random
) -> None:
    while True:
        await asyncio.sleep(chance.expovariate(1 / period_s))
        await strike()


async def cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """End the tasks, whatever they do."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
