"""A deployment: its record, and the one table of legal moves between its states."""

from dataclasses import dataclass, field, replace
from datetime import datetime
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
    S.PROMOTING: (S.DEPLOYING, S.ROUTING, S.DRAINING, S.ROLLING_BACK),
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
    deadline_at: datetime  # Not serving by then: FAILED.
    by: str
    stage: int = 0
    history: tuple[Move, ...] = ()
    failures: tuple[InstanceStatus, ...] = field(default=())  # What kept it from being healthy.

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL


def move(deployment: Deployment, state: DeploymentState, *, at: datetime, why: str) -> Deployment:
    """Return the deployment in its next state. Errors: IllegalMove."""
    allowed = LEGAL_MOVES[deployment.state]
    if state not in allowed:
        names = ", ".join(allowed) or "nothing: it is over"
        raise IllegalMove(
            f"deployment '{deployment.id}' cannot go from {deployment.state} to {state}: "
            f"allowed is {names}"
        )
    history = (*deployment.history, Move(at, state, why))
    return replace(deployment, state=state, since=at, history=history)
