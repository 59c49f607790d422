"""Nodes and deployments: two tables of legal moves, and nothing ever leaves them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core import deployment, lifecycle
from aether_core.deployment import REMOVAL, Deployment, Move, longest_s
from aether_core.drivers import Stage
from aether_core.errors import IllegalMove
from aether_core.model import (
    DeploymentState,
    IngressStatus,
    NodeId,
    NodeRecord,
    NodeState,
    NodeStatus,
    Ports,
    Resources,
)
from tests.unit.clocks import START

LATER = START + timedelta(minutes=1)

NODE = NodeRecord(
    NodeId("n1"), "127.0.0.1", Ports(1, 2, 3, 4, 5, 6), True, "m", NodeState.JOINING, START
)
STATUS = NodeStatus(NodeId("n1"), Resources(), 1, "0", START)

DEPLOYMENT = Deployment(
    id="shop-1",
    blueprint="shop",
    version="1",
    strategy="immediate",
    options={},
    stages=(),
    changes=(),
    routes=(),
    document=None,
    state=DeploymentState.PENDING,
    since=START,
    created_at=START,
    deadline_s=60.0,
    deadline_at=LATER,
    by="ci",
)

NODE_MOVES = {
    "JOINING": "ON_DUTY DECOMMISSIONED",
    "ON_DUTY": "DRAINING SHUTTING_DOWN",
    "DRAINING": "ON_DUTY DECOMMISSIONED SHUTTING_DOWN",
    "DECOMMISSIONED": "ON_DUTY SHUTTING_DOWN",
    "SHUTTING_DOWN": "",
}
ENDINGS = {"COMPLETED", "ROLLED_BACK", "FAILED"}


def reachable(moves: dict[Any, tuple[Any, ...]], start: Any) -> set[Any]:
    """Return every state that a walk from `start` can come to."""
    found, left = {start}, [start]
    while left:
        new = set(moves[left.pop()]) - found
        found |= new
        left += new
    return found


def test_the_table_of_nodes_is_the_documented_one() -> None:
    table = {str(state): " ".join(moves) for state, moves in lifecycle.LEGAL_MOVES.items()}
    assert table == NODE_MOVES


@pytest.mark.parametrize("before", NodeState)
@pytest.mark.parametrize("after", NodeState)
def test_every_move_of_a_node(before: NodeState, after: NodeState) -> None:
    record = replace(NODE, state=before)
    if after in NODE_MOVES[before].split():
        moved = lifecycle.move(record, after, at=LATER, why="asked")
        assert moved == replace(record, state=after, since=LATER, why="asked")
        return
    allowed = NODE_MOVES[before].replace(" ", ", ") or "nothing: it is over"
    with pytest.raises(IllegalMove) as caught:
        lifecycle.move(record, after, at=LATER, why="asked")
    assert caught.value.message == (
        f"node 'n1' cannot go from {before} to {after}: allowed is {allowed}"
    )


@pytest.mark.parametrize("before", DeploymentState)
@pytest.mark.parametrize("after", DeploymentState)
def test_every_move_of_a_deployment(before: DeploymentState, after: DeploymentState) -> None:
    record = replace(DEPLOYMENT, state=before, history=(Move(START, before, "so far"),))
    if after in deployment.LEGAL_MOVES[before]:
        moved = deployment.move(record, after, at=LATER, why="asked")
        assert moved.history == (*record.history, Move(LATER, after, "asked"))
        assert replace(moved, history=record.history) == replace(record, state=after, since=LATER)
        return
    with pytest.raises(IllegalMove, match=f"'shop-1' cannot go from {before} to {after}"):
        deployment.move(record, after, at=LATER, why="asked")


def test_a_deployment_can_always_end_and_an_end_is_final() -> None:
    moves = deployment.LEGAL_MOVES
    assert set(moves) == set(DeploymentState)
    assert set(deployment.TERMINAL) == {state for state, to in moves.items() if not to}
    assert deployment.TERMINAL == ENDINGS
    for state in DeploymentState:
        assert reachable(moves, state) & deployment.TERMINAL
        assert replace(DEPLOYMENT, state=state).is_over is (state in ENDINGS)
    assert reachable(moves, DeploymentState.PENDING) == set(DeploymentState)


def test_what_serves_traffic_goes_out_by_draining_or_rolling_back() -> None:
    moves = deployment.LEGAL_MOVES
    assert [s for s in DeploymentState if DeploymentState.COMPLETED in moves[s]] == ["DRAINING"]
    assert [s for s in DeploymentState if DeploymentState.ROLLED_BACK in moves[s]] == [
        "ROLLING_BACK"
    ]


def test_every_state_of_a_node_can_be_reached_and_left_but_the_last() -> None:
    assert reachable(lifecycle.LEGAL_MOVES, NodeState.JOINING) == set(NodeState)
    for state in NodeState:
        assert NodeState.SHUTTING_DOWN in reachable(lifecycle.LEGAL_MOVES, state)


@given(steps=st.lists(st.sampled_from(NodeState), max_size=12))
def test_no_history_leaves_the_table(steps: list[NodeState]) -> None:
    record = NODE
    for step in steps:
        before = record
        try:
            record = lifecycle.move(record, step, at=LATER, why="")
        except IllegalMove:
            assert record == before
        else:
            assert step in lifecycle.LEGAL_MOVES[before.state]


@pytest.mark.parametrize(
    ("state", "status", "ingress", "is_admitted"),
    [
        ("JOINING", STATUS, IngressStatus(NodeId("n1"), 5), True),
        ("JOINING", None, IngressStatus(NodeId("n1"), 5), False),
        ("JOINING", STATUS, None, False),
        ("JOINING", STATUS, IngressStatus(NodeId("n1"), 0, "rejected"), False),
        ("ON_DUTY", STATUS, IngressStatus(NodeId("n1"), 5), False),
        ("DRAINING", STATUS, IngressStatus(NodeId("n1"), 5), False),
    ],
)
def test_a_node_is_admitted_when_it_lives_and_its_envoy_answers(
    state: str, status: NodeStatus | None, ingress: IngressStatus | None, is_admitted: bool
) -> None:
    record = replace(NODE, state=NodeState(state))
    admitted = lifecycle.admit(record, status, ingress, at=LATER)
    assert (admitted is not None) is is_admitted
    if admitted is not None:
        assert (admitted.state, admitted.since) == ("ON_DUTY", LATER)


@pytest.mark.parametrize("stages", [(), (REMOVAL,), (REMOVAL, replace(REMOVAL, patience_s=60.0))])
def test_whatever_is_deployed_may_wait_before_it_has_to_turn_back(
    stages: tuple[Stage, ...],
) -> None:
    end = START + timedelta(seconds=longest_s(stages, DEPLOYMENT.deadline_s))
    planned = replace(DEPLOYMENT, stages=stages, deadline_at=end)
    holds_s = sum(stage.patience_s for stage in stages)
    assert planned.turn_back_at - START >= timedelta(seconds=DEPLOYMENT.deadline_s + holds_s)
