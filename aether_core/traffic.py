"""What requests showed: counters that nodes' Envoys keep, and what a trial of two versions makes
of them. Pure; a node's Envoy is asked by `ingress.py`, the leader keeps the trial.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import zip_longest

from aether_core.deployment import Deployment
from aether_core.evidence import EMPTY, LATENCY_BOUNDS_MS, Evidence, Period, Window, fold
from aether_core.judge import Judgement
from aether_core.model import DeploymentState, FleetId, NodeId


@dataclass(frozen=True)
class TrafficStatus:
    """observed/traffic/<node>: per fleet, all that its Envoy counted since it began."""

    node: NodeId
    at: datetime
    fleets: dict[FleetId, Window]


@dataclass(frozen=True)
class Trial:
    """desired/trials/<deployment>: two versions compared; a new leader goes on from here.

    `evidence` and `judgements` are of `stage`, per slice; `totals` of the whole deployment.
    """

    at: datetime
    stage: int = 0
    evidence: dict[str, Evidence] = field(default_factory=dict)
    judgements: dict[str, Judgement] = field(default_factory=dict)
    totals: dict[FleetId, Window] = field(default_factory=dict)
    seen: dict[NodeId, dict[FleetId, Window]] = field(default_factory=dict)  # Counted already.


def observe(
    trial: Trial | None,
    deployment: Deployment,
    statuses: Iterable[TrafficStatus],
    *,
    at: datetime,
) -> Trial:
    """Add what was counted since the last time; judgements are for the leader to renew.

    Before the stage's shares have reached every node, requests count for the totals only.
    """
    fleets = [f.id for c in deployment.trials for f in (c.old, c.new) if f is not None]
    seen = {s.node: {f: w for f, w in s.fleets.items() if f in fleets} for s in statuses}
    if trial is None:  # What was counted before the deployment began is nobody's evidence.
        return Trial(at=at, stage=deployment.stage, seen=seen)
    fresh = {fleet: _since(fleet, trial.seen, seen) for fleet in fleets}
    totals = {fleet: add(trial.totals.get(fleet, Window()), fresh[fleet]) for fleet in fleets}
    seconds = max(0.0, (at - trial.at).total_seconds())
    kept = trial if trial.stage == deployment.stage else Trial(at=at, stage=deployment.stage)
    evidence = kept.evidence
    if deployment.state == DeploymentState.PROMOTING:
        evidence = {
            change.slice: fold(
                kept.evidence.get(change.slice, EMPTY),
                Period(fresh[change.old.id], fresh[change.new.id], seconds),
            )
            for change in deployment.trials
            if change.old is not None and change.new is not None
        }
    return replace(kept, at=at, evidence=evidence, totals=totals, seen=trial.seen | seen)


def add(one: Window, other: Window) -> Window:
    """Return the sum of two windows."""
    pairs = zip_longest(one.latency, other.latency, fillvalue=0)
    latency = tuple(a + b for a, b in pairs)
    return Window(one.requests + other.requests, one.errors + other.errors, latency)


def quantile_ms(window: Window, q: float) -> float | None:
    """Return the latency that a fraction `q` (0..1) of the requests stayed below, interpolated.

    None without requests; what is in the open last bucket counts as its lower bound.
    """
    total = sum(window.latency)
    if not total:
        return None
    wanted, below, lower = q * total, 0, 0.0
    for count, upper in zip(window.latency, LATENCY_BOUNDS_MS, strict=False):
        if count and below + count >= wanted:
            return lower + (upper - lower) * (wanted - below) / count
        below, lower = below + count, upper
    return lower


def _since(
    fleet: FleetId,
    before: Mapping[NodeId, Mapping[FleetId, Window]],
    now: Mapping[NodeId, Mapping[FleetId, Window]],
) -> Window:
    """Return what all nodes counted since `before`; an Envoy that restarted began at nothing."""
    total = Window()
    for node, windows in now.items():
        current = windows.get(fleet)
        # A node that was not heard of before counts from now on: its past is not this period's.
        if current is None or node not in before:
            continue
        has_restarted = any(
            then.requests > windows.get(name, then).requests for name, then in before[node].items()
        )
        earlier = Window() if has_restarted else before[node].get(fleet, Window())
        total = add(total, _difference(earlier, current))
    return total


def _difference(earlier: Window, current: Window) -> Window:
    latency = tuple(
        max(0, now - then)
        for now, then in zip_longest(current.latency, earlier.latency, fillvalue=0)
    )
    requests = max(0, current.requests - earlier.requests)
    return Window(requests, max(0, current.errors - earlier.errors), latency)
