"""A deployment on nodes that do as they are told: what `rollout.step` decides, written down."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from aether_core import keys
from aether_core.deployment import Ask, Asking, Deployment, Move, longest_s
from aether_core.drivers import SliceChange, Strategy
from aether_core.judge import Judgement, Verdict
from aether_core.model import (
    WHOLE_SHARE_BP,
    DeploymentState,
    Fleet,
    FleetId,
    InstanceId,
    InstanceState,
    InstanceStatus,
    NodeId,
    Route,
    RouteTable,
    decode,
)
from aether_core.plugins import load_driver
from aether_core.rollout import Sight, Step, step
from aether_core.store import Delete, Put
from tests.unit.conftest import NOW

NODE = NodeId("node-1")
DEADLINE_S = 60.0
NEVER_ENDING = 200  # Steps; no rollout of these tests takes as many.


def deployment(kind: str, *changes: SliceChange, **options: object) -> Deployment:
    """Return a deployment that was just asked for."""
    driver: Strategy = load_driver("aether.strategies", kind)()
    stages = driver.stages(changes, options)
    return Deployment(
        id="shop-2",
        blueprint="shop",
        version="2",
        strategy=kind,
        options=options,
        stages=stages,
        changes=changes,
        routes=tuple(Route("*", f"/{c.slice}", c.slice) for c in changes if c.new),
        document={"version": "2"},
        state=DeploymentState.PENDING,
        since=NOW,
        created_at=NOW,
        deadline_s=DEADLINE_S,
        deadline_at=NOW + timedelta(seconds=longest_s(stages, DEADLINE_S)),
        by="ada",
        routes_before=tuple(Route("*", f"/{c.slice}", c.slice) for c in changes if c.old),
        history=(Move(NOW, DeploymentState.PENDING, "asked for by ada"),),
    )


@dataclass
class Play:
    """One deployment and the world it changes, which a test may disturb."""

    deployment: Deployment
    at: datetime = NOW
    revision: int = 1
    fleets: dict[FleetId, Fleet] = field(default_factory=dict)
    statuses: dict[InstanceId, InstanceStatus] = field(default_factory=dict)
    status_revisions: dict[str, int] = field(default_factory=dict)
    routes: RouteTable = field(default_factory=RouteTable)
    routes_revision: int = 1
    confirmed: int = 1
    judgements: dict[str, Judgement] = field(default_factory=dict)
    broken: set[FleetId] = field(default_factory=set)  # Their instances end as soon as they start.
    stuck: set[FleetId] = field(default_factory=set)  # Their next instances start for ever.
    is_envoy_deaf: bool = False

    def __post_init__(self) -> None:
        """Let the old version run and have all traffic."""
        old = [change.old for change in self.deployment.changes if change.old]
        self.fleets = {fleet.id: fleet for fleet in old}
        shares = {fleet.spec.slice: {fleet.id: WHOLE_SHARE_BP} for fleet in old}
        self.routes = RouteTable(self.deployment.routes_before, shares)
        self.obey()

    @property
    def state(self) -> DeploymentState:
        return self.deployment.state

    @property
    def why(self) -> str:
        return self.deployment.history[-1].why

    def go(self) -> list[str]:
        """Go on until nothing is left to do but wait; return what was written, step by step."""
        written: list[str] = []
        while True:
            while (line := self.step()) is not None:
                written.append(line)
                assert len(written) < NEVER_ENDING, written
            if not self.obey():
                return written

    def go_to(self, state: DeploymentState, stage: int = 0) -> None:
        """Go on, step by step, until it is there."""
        for _ in range(NEVER_ENDING):
            if (self.state, self.deployment.stage) == (state, stage):
                return
            if self.step() is None and not self.obey():
                break
        raise AssertionError(f"it stays {self.state} at stage {self.deployment.stage}: {self.why}")

    def step(self) -> str | None:
        """Take one step; return its state and its writes, or None."""
        taken = step(self.deployment, self.sight())
        if taken is None:
            return None
        before, self.deployment = self.state, taken.deployment
        self.revision += 1
        words = [self.state if self.state != before else "..."]
        return " ".join([*words, *self._write(taken)])

    def obey(self) -> bool:
        """Let the nodes do what the store says; return whether anything changed."""
        before = (dict(self.statuses), self.confirmed)
        for fleet in self.fleets.values():
            for number in range(1, fleet.instances + 1):
                self._see(InstanceId(f"{fleet.id}-{number}"), fleet.id)
        wanted = {name: fleet.instances for name, fleet in self.fleets.items()}
        for status in [*self.statuses.values()]:
            if int(status.id.rpartition("-")[2]) > wanted.get(status.fleet, 0):
                del self.statuses[status.id]
        if not self.is_envoy_deaf:
            self.confirmed = self.revision
        return (self.statuses, self.confirmed) != before

    def wait(self, seconds: float) -> list[str]:
        """Let time pass, then go on."""
        self.at += timedelta(seconds=seconds)
        return self.go()

    def ask(self, what: Ask) -> None:
        self.deployment = replace(self.deployment, asking=Asking(what, "bob", self.at))

    def judge(self, **verdicts: Verdict) -> None:
        self.judgements = {
            name: Judgement(verdict, f"say {verdict.lower()}", (), 0)
            for name, verdict in verdicts.items()
        }

    def sight(self) -> Sight:
        return Sight(
            at=self.at,
            fleets=dict(self.fleets),
            statuses=tuple(self.statuses.values()),
            status_revisions=dict(self.status_revisions),
            routes=self.routes,
            routes_revision=self.routes_revision,
            confirmed={NODE: self.confirmed},
            judgements=dict(self.judgements),
        )

    def _see(self, name: InstanceId, fleet: FleetId) -> None:
        state, restarts, known = InstanceState.READY, 0, self.statuses.get(name)
        if fleet in self.broken:
            state, restarts = InstanceState.BACKOFF, 3
        elif fleet in self.stuck and (known is None or known.state != InstanceState.READY):
            state = InstanceState.STARTING
        if known is None or known.state != state:
            self.statuses[name] = InstanceStatus(
                name, NODE, fleet, state, self.at, restarts=restarts, why="it ended"
            )
            self.status_revisions[name] = self.revision

    def _write(self, taken: Step) -> Iterator[str]:
        """Carry the writes out, and yield each in short."""
        for write in taken.writes:
            key = write.key
            if isinstance(write, Delete):
                yield f"-{key.removeprefix(keys.DESIRED)}"
            elif key == keys.ROUTES:
                self.routes, self.routes_revision = decode(RouteTable, write.value), self.revision
                yield from (_shares(parts) for parts in self.routes.shares.values())
            elif key.startswith(keys.FLEETS):
                fleet = decode(Fleet, write.value)
                self.fleets[fleet.id] = fleet
                yield f"{fleet.id}={fleet.instances}"
            else:
                assert isinstance(write, Put)
                yield f"+{key.removeprefix(keys.DESIRED)}"


def _shares(parts: dict[FleetId, int]) -> str:
    return "|".join(f"{bp / 100:g}%{fleet}" for fleet, bp in sorted(parts.items()))
