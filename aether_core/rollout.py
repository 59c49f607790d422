"""How a deployment goes on: pure. The leader calls `step` on every change and writes the answer.

A step looks at one deployment and what the nodes saw, and answers with the deployment's next state
and the documents to write with it, in one transaction; or None: nothing to do but wait. Whatever
happens, a deployment ends: every state in which it waits has its time limit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from aether_core import keys
from aether_core.deployment import Ask, Deployment, move
from aether_core.drivers import Judging, Lapse, SliceChange
from aether_core.judge import Judgement, Limits, Verdict
from aether_core.model import (
    DeploymentState,
    Fleet,
    FleetId,
    InstanceState,
    InstanceStatus,
    NodeId,
    RouteTable,
    to_plain,
)
from aether_core.planning import kept_of, wanted_of
from aether_core.routing import rolled_back, routed, share_of
from aether_core.store import Delete, Put, put

S = DeploymentState
# A fleet whose instances ended or failed to start this often will not become healthy by waiting.
MAX_RESTARTS = 3
# The most that a deployment without a regression may be rolled back by chance.
FALSE_ALARM = 0.01
# While the old version's instances come back, each may carry this much of its usual share.
STRETCH = 2.0


@dataclass(frozen=True)
class Sight:
    """What a step decides on. Revisions are the store's.

    `confirmed`: per live node, up to which revision its Envoy answers.
    `status_revisions`: per instance, when its status was last written.
    `judgements`: per slice that runs in two versions, what the judge says of the current stage.
    """

    at: datetime
    fleets: dict[FleetId, Fleet]
    statuses: tuple[InstanceStatus, ...]
    status_revisions: dict[str, int]
    routes: RouteTable
    routes_revision: int
    confirmed: dict[NodeId, int]
    judgements: dict[str, Judgement] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The deployment afterwards and what to write with it."""

    deployment: Deployment
    writes: tuple[Put | Delete, ...] = ()


def step(deployment: Deployment, sight: Sight) -> Step | None:
    """Return the next move, or None to wait. Calling it twice on the same sight is harmless."""
    asking = deployment.asking
    if asking is not None and asking.what == Ask.ROLLBACK and not _is_ending(deployment):
        return _give_up(deployment, sight, why=f"asked for by {asking.by}")
    taken = _STEPS[deployment.state](deployment, sight)
    is_late = sight.at >= deployment.turn_back_at and not _is_ending(deployment)
    if taken is None and is_late:
        # Every wait has its own limit; that of the whole is for when nobody led for long.
        return _give_up(deployment, sight, why="took too long in all, without a leader at times")
    return taken


def limits_of(deployment: Deployment) -> Limits:
    """Return what the judge holds the new version to.

    The chance of a false alarm is for the whole deployment: every stage and slice gets its part.
    """
    looks = max(1, len(deployment.stages)) * max(1, len(deployment.trials))
    stated = deployment.options.get
    return Limits(
        max_error_rate=stated("max_error_rate"),
        max_latency_p99_ms=stated("max_latency_p99_ms"),
        alpha=FALSE_ALARM / looks,
    )


def _is_ending(deployment: Deployment) -> bool:
    return deployment.is_over or deployment.state in (S.DRAINING, S.ROLLING_BACK)


# Forward: capacity, traffic, a hold; stage by stage.


def _start(deployment: Deployment, sight: Sight) -> Step:
    """PENDING: make the new fleets; a removal has none and goes straight to the routes."""
    if not deployment.stages:
        return _switch_routes(deployment, sight, why="nothing to start")
    writes = _capacity(deployment)
    new = [c.new.id for c in deployment.changes if c.new is not None and not _stays(c)]
    why = f"starting {', '.join(new)}" if new else "nothing new to start"
    return Step(move(deployment, S.DEPLOYING, at=sight.at, why=why), writes)


def _await_health(deployment: Deployment, sight: Sight) -> Step | None:
    """DEPLOYING: the stage's new instances are READY, and every Envoy knows them; or too late."""
    waiting_for = _unready(deployment, sight)
    if not waiting_for:
        return Step(move(deployment, S.DEPLOYED, at=sight.at, why="every instance is healthy"))
    broken = _hopeless(deployment, sight)
    if broken:
        return _give_up(deployment, sight, why=_verdict_on(broken[0]))
    if _has_waited(deployment, sight, deployment.deadline_s):
        return _give_up(deployment, sight, why=f"deadline passed: {'; '.join(waiting_for)}")
    return None


def _route(deployment: Deployment, sight: Sight) -> Step | None:
    """DEPLOYED: traffic may move, if what was healthy a moment ago still is; or too late."""
    if waiting_for := _unready(deployment, sight):
        if not _has_waited(deployment, sight, deployment.deadline_s):
            return None
        return _give_up(deployment, sight, why=f"no longer healthy: {'; '.join(waiting_for)}")
    share = deployment.now.share
    return _switch_routes(deployment, sight, why=f"share of the new version: {share:.2%}")


def _switch_routes(deployment: Deployment, sight: Sight, *, why: str) -> Step:
    """Write the stage's shares of all slices at once."""
    table = routed(deployment, sight.routes)
    return Step(move(deployment, S.ROUTING, at=sight.at, why=why), (put(keys.ROUTES, table),))


def _await_routes(deployment: Deployment, sight: Sight) -> Step | None:
    """ROUTING: every Envoy answers with the new shares; then what is no longer needed may go."""
    if _is_confirmed(sight.routes_revision, sight):
        if deployment.is_last_stage and deployment.now.passes_at_once:
            return _finish(deployment, sight, why="every node routes to the new version")
        why = f"every node sends {deployment.now.share:.2%} to the new version"
        held = move(deployment, S.PROMOTING, at=sight.at, why=why)
        return Step(held, _old_capacity(deployment, sight))
    if _has_waited(deployment, sight, deployment.deadline_s):
        return _give_up(deployment, sight, why=_who_is_late(sight))
    return None


def _hold(deployment: Deployment, sight: Sight) -> Step | None:
    """PROMOTING: stay at this share until time, verdict or somebody says to go on, or back."""
    stage, asking = deployment.now, deployment.asking
    if broken := _hopeless(deployment, sight):
        return _give_up(deployment, sight, why=_verdict_on(broken[0]))
    verdict, reason, inputs = _judged(deployment, sight)
    if stage.judging != Judging.NONE and verdict == Verdict.DEGRADED:
        return _give_up(deployment, sight, why=reason, inputs=inputs)
    if asking is not None:
        is_final = asking.what == Ask.COMPLETE
        return _go_on(deployment, sight, f"asked for by {asking.by}", inputs, is_final=is_final)
    longest_s = max(stage.hold_s, stage.patience_s)
    if _has_waited(deployment, sight, longest_s):
        held = f"held {longest_s:g} s"
        if stage.lapse == Lapse.ROLL_BACK and not _may_pass(deployment, sight, verdict):
            lacking = _lacking(deployment, sight, reason)
            return _give_up(deployment, sight, why=f"{held}: {lacking}", inputs=inputs)
        return _go_on(deployment, sight, held, inputs)
    if _has_waited(deployment, sight, stage.hold_s) and _may_pass(deployment, sight, verdict):
        held = f"held {stage.hold_s:g} s, nothing was found against the new version"
        is_healthy = verdict == Verdict.HEALTHY
        return _go_on(deployment, sight, reason if is_healthy else held, inputs)
    return None


def _may_pass(deployment: Deployment, sight: Sight, verdict: Verdict) -> bool:
    """Return whether nothing speaks against the next stage."""
    stage = deployment.now
    if stage.is_manual or _unready(deployment, sight):
        return False
    return stage.judging != Judging.REQUIRED or verdict == Verdict.HEALTHY


def _lacking(deployment: Deployment, sight: Sight, reason: str) -> str:
    """Return what kept the stage from passing; `reason`: the judge's."""
    if deployment.now.is_manual:
        return "nobody said how it goes on"
    return "; ".join(_unready(deployment, sight)) or reason


def _go_on(
    deployment: Deployment,
    sight: Sight,
    why: str,
    inputs: dict[str, Any],
    *,
    is_final: bool = False,
) -> Step:
    """Begin the next stage, or the last one, or the end."""
    last, now = len(deployment.stages) - 1, deployment.now
    is_whole = now.share == 1.0 and now.new_fraction == 1.0
    if deployment.is_last_stage or (is_final and is_whole):
        return _finish(deployment, sight, why=why, inputs=inputs)
    ahead = move(deployment, S.DEPLOYING, at=sight.at, why=why, inputs=inputs)
    ahead = replace(ahead, stage=last if is_final else deployment.stage + 1)
    return Step(ahead, _capacity(ahead))


def _finish(
    deployment: Deployment, sight: Sight, *, why: str, inputs: dict[str, Any] | None = None
) -> Step:
    """The new version, which has all traffic by now, stays: the old one drains."""
    emptied = tuple(
        put(keys.fleet(old.id), _sized(old, 0))
        for old in _ending(deployment)
        if _wanted(old, sight)
    )
    return Step(move(deployment, S.DRAINING, at=sight.at, why=why, inputs=inputs), emptied)


def _await_drained(deployment: Deployment, sight: Sight) -> Step | None:
    """DRAINING: the old instances finish their requests and stop."""
    ending = {fleet.id for fleet in _ending(deployment)}
    if any(status.fleet in ending for status in sight.statuses) and not _is_too_late(
        deployment, sight
    ):
        return None
    why = "the old instances have stopped" if ending else "nothing had to be replaced"
    done = move(deployment, S.COMPLETED, at=sight.at, why=why)
    return Step(done, _closing(deployment, landed=True))


# Back: traffic first, then capacity.


def _give_up(
    deployment: Deployment, sight: Sight, *, why: str, inputs: dict[str, Any] | None = None
) -> Step:
    """End it before any traffic moved, or roll it back after."""
    has_moved_nothing = deployment.stage == 0 and deployment.state in (S.DEPLOYING, S.DEPLOYED)
    if deployment.state == S.PENDING or (has_moved_nothing and deployment.asking is None):
        return _fail(deployment, sight, why=why)
    failures = tuple(_not_ready(_new_fleets(deployment), sight)[:MAX_RESTARTS])
    back = move(deployment, S.ROLLING_BACK, at=sight.at, why=why, inputs=inputs)
    restored = [
        put(keys.fleet(old.id), old)
        for old in _old_fleets(deployment)
        if _wanted(old, sight) != old.instances
    ]
    table = rolled_back(deployment, sight.routes, _affordable(deployment, sight))
    return Step(replace(back, failures=failures), (put(keys.ROUTES, table), *restored))


def _fail(deployment: Deployment, sight: Sight, *, why: str) -> Step:
    """The new instances go; the old ones never noticed."""
    new = [change.new for change in deployment.changes if change.new is not None]
    undone = {fleet.id: _sized(fleet, 0) for fleet in new}
    undone |= {old.id: old for old in _old_fleets(deployment)}
    undo = [put(keys.fleet(name), fleet) for name, fleet in undone.items()]
    failures = tuple(_not_ready(_new_fleets(deployment), sight)[:MAX_RESTARTS])
    failed = replace(move(deployment, S.FAILED, at=sight.at, why=why), failures=failures)
    return Step(failed, (*undo, *_closing(deployment, landed=False)))


def _await_rolled_back(deployment: Deployment, sight: Sight) -> Step | None:
    """ROLLING_BACK: the old version has all traffic, then the new instances drain and stop."""
    table = rolled_back(deployment, sight.routes, _affordable(deployment, sight))
    if table != sight.routes:  # More of the old instances are back: they may carry more.
        return Step(deployment, (put(keys.ROUTES, table),))
    leaving = [c.new for c in deployment.changes if c.new is not None and not _stays(c)]
    is_back = all(share_of(change, table) == 0 for change in deployment.trials)
    if not is_back or not _is_confirmed(sight.routes_revision, sight):
        if not _has_waited(deployment, sight, 2 * deployment.deadline_s):
            return None
        forced = rolled_back(deployment, sight.routes, 1.0)
        emptied = tuple(put(keys.fleet(fleet.id), _sized(fleet, 0)) for fleet in leaving)
        why = _who_is_late(sight) if is_back else "not all of its instances came back in time"
        why = f"the old version has all traffic, but {why}"
        failed = move(deployment, S.FAILED, at=sight.at, why=why)
        writes = (put(keys.ROUTES, forced), *emptied, *_closing(deployment, landed=False))
        return Step(failed, writes)
    running = [fleet for fleet in leaving if _wanted(fleet, sight)]
    if running:
        return Step(
            deployment, tuple(put(keys.fleet(fleet.id), _sized(fleet, 0)) for fleet in running)
        )
    names = {fleet.id for fleet in leaving}
    if any(status.fleet in names for status in sight.statuses) and not _is_too_late(
        deployment, sight
    ):
        return None
    done = move(deployment, S.ROLLED_BACK, at=sight.at, why="the old version has all traffic")
    return Step(done, _closing(deployment, landed=False))


def _affordable(deployment: Deployment, sight: Sight) -> float:
    """Return the share that the old instances can carry: all of it as soon as half are there."""
    fractions = [
        sum(_is_known(status, sight) for status in _ready(change.old.id, sight))
        / change.old.instances
        for change in deployment.trials
        if change.old is not None and change.old.instances
    ]
    return min([1.0, *(STRETCH * fraction for fraction in fractions)])


def _closing(deployment: Deployment, *, landed: bool) -> tuple[Put | Delete, ...]:
    """Make room for the next deployment; a landed one becomes what the blueprint is."""
    over = Delete(keys.active(deployment.blueprint))
    if not landed:
        return (over,)
    gone = [Delete(keys.slice_record(c.slice)) for c in deployment.changes if c.new is None]
    if deployment.document is None:
        return (over, Delete(keys.blueprint(deployment.blueprint)), *gone)
    return (over, put(keys.blueprint(deployment.blueprint), deployment.document), *gone)


def _wait(deployment: Deployment, sight: Sight) -> None:
    return None


_STEPS: dict[DeploymentState, Callable[[Deployment, Sight], Step | None]] = {
    S.PENDING: _start,
    S.DEPLOYING: _await_health,
    S.DEPLOYED: _route,
    S.ROUTING: _await_routes,
    S.PROMOTING: _hold,
    S.DRAINING: _await_drained,
    S.COMPLETED: _wait,
    S.ROLLING_BACK: _await_rolled_back,
    S.ROLLED_BACK: _wait,
    S.FAILED: _wait,
}


# Capacity


def _capacity(deployment: Deployment) -> tuple[Put, ...]:
    """Return the writes that give every new fleet what the stage wants of it."""
    sized = {
        change.new.id: _sized(change.new, wanted_of(change.new, change.old, deployment.now))
        for change in deployment.changes
        # What stays has one size, set at the first stage.
        if change.new is not None and (deployment.stage == 0 or not _stays(change))
    }
    return tuple(put(keys.fleet(name), fleet) for name, fleet in sized.items())


def _old_capacity(deployment: Deployment, sight: Sight) -> tuple[Put, ...]:
    """Return the writes that take from the old fleets what the stage no longer needs."""
    sized = [
        (change.old, kept_of(change.old, deployment.now))
        for change in deployment.trials
        if change.old is not None
    ]
    return tuple(
        put(keys.fleet(old.id), _sized(old, count))
        for old, count in sized
        if _wanted(old, sight) > count
    )


def _sized(fleet: Fleet, instances: int) -> Fleet:
    """Return the fleet with so many instances; without any, Envoy knows it until none is left."""
    return replace(fleet, instances=instances)


def _wanted(fleet: Fleet, sight: Sight) -> int:
    """Return how many instances the store wants of the fleet now."""
    current = sight.fleets.get(fleet.id)
    return current.instances if current else 0


def _stays(change: SliceChange) -> bool:
    """Return whether the slice keeps what it has."""
    return change.old is not None and change.new is not None and change.old.id == change.new.id


def _ending(deployment: Deployment) -> list[Fleet]:
    """Return the old fleets that the deployment replaces or removes."""
    return [c.old for c in deployment.changes if c.old is not None and not _stays(c)]


def _old_fleets(deployment: Deployment) -> list[Fleet]:
    return [change.old for change in deployment.changes if change.old is not None]


def _new_fleets(deployment: Deployment) -> list[FleetId]:
    return [change.new.id for change in deployment.changes if change.new is not None]


# What is seen


def _unready(deployment: Deployment, sight: Sight) -> list[str]:
    """Return what the stage's new instances still lack, in words."""
    lacking = []
    for change in deployment.changes:
        if change.new is not None:
            wanted = wanted_of(change.new, change.old, deployment.now)
            ready = _ready(change.new.id, sight)
            if len(ready) < wanted:
                lacking.append(f"{change.slice}: {len(ready)} of {wanted} healthy")
            elif not _is_confirmed(max((_revision(s, sight) for s in ready), default=0), sight):
                lacking.append(f"{change.slice}: not known to every node's Envoy")
    return lacking


def _judged(deployment: Deployment, sight: Sight) -> tuple[Verdict, str, dict[str, Any]]:
    """Return the worst verdict of all slices, its reason, and all judgements as they were."""
    found = {c.slice: sight.judgements.get(c.slice) for c in deployment.trials}
    inputs = {name: to_plain(judgement) for name, judgement in found.items() if judgement}
    for verdict in (Verdict.DEGRADED, Verdict.INCONCLUSIVE, Verdict.HEALTHY):
        reasons = [_reason(n, j) for n, j in found.items() if j and j.verdict == verdict]
        unheard = [n for n, j in found.items() if j is None]
        if verdict == Verdict.INCONCLUSIVE and unheard:
            reasons += [f"{name}: nothing counted yet" for name in unheard]
        if reasons:
            return verdict, f"{verdict}: {'; '.join(reasons)}", inputs
    return Verdict.INCONCLUSIVE, "there is nothing to compare with", inputs


def _reason(name: str, judgement: Judgement) -> str:
    """Return the verdict's reason in a few words; the numbers are among the move's inputs."""
    if judgement.verdict == Verdict.HEALTHY:
        return name
    if judgement.verdict == Verdict.INCONCLUSIVE and judgement.needs_requests:
        return f"{name} needs about {judgement.needs_requests} more requests"
    return f"{name}: {judgement.why}"


def _ready(fleet: FleetId, sight: Sight) -> list[InstanceStatus]:
    """Return the fleet's READY instances; what a node said that is gone by now counts for none."""
    return [
        status
        for status in sight.statuses
        if status.fleet == fleet
        and status.state == InstanceState.READY
        and status.node in sight.confirmed
    ]


def _not_ready(fleets: Iterable[FleetId], sight: Sight) -> list[InstanceStatus]:
    """Return what is not healthy, the most broken first."""
    of = set(fleets)
    found = [s for s in sight.statuses if s.fleet in of and s.state != InstanceState.READY]
    return sorted(found, key=lambda s: (-s.restarts, s.id))


def _hopeless(deployment: Deployment, sight: Sight) -> list[InstanceStatus]:
    """Return the new instances that keep ending or failing to start."""
    return [
        status
        for status in _not_ready(_new_fleets(deployment), sight)
        if status.state == InstanceState.BACKOFF and status.restarts >= MAX_RESTARTS
    ]


def _verdict_on(status: InstanceStatus) -> str:
    return f"instance '{status.id}' on '{status.node}' failed {status.restarts} times: {status.why}"


def _revision(status: InstanceStatus, sight: Sight) -> int:
    return sight.status_revisions[status.id]


def _is_confirmed(revision: int, sight: Sight) -> bool:
    """Return whether every live node's Envoy answers with what was stored at `revision`."""
    return all(confirmed >= revision for confirmed in sight.confirmed.values())


def _who_is_late(sight: Sight) -> str:
    late = ", ".join(n for n, r in sight.confirmed.items() if r < sight.routes_revision)
    return f"not confirmed in time by the Envoy of {late}"


def _is_known(status: InstanceStatus, sight: Sight) -> bool:
    """Return whether every live Envoy sends to the instance, but for those that load nothing."""
    revision = _revision(status, sight)
    return all(confirmed >= revision for confirmed in sight.confirmed.values() if confirmed)


def _has_waited(deployment: Deployment, sight: Sight, seconds: float) -> bool:
    return sight.at >= deployment.since + timedelta(seconds=seconds)


def _is_too_late(deployment: Deployment, sight: Sight) -> bool:
    return sight.at >= deployment.deadline_at
