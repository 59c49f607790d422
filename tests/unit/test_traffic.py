"""What nodes counted, made into a trial; and quantiles of it."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.deployment import Deployment
from aether_core.evidence import LATENCY_BOUNDS_MS, Window
from aether_core.model import DeploymentState, FleetId, NodeId, decode, encode
from aether_core.traffic import TrafficStatus, Trial, add, observe, quantile_ms
from tests.unit.conftest import NOW
from tests.unit.fleets import change
from tests.unit.rollouts import deployment

OLD, NEW = FleetId("web@1"), FleetId("web@2")
HOLDING = replace(deployment("canary", change()), state=DeploymentState.PROMOTING)

Counts = dict[str, tuple[int, int]]  # Node: requests to the old and to the new version so far.


def latency(requests: int, bucket: int = 3) -> tuple[int, ...]:
    counts = [0] * (len(LATENCY_BOUNDS_MS) + 1)
    counts[bucket] = requests
    return tuple(counts)


def window(requests: int) -> Window:
    """Return requests of which every tenth failed."""
    return Window(requests, requests // 10, latency(requests) if requests else ())


def statuses(counts: Counts) -> list[TrafficStatus]:
    return [
        TrafficStatus(NodeId(node), NOW, {OLD: window(old), NEW: window(new)})
        for node, (old, new) in counts.items()
    ]


def observed(*looks: Counts, of: Deployment = HOLDING, trial: Trial | None = None) -> Trial:
    """Look every second at what the nodes counted."""
    for counts in looks:
        at = trial.at + timedelta(seconds=1) if trial else NOW
        trial = observe(trial, of, statuses(counts), at=at)
    assert trial is not None
    return trial


def requests(trial: Trial) -> tuple[int, int]:
    """Return the stage's evidence: requests of the old and the new version."""
    if "web" not in trial.evidence:
        return (0, 0)
    total = trial.evidence["web"].errors.total
    return total.old_requests, total.new_requests


def totals(trial: Trial) -> tuple[int, ...]:
    return tuple(trial.totals.get(fleet, Window()).requests for fleet in (OLD, NEW))


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([{"n1": (100, 0)}], (0, 0)),
        ([{"n1": (100, 0)}, {"n1": (150, 20)}], (50, 20)),
        ([{"n1": (0, 0)}, {"n1": (50, 20)}, {"n1": (50, 20)}, {"n1": (60, 21)}], (60, 21)),
        ([{"n1": (0, 0), "n2": (9, 9)}, {"n1": (5, 1), "n2": (10, 11)}], (6, 3)),
        ([{"n1": (100, 50)}, {"n1": (30, 10)}], (30, 10)),
        ([{"n1": (100, 50)}, {"n1": (100, 50)}, {"n1": (0, 0)}, {"n1": (5, 5)}], (5, 5)),
        ([{"n1": (10, 10)}, {"n1": (20, 20), "n2": (900, 900)}], (10, 10)),
        ([{"n1": (0, 0)}, {"n1": (1, 1), "n2": (900, 900)}, {"n1": (2, 2), "n2": (905, 905)}],
         (7, 7)),
        ([{"n1": (0, 0), "n2": (5, 5)}, {"n1": (1, 1)}, {"n1": (2, 2), "n2": (13, 13)}], (10, 10)),
        ([{}, {"n1": (900, 900)}, {"n1": (901, 901)}], (1, 1)),
    ],
    ids=["the past is nobody's", "a difference", "adds up", "two nodes", "an Envoy restarted",
         "restarted and still idle", "a node appears", "and counts from then on",
         "a node is away for a while", "nobody was there at first"],
)  # fmt: skip
def test_what_counts_since_the_last_look(looks: list[Counts], expected: tuple[int, int]) -> None:
    trial = observed(*looks)
    assert requests(trial) == totals(trial) == expected


def test_an_envoy_that_restarted_and_already_counted_more_is_not_seen_as_such() -> None:
    """Counters only say so much: what came between is lost, nothing is counted twice."""
    assert requests(observed({"n1": (10, 10)}, {"n1": (12, 12)})) == (2, 2)


def test_errors_and_latencies_come_along() -> None:
    trial = observed({"n1": (0, 0)}, {"n1": (100, 40)}, {"n1": (200, 60)})
    assert trial.totals == {OLD: window(200), NEW: window(60)}
    found = trial.evidence["web"]
    assert (found.errors.total.old_hits, found.errors.total.new_hits) == (20, 6)
    assert (found.latency_old, found.latency_new) == (latency(200), latency(60))
    assert found.seconds == 2


@pytest.mark.parametrize("state", ["DEPLOYING", "DEPLOYED", "ROUTING", "DRAINING", "ROLLING_BACK"])
def test_while_shares_are_on_their_way_requests_are_no_evidence(state: str) -> None:
    moving = replace(HOLDING, state=DeploymentState(state))
    trial = observed({"n1": (0, 0)}, {"n1": (50, 20)}, of=moving)
    assert (requests(trial), totals(trial)) == ((0, 0), (50, 20))


def test_a_new_stage_begins_with_new_evidence_and_totals_go_on() -> None:
    first = observed({"n1": (0, 0)}, {"n1": (50, 20)})
    next_stage = replace(HOLDING, stage=1)
    second = observed({"n1": (60, 30)}, of=next_stage, trial=replace(first, judgements={}))
    assert (second.stage, requests(second)) == (1, (10, 10))
    # What came before the new shares had reached every node was seen in another state.
    moving = replace(next_stage, state=DeploymentState.ROUTING)
    between = observed({"n1": (60, 30)}, of=moving, trial=first)
    held = observed({"n1": (61, 33)}, of=next_stage, trial=between)
    assert requests(held) == (1, 3)
    assert totals(held) == (61, 33)


def test_slices_are_told_apart_and_what_is_not_tried_is_nobodys() -> None:
    two = replace(
        deployment("canary", change(), change(name="api")), state=DeploymentState.PROMOTING
    )
    api = {FleetId("api@1"): window(0), FleetId("api@2"): window(7), FleetId("x@1"): window(99)}
    trial = observed({"n1": (0, 0)}, of=two)
    seen = [TrafficStatus(NodeId("n1"), NOW, {OLD: window(5), **api})]
    trial = observe(trial, two, seen, at=NOW)
    assert requests(trial) == (5, 0)
    assert set(trial.evidence) == {"web", "api"}
    assert FleetId("x@1") not in trial.totals


def test_a_new_leader_goes_on_where_the_last_one_stopped() -> None:
    looks: list[Counts] = [{"n1": (n * n, n)} for n in range(100)]
    at_once, halfway = observed(*looks), observed(*looks[:50])
    resumed = observed(*looks[50:], trial=decode(Trial, encode(halfway)))
    assert resumed == at_once


windows = st.builds(
    lambda counts: Window(sum(counts), 0, tuple(counts)), st.lists(st.integers(0, 99), max_size=9)
)


@given(windows, windows, windows)
def test_windows_add_up_in_any_order(one: Window, two: Window, three: Window) -> None:
    assert add(add(one, two), three) == add(add(three, one), two)
    assert add(one, Window()) == one


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        ({}, 0.5, None),
        ({0: 100}, 0.5, 0.5),
        ({0: 100}, 0.99, 0.99),
        ({0: 50, 3: 50}, 0.5, 1.0),
        ({0: 50, 3: 50}, 0.75, 3.5),
        ({0: 98, 3: 2}, 0.99, 3.5),
        ({len(LATENCY_BOUNDS_MS): 10}, 0.5, LATENCY_BOUNDS_MS[-1]),
    ],
)
def test_quantiles(buckets: dict[int, int], q: float, expected: float | None) -> None:
    counts = [0] * (len(LATENCY_BOUNDS_MS) + 1)
    for bucket, count in buckets.items():
        counts[bucket] = count
    found = quantile_ms(Window(sum(counts), 0, tuple(counts)), q)
    assert found == (pytest.approx(expected) if expected is not None else None)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=len(LATENCY_BOUNDS_MS) + 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_quantiles_rise_and_stay_within_the_bounds(counts: list[int], p: float, q: float) -> None:
    one = Window(sum(counts), 0, tuple(counts))
    low, high = quantile_ms(one, min(p, q)), quantile_ms(one, max(p, q))
    assert (low is None) == (sum(counts) == 0)
    if low is not None and high is not None:
        assert 0 <= low <= high <= LATENCY_BOUNDS_MS[-1]
