"""Plays a seed: deploys wave after wave, lets faults strike, waits until all is well again."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from aether_core import keys
from aether_core.api import deployments as api
from aether_core.api.auth import Caller
from aether_core.api.begin import Wish
from aether_core.deployment import Ask, Deployment
from aether_core.errors import AetherError, Conflict, Unavailable
from aether_core.model import ArtifactRecord, ArtifactState, Role
from aether_core.node import Node
from aether_core.store import put
from tests.cluster.simulation.agent import Agent
from tests.cluster.simulation.cluster import Cluster, cancelled
from tests.cluster.simulation.link import Weather
from tests.cluster.simulation.scenario import Scenario, Wave, scenario
from tests.cluster.simulation.virtual import BEGIN, VirtualClock, VirtualLoop

CALLER = Caller("alice", Role.OPERATOR)
CALL_TIMEOUT_S = 10.0
POLL_S = 0.5
#: For late writes to arrive, leases to end, a leader to be elected, lost nodes to be counted.
CALM_S = 15.0
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
    cluster = Cluster(plan.nodes, Random(seed))  # noqa: S311
    rollouts, states = Rollouts(cluster), []
    running = [asyncio.create_task(cluster.requests())]
    running += [asyncio.create_task(cluster.keep(node)) for node in cluster.machines]
    try:
        for number, wave in enumerate(plan.waves, start=1):
            states.append(await rollouts.surf(wave, number))
    except _Failed:
        pass
    finally:
        await cancelled(running)
        await cluster.end()
    referee = cluster.referee
    now_s = asyncio.get_running_loop().time()
    return Outcome(seed, tuple(referee.violations), tuple(referee.trace), tuple(states), now_s)


class _Failed(Exception):
    """A violation was found: the rest of the play would show only its consequences."""


class Rollouts:
    """Asks a cluster for deployments, as an operator does, and waits for what becomes of them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._referee = cluster.referee
        self._calls = 0

    async def surf(self, wave: Wave, number: int) -> str:
        """Deploy, under faults until they stop; return the state it ended in."""
        cluster = self._cluster
        cluster.tempers |= wave.tempers
        cluster.requests_s = wave.requests_s
        cluster.manners.judge = wave.mood.judge()
        cluster.weather = wave.storm.weather
        self._store_artifacts(wave)
        deployment = await self._begin(wave, number)
        asking = [asyncio.create_task(self._ask_later(*ask, deployment)) for ask in wave.asks]
        try:
            await cluster.endure(wave.storm, lambda: self._deployment(deployment).is_over)
            state = await self._await_end(deployment, asyncio.get_running_loop().time())
        finally:
            await cancelled(asking)
        is_lost = wave.must_land and state != "COMPLETED"
        self._fail_if(is_lost, f"'{deployment}' ended {state} although nothing was wrong")
        cluster.tempers = {}  # What landed gets well: how it was deployed is what counts.
        self._referee.note(f"{deployment} ended {state}")
        await self._await_settled(deployment)
        return state

    def _store_artifacts(self, wave: Wave) -> None:
        store = self._cluster.store
        for piece in wave.document["slices"] if wave.document else ():
            name, _, version = piece["artifact"].partition(":")
            record = ArtifactRecord(
                name, version, "pyz", 1, "0" * 64, ArtifactState.STORED, (), BEGIN, "alice"
            )
            key = keys.artifact(name, version)
            if store.get(key) is None:
                store.commit("alice", [put(key, record)], [])

    async def _begin(self, wave: Wave, number: int) -> str:
        document = wave.document

        def begin(node: Node, request: str) -> Awaitable[dict[str, Any]]:
            if document is None:
                return api.undeploy("shop", request, CALLER, node)
            return api.deploy(Wish(blueprint=document), request, CALLER, node)

        answer = await self._call(begin)
        if isinstance(answer, AetherError) and self._cluster.weather != Weather():
            self._cluster.weather = (
                Weather()
            )  # Where nothing seems to live, no is the right answer.
            await self._await_settled(f"refusal of shop-{number}")
            answer = await self._call(begin)
        is_wrong = isinstance(answer, AetherError) or answer["id"] != f"shop-{number}"
        self._fail_if(is_wrong, f"deployment {number} was not accepted: {answer}")
        strategy = document["strategy"] if document else "removal"
        self._referee.note(f"shop-{number} begins: {strategy}")
        return f"shop-{number}"

    async def _ask_later(self, delay_s: float, what: Ask, deployment: str) -> None:
        await asyncio.sleep(delay_s)
        wanted = api.Wanted(what=what, name=deployment)
        answer = await self._call(lambda node, request: api.ask(wanted, request, CALLER, node))
        said = answer.message if isinstance(answer, AetherError) else "accepted"
        self._referee.note(f"ask {what}: {said}")

    async def _call(
        self, call: Callable[[Node, str], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any] | AetherError:
        """Call some node's API as a client does: again, with the same id, when no answer came."""
        self._calls += 1
        request = f"request-{self._calls}"
        while True:
            agent = self._cluster.some_agent()
            if agent is not None:
                with suppress(Unavailable, Conflict, TimeoutError):
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        return await _answer(call, _api_node(agent), request)
            await asyncio.sleep(POLL_S)

    async def _await_end(self, name: str, calm_s: float) -> str:
        """Wait until the deployment is over, but not longer than it promised."""
        while True:
            deployment = self._deployment(name)
            if deployment.is_over:
                return str(deployment.state)
            patience = timedelta(seconds=calm_s + 4 * deployment.deadline_s)
            promised = max(deployment.deadline_at, BEGIN + patience) + timedelta(seconds=CALM_S)
            self._fail_if(
                VirtualClock().at() > promised,
                f"'{name}' is {deployment.state} at stage {deployment.stage} after its deadline",
            )
            await asyncio.sleep(POLL_S)

    def _deployment(self, name: str) -> Deployment:
        deployment = self._referee.mirror.get(Deployment, keys.deployment(name))
        assert deployment is not None, "it was begun"
        return deployment

    async def _await_settled(self, name: str) -> None:
        until_s = asyncio.get_running_loop().time() + SETTLE_S
        while lacking := self._referee.unsettled():
            is_late = asyncio.get_running_loop().time() > until_s
            self._fail_if(is_late, f"after '{name}': {'; '.join(lacking)}")
            await asyncio.sleep(POLL_S)

    def _fail_if(self, is_wrong: bool, text: str) -> None:
        if is_wrong:
            self._referee.blame(text)
        if self._referee.violations:
            raise _Failed


async def _answer(
    call: Callable[[Node, str], Awaitable[dict[str, Any]]], node: Node, request: str
) -> dict[str, Any] | AetherError:
    """Return what the API answers, also when it is no. Errors: when a client asks again."""
    try:
        return await call(node, request)
    except (Unavailable, Conflict):
        raise
    except AetherError as error:
        return error


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
