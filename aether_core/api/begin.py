"""How a deployment begins: planned against the store, and written if that still holds.

Used by the routes in `deployments.py`.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from aether_core import keys
from aether_core.api.auth import Caller
from aether_core.api.once import answer_of, commit_once
from aether_core.blueprint import Blueprint, StrategyTable, parse_blueprint
from aether_core.config import Document, references, validate
from aether_core.deployment import Deployment, Move, longest_s
from aether_core.drivers import Stage, Strategy
from aether_core.errors import ConfigError, Conflict, Refused
from aether_core.landscape import landscape
from aether_core.model import DeploymentState, Route, RouteTable, SliceRecord
from aether_core.node import Node
from aether_core.planning import Plan, changes_of, plan_deployment
from aether_core.plugins import load_driver
from aether_core.store import Compare, Delete, Mirror, Put, put

# Finished deployments of a blueprint beyond these are forgotten.
KEPT_DEPLOYMENTS = 50
AT_ONCE = Stage(share=1.0, new_fraction=1.0, old_fraction=0.0)
BEGIN_TRIES = 5
# A deployment begins in one transaction, with two comparisons for each slice: see MAX_OPERATIONS.
MAX_SLICES = 50


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what Python reads as JSON and nobody else does."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("holds a number or text that is not valid JSON") from None
    return value


Storable = Annotated[dict[str, Any], AfterValidator(_storable)]


class Wish(BaseModel, extra="forbid"):
    """`revision`: of the plan that was shown; a store that moved on since is refused."""

    blueprint: Storable
    strategy: str | None = Field(None, max_length=100)
    options: Storable = Field(default_factory=dict)
    revision: int | None = None


@dataclass(frozen=True)
class Beginning:
    """What a deployment begins with; without `document` it is a removal."""

    plan: Plan
    stages: tuple[Stage, ...]
    strategy: StrategyTable
    document: dict[str, Any] | None


def plan_wish(wish: Wish, mirror: Mirror) -> Beginning:
    """Return the deployment that is wished for. Errors: ConfigError, Refused, DriverNotFound."""
    blueprint, land = parse_blueprint(wish.blueprint), landscape(mirror)
    if len(blueprint.slices) > MAX_SLICES:
        raise ConfigError(f"{len(blueprint.slices)} slices in one blueprint: at most {MAX_SLICES}")
    _refuse_environment(blueprint)
    refuse_second(blueprint.name, mirror)
    _refuse_claimed_routes(blueprint, mirror)
    strategy = _chosen(blueprint, wish)
    driver: Strategy = load_driver("aether.strategies", strategy.kind)()
    changes = changes_of(blueprint, land)
    stages = driver.stages(changes, strategy.options)
    assert stages, "a strategy has at least one stage"
    assert stages[-1].share == 1.0, "a strategy ends with all traffic on the new version"
    if not any(c.old and c.new and c.old.id != c.new.id for c in changes):
        stages = (AT_ONCE,)  # There is no other version to share the traffic with.
    plan = plan_deployment(blueprint, changes, stages, land)
    return Beginning(plan, stages, strategy, wish.blueprint)


def _chosen(blueprint: Blueprint, wish: Wish) -> StrategyTable:
    """Return the blueprint's strategy, overruled by what the command line said."""
    kind = (wish.strategy or blueprint.strategy.kind).replace("-", "_")
    is_same = kind == blueprint.strategy.kind.replace("-", "_")
    # Options of one strategy mean nothing to another.
    options = blueprint.strategy.options if is_same else {}
    deadline = {"deadline_s": blueprint.strategy.deadline_s}
    table = {**deadline, **options, **wish.options, "kind": kind}
    return validate(Document("strategy", table, {}), StrategyTable)


def refuse_second(name: str, mirror: Mirror) -> None:
    """Raise Refused while a deployment of the blueprint is active."""
    active = mirror.get(str, keys.active(name))
    if active is not None:
        raise Refused(
            f"deployment '{active}' of blueprint '{name}' is not over",
            hint=f"aether deploy status {active}; then wait, complete it or roll it back",
        )


def _refuse_environment(blueprint: Blueprint) -> None:
    for piece in blueprint.slices:
        names = [name for kind, name in references(piece.env) if kind == "env"]
        if names:
            raise ConfigError(
                f"slice '{piece.name}': ${{env:{names[0]}}} must be resolved before it is sent",
                hint="use ${secrets:...} for what the nodes should look up",
            )


def _refuse_claimed_routes(blueprint: Blueprint, mirror: Mirror) -> None:
    """Refuse routes that a deployment of another blueprint is about to take."""
    wanted = {(route.host, route.prefix) for route in blueprint.routes()}
    for deployment in mirror.all(Deployment, keys.DEPLOYMENTS):
        if deployment.is_over or deployment.blueprint == blueprint.name:
            continue
        for route in deployment.routes:
            if (route.host, route.prefix) in wanted:
                raise Refused(
                    f"route {route.host}{route.prefix} is taken by slice '{route.slice}' of "
                    f"deployment '{deployment.id}', which is not over",
                    hint="choose another host or prefix",
                )


async def begin(
    node: Node, request_id: str, caller: Caller, planned: Callable[[Mirror], Awaitable[Beginning]]
) -> dict[str, Any]:
    """Plan and write, again when the cluster changed between the two; return the new id.

    Errors: as `planned`; Conflict when others were faster every time.
    """
    conflict: Conflict | None = None
    for _ in range(BEGIN_TRIES):
        mirror = await node.fresh()
        if before := await answer_of(node, request_id):
            return dict(before)
        try:
            return await _try_to_begin(node, request_id, caller, await planned(mirror))
        except Conflict as error:
            conflict = error  # Another one began at the same moment: plan with it in sight.
        except Refused:
            # What stands in the way may be this very request, carried out after its answer was
            # lost and after we looked.
            if before := await answer_of(node, request_id):
                return dict(before)
            raise
    assert conflict is not None, "it was tried"
    raise conflict


async def _try_to_begin(
    node: Node, request_id: str, caller: Caller, beginning: Beginning
) -> dict[str, Any]:
    plan, mirror = beginning.plan, node.mirror
    earlier = [d for d in mirror.all(Deployment, keys.DEPLOYMENTS) if d.blueprint == plan.blueprint]
    number = max((int(d.id.rpartition("-")[2]) for d in earlier), default=0) + 1
    identity = f"{plan.blueprint}-{number}"
    deployment = new_deployment(
        identity, beginning, _routes_before(plan, mirror), by=caller.name, at=node.clock.at()
    )
    writes: list[Put | Delete] = [
        put(keys.deployment(deployment.id), deployment),
        put(keys.active(plan.blueprint), deployment.id),
        put(keys.BEGUN, deployment.id),
    ]
    # Whatever the plan was made against must still hold: what others began, and the artifacts.
    fixed = {keys.BEGUN} | {
        keys.artifact(*change.new.spec.artifact.split(":", 1))
        for change in plan.changes
        if change.new is not None
    }
    compares = [
        *(Compare(key, modified=mirror.modified(key)) for key in sorted(fixed)),
        Compare(keys.deployment(deployment.id), created=0),
        Compare(keys.active(plan.blueprint), created=0),
    ]
    for change in plan.changes:
        key = keys.slice_record(change.slice)
        if mirror.entry(key) is None:
            writes.append(put(key, SliceRecord(change.slice, plan.blueprint)))
            compares.append(Compare(key, created=0))
    over = sorted((d for d in earlier if d.is_over), key=lambda d: d.created_at)
    for forgotten in over[:-KEPT_DEPLOYMENTS]:
        writes += [Delete(keys.deployment(forgotten.id)), Delete(keys.trial(forgotten.id))]
    answer = {"id": deployment.id}
    return await commit_once(node, request_id, writes, compares=compares, answer=answer)


def new_deployment(
    identity: str,
    beginning: Beginning,
    routes_before: tuple[Route, ...],
    *,
    by: str,
    at: datetime,
) -> Deployment:
    """Return the record of a deployment that has not begun to move."""
    plan, deadline_s = beginning.plan, beginning.strategy.deadline_s
    return Deployment(
        id=identity,
        blueprint=plan.blueprint,
        version=plan.version,
        strategy=beginning.strategy.kind if beginning.document is not None else "removal",
        options=beginning.strategy.options,
        stages=beginning.stages,
        changes=plan.changes,
        routes=plan.routes,
        document=beginning.document,
        state=DeploymentState.PENDING,
        since=at,
        created_at=at,
        deadline_s=deadline_s,
        deadline_at=at + timedelta(seconds=longest_s(beginning.stages, deadline_s)),
        by=by,
        routes_before=routes_before,
        history=(Move(at, DeploymentState.PENDING, f"asked for by {by}"),),
    )


def _routes_before(plan: Plan, mirror: Mirror) -> tuple[Route, ...]:
    table = mirror.get(RouteTable, keys.ROUTES) or RouteTable()
    mine = {change.slice for change in plan.changes}
    return tuple(route for route in table.routes if route.slice in mine)


def newest_input(mirror: Mirror) -> int:
    return mirror.newest(keys.FLEETS, keys.ROUTES, keys.SLICES, keys.ARTIFACTS, keys.NODES)
