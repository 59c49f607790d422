"""A deployment: its record, and the one table of legal moves between its states."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from aether_core.drivers import SliceChange, Stage
from aether_core.errors import IllegalMove
from aether_core.model import DeploymentState, InstanceStatus, Route

S = DeploymentState

#: State: the states it may move to. Drawn in docs/design.md.
LEGAL_MOVES: dict[DeploymentState, tuple[DeploymentState, ...]] = {
    S.PENDING: (S.DEPLOYING, S.ROUTING, S.FAILED),
    S.DEPLOYING: (S.DEPLOYED, S.ROLLING_BACK, S.FAILED),
    S.DEPLOYED: (S.ROUTING, S.ROLLING_BACK, S.FAILED),
    S.ROUTING: (S.PROMOTING, S.DRAINING, S.ROLLING_BACK),
    S.PROMOTING: (S.DEPLOYING, S.DRAINING, S.ROLLING_BACK),
    S.DRAINING: (S.COMPLETED,),
    S.COMPLETED: (),
    S.ROLLING_BACK: (S.ROLLED_BACK, S.FAILED),
    S.ROLLED_BACK: (),
    S.FAILED: (),
}

TERMINAL = frozenset(state for state, moves in LEGAL_MOVES.items() if not moves)


@dataclass(frozen=True)
class Move:
    """One line of a deployment's history."""

    at: datetime
    state: DeploymentState
    why: str
    stage: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)  # What was decided on, in numbers.


class Ask(StrEnum):
    """What somebody asked of a deployment that goes on; the leader carries it out."""

    PROMOTE = "promote"  # Go on to the next stage now.
    COMPLETE = "complete"  # Go to the end: the new version stays.
    ROLLBACK = "rollback"  # Go back: the old version stays.


@dataclass(frozen=True)
class Asking:
    """An ask and who asked."""

    what: Ask
    by: str
    at: datetime


#: In which states each ask makes sense.
ASKABLE: dict[Ask, tuple[DeploymentState, ...]] = {
    Ask.PROMOTE: (S.PROMOTING,),
    Ask.COMPLETE: (S.PROMOTING,),
    Ask.ROLLBACK: (S.PENDING, S.DEPLOYING, S.DEPLOYED, S.ROUTING, S.PROMOTING),
}


@dataclass(frozen=True)
class Deployment:
    """desired/deployments/<id>: one rollout of a blueprint, or its removal (`document` None)."""

    id: str  # "shop-3": the blueprint's third deployment.
    blueprint: str
    version: str
    strategy: str
    options: dict[str, Any]
    stages: tuple[Stage, ...]
    changes: tuple[SliceChange, ...]
    routes: tuple[Route, ...]  # The blueprint's routes once it is done.
    document: dict[str, Any] | None  # The blueprint as it was sent.
    state: DeploymentState
    since: datetime
    created_at: datetime
    deadline_s: float  # For instances to become healthy, for Envoys to confirm, at each stage.
    deadline_at: datetime  # Over by then, whatever happens.
    by: str
    routes_before: tuple[Route, ...] = ()  # Of the same slices: where a rollback leads to.
    stage: int = 0
    history: tuple[Move, ...] = ()
    failures: tuple[InstanceStatus, ...] = ()  # What kept it from being healthy.
    asking: Asking | None = None

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL

    @property
    def turn_back_at(self) -> datetime:
        """From when on it must not wait any more, if it is to be over by `deadline_at`."""
        return self.deadline_at - timedelta(seconds=DEADLINES_TO_END * self.deadline_s)

    @property
    def is_last_stage(self) -> bool:
        return self.stage >= len(self.stages) - 1

    @property
    def now(self) -> Stage:
        """The current stage; a removal, which has none, is one step to nothing."""
        return self.stages[self.stage] if self.stages else REMOVAL

    @property
    def trials(self) -> tuple[SliceChange, ...]:
        """The slices that run in two versions while this goes on."""
        return tuple(
            change
            for change in self.changes
            if change.old is not None and change.new is not None and change.old.id != change.new.id
        )


# How many times `deadline_s` is kept for the way out: twice to have the old version back with all
# traffic, and as much again for the instances that go.
DEADLINES_TO_END = 4
REMOVAL = Stage(share=1.0, new_fraction=0.0, old_fraction=0.0)


def longest_s(stages: tuple[Stage, ...], deadline_s: float) -> float:
    """Return after how long a deployment is over, whatever happens.

    At each stage instances become healthy, are still so when traffic moves, Envoys confirm; then
    it holds. A removal has one such stage. Then the old instances drain, or the new ones do after
    a rollback, which itself is given twice the time.
    """
    holds_s = sum(max(stage.hold_s, stage.patience_s) for stage in stages)
    return (3 * max(1, len(stages)) + DEADLINES_TO_END) * deadline_s + holds_s


def move(
    deployment: Deployment,
    state: DeploymentState,
    *,
    at: datetime,
    why: str,
    inputs: dict[str, Any] | None = None,
) -> Deployment:
    """Return the deployment in its next state, its ask answered. Errors: IllegalMove."""
    allowed = LEGAL_MOVES[deployment.state]
    if state not in allowed:
        names = ", ".join(allowed) or "nothing: it is over"
        raise IllegalMove(
            f"deployment '{deployment.id}' cannot go from {deployment.state} to {state}: "
            f"allowed is {names}"
        )
    line = Move(at, state, why, deployment.stage, inputs or {})
    history = (*deployment.history, line)
    return replace(deployment, state=state, since=at, history=history, asking=None)
