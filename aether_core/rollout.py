"""How a deployment goes on: pure. The leader calls `step` on every change and writes the answer.

A step looks at one deployment and what the nodes saw, and answers with the deployment's next state
and the documents to write with it, in one transaction; or None: nothing to do but wait.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from aether_core import keys
from aether_core.deployment import Deployment, move
from aether_core.model import (
    WHOLE_SHARE_BP,
    DeploymentState,
    Fleet,
    FleetId,
    InstanceState,
    InstanceStatus,
    NodeId,
    RouteTable,
)
from aether_core.store import Delete, Put, put

S = DeploymentState
# A fleet whose instances ended or failed to start this often will not become healthy by waiting.
MAX_RESTARTS = 3


@dataclass(frozen=True)
class Sight:
    """What a step decides on. Revisions are the store's.

    `confirmed`: per live node, up to which revision its Envoy answers.
    `status_revisions`: per instance, when its status was last written.
    """

    at: datetime
    fleets: dict[FleetId, Fleet]
    statuses: tuple[InstanceStatus, ...]
    status_revisions: dict[str, int]
    routes: RouteTable
    routes_revision: int
    confirmed: dict[NodeId, int]


@dataclass(frozen=True)
class Step:
    """The deployment afterwards and what to write with it."""

    deployment: Deployment
    writes: tuple[Put | Delete, ...] = ()


def step(deployment: Deployment, sight: Sight) -> Step | None:
    """Return the next move, or None to wait. Calling it twice on the same sight is harmless."""
    return _STEPS[deployment.state](deployment, sight)


def _start(deployment: Deployment, sight: Sight) -> Step:
    """PENDING: make the new fleets; a removal has none and goes straight to the routes."""
    new = [change.new for change in deployment.changes if change.new is not None]
    if not new:
        return _switch_routes(deployment, sight, why="nothing to start")
    names = ", ".join(fleet.id for fleet in new)
    writes = tuple(put(keys.fleet(fleet.id), fleet) for fleet in new)
    return Step(move(deployment, S.DEPLOYING, at=sight.at, why=f"starting {names}"), writes)


def _await_health(deployment: Deployment, sight: Sight) -> Step | None:
    """DEPLOYING: every new fleet is READY, and every Envoy knows it; or the deadline passes."""
    stage = deployment.stages[deployment.stage]
    waiting_for = []
    for change in deployment.changes:
        if change.new is not None:
            wanted = math.ceil(change.new.instances * stage.new_fraction)
            ready = _ready(change.new.id, sight)
            if len(ready) < wanted:
                waiting_for.append(f"{change.slice}: {len(ready)} of {wanted} healthy")
            elif not _is_confirmed(max((_revision(s, sight) for s in ready), default=0), sight):
                waiting_for.append(f"{change.slice}: not known to every node's Envoy")
    if not waiting_for:
        return Step(move(deployment, S.DEPLOYED, at=sight.at, why="every instance is healthy"))
    broken = _hopeless(deployment, sight)
    if broken:
        worst = broken[0]
        why = f"instance '{worst.id}' on '{worst.node}' failed {worst.restarts} times: {worst.why}"
        return _fail(deployment, sight, why=why)
    if sight.at >= deployment.deadline_at:
        return _fail(deployment, sight, why=f"deadline passed: {'; '.join(waiting_for)}")
    return None


def _switch_routes(deployment: Deployment, sight: Sight, *, why: str) -> Step:
    """Write the stage's shares of all slices at once."""
    table = routed(deployment, sight.routes)
    return Step(move(deployment, S.ROUTING, at=sight.at, why=why), (put(keys.ROUTES, table),))


def _route(deployment: Deployment, sight: Sight) -> Step:
    """DEPLOYED: traffic may move."""
    share = deployment.stages[deployment.stage].share
    return _switch_routes(deployment, sight, why=f"share of the new version: {share:.2%}")


def _await_routes(deployment: Deployment, sight: Sight) -> Step | None:
    """ROUTING: every Envoy answers with the new shares; then the old fleets may go."""
    if not _is_confirmed(sight.routes_revision, sight):
        return None
    writes = tuple(put(keys.fleet(old.id), _emptied(old)) for old in _ending(deployment))
    why = "every node routes to the new version" if writes else "nothing old is left"
    return Step(move(deployment, S.DRAINING, at=sight.at, why=why), writes)


def _await_drained(deployment: Deployment, sight: Sight) -> Step | None:
    """DRAINING: the old instances finish their requests and stop."""
    ending = {fleet.id for fleet in _ending(deployment)}
    if any(status.fleet in ending for status in sight.statuses):
        return None
    done = move(deployment, S.COMPLETED, at=sight.at, why="the old instances have stopped")
    return Step(done, _closing(deployment, landed=True))


def _wait(deployment: Deployment, sight: Sight) -> None:
    return None


_STEPS: dict[DeploymentState, Callable[[Deployment, Sight], Step | None]] = {
    S.PENDING: _start,
    S.DEPLOYING: _await_health,
    S.DEPLOYED: _route,
    S.ROUTING: _await_routes,
    S.PROMOTING: _wait,
    S.DRAINING: _await_drained,
    S.COMPLETED: _wait,
    S.ROLLING_BACK: _wait,
    S.ROLLED_BACK: _wait,
    S.FAILED: _wait,
}


def routed(deployment: Deployment, table: RouteTable) -> RouteTable:
    """Return the table with the deployment's routes and the shares of its current stage."""
    mine = {change.slice for change in deployment.changes}
    others = tuple(route for route in table.routes if route.slice not in mine)
    shares = {name: share for name, share in table.shares.items() if name not in mine}
    to_new = deployment.stages[deployment.stage].share if deployment.stages else 1.0
    for change in deployment.changes:
        if change.new is not None:
            shares[change.slice] = _split(change.old, change.new, to_new)
    return RouteTable(routes=others + deployment.routes, shares=shares)


def _split(old: Fleet | None, new: Fleet, to_new: float) -> dict[FleetId, int]:
    """Share out 10,000 basis points between the two; who has none is left out."""
    if old is None or old.id == new.id:
        return {new.id: WHOLE_SHARE_BP}
    new_bp = round(to_new * WHOLE_SHARE_BP)
    parts = {old.id: WHOLE_SHARE_BP - new_bp, new.id: new_bp}
    return {fleet: bp for fleet, bp in parts.items() if bp}


def _fail(deployment: Deployment, sight: Sight, *, why: str) -> Step:
    """End it before any traffic moved: the new instances go, the old ones never noticed."""
    started = [c.new for c in deployment.changes if c.new is not None]
    kept = {c.old.id: c.old for c in deployment.changes if c.old is not None}
    undo: list[Put | Delete] = [
        put(keys.fleet(fleet.id), kept.get(fleet.id) or _emptied(fleet)) for fleet in started
    ]
    unhealthy = _not_ready([fleet.id for fleet in started], sight)
    failed = move(deployment, S.FAILED, at=sight.at, why=why)
    failed = replace(failed, failures=tuple(unhealthy[:MAX_RESTARTS]))
    return Step(failed, (*undo, *_closing(deployment, landed=False)))


def _closing(deployment: Deployment, *, landed: bool) -> tuple[Put | Delete, ...]:
    """Make room for the next deployment; a landed one becomes what the blueprint is."""
    over = Delete(keys.active(deployment.blueprint))
    if not landed:
        return (over,)
    if deployment.document is None:
        gone = [Delete(keys.slice_record(change.slice)) for change in deployment.changes]
        return (over, Delete(keys.blueprint(deployment.blueprint)), *gone)
    return (over, put(keys.blueprint(deployment.blueprint), deployment.document))


def _emptied(fleet: Fleet) -> Fleet:
    """Return the fleet without instances: Envoy knows it until the last one is gone."""
    return replace(fleet, instances=0)


def _ending(deployment: Deployment) -> list[Fleet]:
    """Return the old fleets that the deployment replaces or removes."""
    kept = {change.new.id for change in deployment.changes if change.new is not None}
    olds = [change.old for change in deployment.changes if change.old is not None]
    return [old for old in olds if old.id not in kept]


def _ready(fleet: FleetId, sight: Sight) -> list[InstanceStatus]:
    return [s for s in sight.statuses if s.fleet == fleet and s.state == InstanceState.READY]


def _not_ready(fleets: Iterable[FleetId], sight: Sight) -> list[InstanceStatus]:
    """Return what is not healthy, the most broken first."""
    of = set(fleets)
    found = [s for s in sight.statuses if s.fleet in of and s.state != InstanceState.READY]
    return sorted(found, key=lambda s: (-s.restarts, s.id))


def _hopeless(deployment: Deployment, sight: Sight) -> list[InstanceStatus]:
    fleets = [change.new.id for change in deployment.changes if change.new is not None]
    return [
        status
        for status in _not_ready(fleets, sight)
        if status.state == InstanceState.BACKOFF and status.restarts >= MAX_RESTARTS
    ]


def _revision(status: InstanceStatus, sight: Sight) -> int:
    return sight.status_revisions[status.id]


def _is_confirmed(revision: int, sight: Sight) -> bool:
    """Return whether every live node's Envoy answers with what was stored at `revision`."""
    return all(confirmed >= revision for confirmed in sight.confirmed.values())
