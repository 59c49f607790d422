"""A node's states: the one table of legal moves, and what moves it by itself. Pure."""

from dataclasses import replace
from datetime import datetime

from aether_core.errors import IllegalMove
from aether_core.model import IngressStatus, NodeRecord, NodeState, NodeStatus

S = NodeState

#: State: the states it may move to.
LEGAL_MOVES: dict[NodeState, tuple[NodeState, ...]] = {
    S.JOINING: (S.ON_DUTY, S.DECOMMISSIONED),
    S.ON_DUTY: (S.DRAINING, S.SHUTTING_DOWN),
    S.DRAINING: (S.ON_DUTY, S.DECOMMISSIONED, S.SHUTTING_DOWN),
    S.DECOMMISSIONED: (S.ON_DUTY, S.SHUTTING_DOWN),
    S.SHUTTING_DOWN: (),
}


def move(record: NodeRecord, state: NodeState, *, at: datetime, why: str) -> NodeRecord:
    """Return the node in its next state. Errors: IllegalMove."""
    allowed = LEGAL_MOVES[record.state]
    if state not in allowed:
        names = ", ".join(allowed) or "nothing: it is over"
        raise IllegalMove(
            f"node '{record.id}' cannot go from {record.state} to {state}: allowed is {names}"
        )
    return replace(record, state=state, since=at, why=why)


def admit(
    record: NodeRecord, status: NodeStatus | None, ingress: IngressStatus | None, *, at: datetime
) -> NodeRecord | None:
    """Put a joining node on duty once it lives and its Envoy answers; None: not yet."""
    if record.state != S.JOINING or status is None or ingress is None or ingress.error:
        return None
    return move(record, S.ON_DUTY, at=at, why="its agent and its Envoy answer")
