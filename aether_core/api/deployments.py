"""/v1/plans, /v1/deployments, /v1/blueprints: what runs, and how it comes to run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, Field

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require
from aether_core.api.once import RequestId, answer_of, commit_once
from aether_core.blueprint import Blueprint, StrategyTable, parse_blueprint
from aether_core.config import Document, references, validate
from aether_core.deployment import Deployment, Move
from aether_core.drivers import Stage, Strategy
from aether_core.errors import ConfigError, Conflict, NotFound, Refused
from aether_core.landscape import landscape
from aether_core.model import (
    DeploymentState,
    InstanceState,
    InstanceStatus,
    Role,
    RouteTable,
    SliceRecord,
    to_plain,
)
from aether_core.node import Node
from aether_core.planning import Plan, plan_deployment, plan_removal
from aether_core.plugins import load_driver
from aether_core.store import Compare, Delete, Mirror, Put, put

router = APIRouter(prefix="/v1", tags=["deployments"])

# Finished deployments of a blueprint beyond these are forgotten.
KEPT_DEPLOYMENTS = 50
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


@router.post("/plans")
async def make_plan(
    wish: Wish,
    _: Annotated[Caller, require(Role.VIEWER)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Say what a deployment would do; change nothing."""
    mirror = await node.fresh()
    plan, stages, strategy = _plan(wish, mirror)
    node.hooks.admit_deployment(to_plain(plan))
    return {"plan": to_plain(plan), "strategy": strategy.kind, "stages": to_plain(list(stages))}


@router.post("/deployments")
async def deploy(
    wish: Wish,
    request_id: RequestId,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Begin a deployment; it goes on by itself."""

    def planned(mirror: Mirror) -> _Beginning:
        plan, stages, strategy = _plan(wish, mirror)
        if wish.revision is not None and _newest_input(mirror) > wish.revision:
            raise Refused("the cluster changed since the plan was made", hint="plan again")
        node.hooks.admit_deployment(to_plain(plan))
        return _Beginning(plan, stages, strategy, wish.blueprint)

    return await _begin(node, request_id, caller, planned)


@router.delete("/blueprints/{name}")
async def undeploy(
    name: str,
    request_id: RequestId,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Begin the removal of a blueprint: first its routes, then its instances."""

    def planned(mirror: Mirror) -> _Beginning:
        if mirror.entry(keys.blueprint(name)) is None:
            raise NotFound(f"blueprint '{name}' is not deployed")
        return _Beginning(plan_removal(name, landscape(mirror)), (), StrategyTable(), None)

    return await _begin(node, request_id, caller, planned)


@router.get("/deployments")
async def list_deployments(
    _: Annotated[Caller, require(Role.VIEWER)], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """All deployments, the newest last."""
    mirror = await node.fresh()
    found = sorted(mirror.all(Deployment, keys.DEPLOYMENTS), key=lambda d: d.created_at)
    return {"deployments": [_summary(deployment) for deployment in found]}


@router.get("/deployments/current")
async def current(
    _: Annotated[Caller, require(Role.VIEWER)],
    node: Annotated[Node, Depends(get_node)],
    name: str | None = None,
) -> dict[str, Any]:
    """The deployment called `name`, or the newest of the blueprint called so, or the only active
    one, or the newest of all."""
    mirror = await node.fresh()
    deployment = find(mirror, name)
    return {"deployment": to_plain(deployment), "fleets": _progress(deployment, mirror)}


@dataclass(frozen=True)
class _Beginning:
    """What a deployment begins with; without `document` it is a removal."""

    plan: Plan
    stages: tuple[Stage, ...]
    strategy: StrategyTable
    document: dict[str, Any] | None


def find(mirror: Mirror, name: str | None) -> Deployment:
    """Return the deployment meant by `name`. Errors: NotFound, Refused when several could be."""
    known = sorted(mirror.all(Deployment, keys.DEPLOYMENTS), key=lambda d: d.created_at)
    if name is not None:
        meant = [d for d in known if d.id == name] or [d for d in known if d.blueprint == name]
        if not meant:
            raise NotFound(f"no deployment and no blueprint is called '{name}'")
        return meant[-1]
    active = [deployment for deployment in known if not deployment.is_over]
    if len(active) > 1:
        names = ", ".join(deployment.id for deployment in active)
        raise Refused(f"several deployments are active: {names}", hint="name one of them")
    if not known:
        raise NotFound("nothing has been deployed yet", hint="aether deploy blueprint.toml")
    return (active or known)[-1]


def _plan(wish: Wish, mirror: Mirror) -> tuple[Plan, tuple[Stage, ...], StrategyTable]:
    blueprint = parse_blueprint(wish.blueprint)
    if len(blueprint.slices) > MAX_SLICES:
        raise ConfigError(f"{len(blueprint.slices)} slices in one blueprint: at most {MAX_SLICES}")
    _refuse_environment(blueprint)
    _refuse_claimed_routes(blueprint, mirror)
    strategy = _chosen(blueprint, wish)
    driver: Strategy = load_driver("aether.strategies", strategy.kind)()
    plan = plan_deployment(blueprint, landscape(mirror))
    return plan, driver.stages(plan.changes, strategy.options), strategy


def _chosen(blueprint: Blueprint, wish: Wish) -> StrategyTable:
    """Return the blueprint's strategy, overruled by what the command line said."""
    kind = (wish.strategy or blueprint.strategy.kind).replace("-", "_")
    is_same = kind == blueprint.strategy.kind.replace("-", "_")
    # Options of one strategy mean nothing to another.
    options = blueprint.strategy.options if is_same else {}
    deadline = {"deadline_s": blueprint.strategy.deadline_s}
    table = {**deadline, **options, **wish.options, "kind": kind}
    return validate(Document("strategy", table, {}), StrategyTable)


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


async def _begin(
    node: Node, request_id: str, caller: Caller, planned: Callable[[Mirror], _Beginning]
) -> dict[str, Any]:
    conflict: Conflict | None = None
    for _ in range(BEGIN_TRIES):
        mirror = await node.fresh()
        if before := await answer_of(node, request_id):
            return dict(before)
        try:
            return await _try_to_begin(node, request_id, caller, planned(mirror))
        except Conflict as error:
            conflict = error  # Another one began at the same moment: plan with it in sight.
    assert conflict is not None, "it was tried"
    raise conflict


async def _try_to_begin(
    node: Node, request_id: str, caller: Caller, beginning: _Beginning
) -> dict[str, Any]:
    plan, mirror = beginning.plan, node.mirror
    active = mirror.get(str, keys.active(plan.blueprint))
    if active is not None:
        raise Refused(
            f"deployment '{active}' of blueprint '{plan.blueprint}' is not over",
            hint=f"wait for it: aether deploy status {active}",
        )
    earlier = [d for d in mirror.all(Deployment, keys.DEPLOYMENTS) if d.blueprint == plan.blueprint]
    number = max((int(d.id.rpartition("-")[2]) for d in earlier), default=0) + 1
    now = node.clock.at()
    deployment = Deployment(
        id=f"{plan.blueprint}-{number}",
        blueprint=plan.blueprint,
        version=plan.version,
        strategy=beginning.strategy.kind if beginning.document is not None else "removal",
        options=beginning.strategy.options,
        stages=beginning.stages,
        changes=plan.changes,
        routes=plan.routes,
        document=beginning.document,
        state=DeploymentState.PENDING,
        since=now,
        created_at=now,
        deadline_at=now + timedelta(seconds=beginning.strategy.deadline_s),
        by=caller.name,
        history=(Move(now, DeploymentState.PENDING, f"asked for by {caller.name}"),),
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
    writes += [Delete(keys.deployment(d.id)) for d in over[:-KEPT_DEPLOYMENTS]]
    answer = {"id": deployment.id}
    return await commit_once(node, request_id, writes, compares=compares, answer=answer)


def _newest_input(mirror: Mirror) -> int:
    return mirror.newest(keys.FLEETS, keys.ROUTES, keys.SLICES, keys.ARTIFACTS, keys.NODES)


def _summary(deployment: Deployment) -> dict[str, Any]:
    return {
        "id": deployment.id,
        "blueprint": deployment.blueprint,
        "version": deployment.version,
        "strategy": deployment.strategy,
        "state": deployment.state,
        "since": deployment.since.isoformat(),
        "by": deployment.by,
        "why": deployment.history[-1].why,
    }


def _progress(deployment: Deployment, mirror: Mirror) -> list[dict[str, Any]]:
    """Return how far each of the deployment's fleets is."""
    statuses = mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)
    table = mirror.get(RouteTable, keys.ROUTES) or RouteTable()
    found = []
    for change in deployment.changes:
        for fleet in dict.fromkeys(f.id for f in (change.old, change.new) if f is not None):
            mine = [status for status in statuses if status.fleet == fleet]
            of = change.new if change.new and change.new.id == fleet else change.old
            assert of is not None, "a change has an old or a new fleet"
            found.append(
                {
                    "slice": change.slice,
                    "fleet": fleet,
                    "version": of.spec.version,
                    "role": "new" if change.new and change.new.id == fleet else "old",
                    "wanted": of.instances,
                    "ready": sum(status.state == InstanceState.READY for status in mine),
                    "running": len(mine),
                    "share_bp": table.shares.get(change.slice, {}).get(fleet, 0),
                }
            )
    return found
