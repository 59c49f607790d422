"""/v1/plans, /v1/deployments, /v1/blueprints: what runs, and how it comes to run."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require
from aether_core.api.once import RequestId, answer_of, commit_once
from aether_core.blueprint import Blueprint, StrategyTable, parse_blueprint
from aether_core.config import references
from aether_core.deployment import ASKABLE, Ask, Asking, Deployment, Move, longest_s
from aether_core.drivers import Stage, Strategy
from aether_core.errors import ConfigError, NotFound, Refused
from aether_core.landscape import landscape
from aether_core.model import (
    DeploymentState,
    FleetId,
    InstanceState,
    InstanceStatus,
    Role,
    Route,
    RouteTable,
    SliceRecord,
    to_plain,
)
from aether_core.node import Node
from aether_core.planning import Plan, changes_of, plan_deployment, plan_removal
from aether_core.plugins import load_driver
from aether_core.store import Compare, Delete, Mirror, Put, put
from aether_core.traffic import Trial, quantile_ms

router = APIRouter(prefix="/v1", tags=["deployments"])

# Finished deployments of a blueprint beyond these are forgotten.
KEPT_DEPLOYMENTS = 50
AT_ONCE = Stage(share=1.0, new_fraction=1.0, old_fraction=0.0)


class Wish(BaseModel):
    """`revision`: of the plan that was shown; a store that moved on since is refused."""

    blueprint: dict[str, Any]
    strategy: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    revision: int | None = None


class Wanted(BaseModel):
    """What to ask of the deployment `name` (as in `/deployments/current`).

    `keep`, `remove`: in an A/B test, the variant that wins or goes.
    """

    what: Ask
    name: str | None = None
    keep: str | None = None
    remove: str | None = None


@router.post("/plans")
async def make_plan(
    wish: Wish,
    _: Annotated[Caller, require(Role.VIEWER)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Say what a deployment would do; change nothing."""
    beginning = _plan(wish, await node.fresh())
    plan, stages = to_plain(beginning.plan), to_plain(list(beginning.stages))
    await node.hooks.admit_deployment(plan)
    return {"plan": plan, "strategy": beginning.strategy.kind, "stages": stages}


@router.post("/deployments")
async def deploy(
    wish: Wish,
    request_id: RequestId,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Begin a deployment; it goes on by itself."""
    if before := await answer_of(node, request_id):
        return dict(before)
    mirror = await node.fresh()
    beginning = _plan(wish, mirror)
    if wish.revision is not None and _newest_input(mirror) > wish.revision:
        raise Refused("the cluster changed since the plan was made", hint="plan again")
    await node.hooks.admit_deployment(to_plain(beginning.plan))
    return await _begin(node, request_id, caller, beginning)


@router.delete("/blueprints/{name}")
async def undeploy(
    name: str,
    request_id: RequestId,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Begin the removal of a blueprint: first its routes, then its instances."""
    if before := await answer_of(node, request_id):
        return dict(before)
    mirror = await node.fresh()
    if mirror.entry(keys.blueprint(name)) is None:
        raise NotFound(f"blueprint '{name}' is not deployed")
    _refuse_second(name, mirror)
    plan = plan_removal(name, landscape(mirror))
    return await _begin(node, request_id, caller, _Beginning(plan, (), StrategyTable(), None))


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
    trial = mirror.get(Trial, keys.trial(deployment.id))
    return {
        "deployment": to_plain(deployment),
        "fleets": _progress(deployment, mirror, trial),
        "judgements": to_plain(trial)["judgements"] if trial else {},
    }


@router.post("/deployments/ask")
async def ask(
    body: Wanted,
    request_id: RequestId,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Ask that a deployment goes on, ends or goes back; the leader does it."""
    if before := await answer_of(node, request_id):
        return dict(before)
    mirror = await node.fresh()
    deployment = find(mirror, body.name)
    what = _meant(deployment, body)
    _refuse_ask(deployment, what)
    key = keys.deployment(deployment.id)
    asked = replace(deployment, asking=Asking(what, caller.name, node.clock.at()))
    compares = [Compare(key, modified=mirror.modified(key))]
    answer = {"id": deployment.id, "asked": what}
    return await commit_once(node, request_id, [put(key, asked)], compares=compares, answer=answer)


def _meant(deployment: Deployment, body: Wanted) -> Ask:
    """Return the ask; who names a variant to keep or to remove means going on or back."""
    if body.keep is None and body.remove is None:
        return body.what
    split = next((stage.split for stage in deployment.stages if stage.split), None)
    if split is None:
        raise Refused(f"deployment '{deployment.id}' has no variants: it is {deployment.strategy}")
    named = body.keep if body.keep is not None else body.remove
    if named not in (split.old, split.new):
        raise Refused(f"variant '{named}' not found: there are {split.old} and {split.new}")
    keeps_new = (named == split.new) == (body.keep is not None)
    return Ask.COMPLETE if keeps_new else Ask.ROLLBACK


def _refuse_ask(deployment: Deployment, what: Ask) -> None:
    if deployment.state in ASKABLE[what]:
        return
    if deployment.is_over and what == Ask.ROLLBACK:
        raise Refused(
            f"deployment '{deployment.id}' is over: {deployment.state}",
            hint="deploy the blueprint that ran before",
        )
    raise Refused(
        f"deployment '{deployment.id}' is {deployment.state}: {what} is for "
        f"{', '.join(ASKABLE[what])}",
        hint=f"aether deploy status {deployment.id}",
    )


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


def _plan(wish: Wish, mirror: Mirror) -> _Beginning:
    blueprint, land = parse_blueprint(wish.blueprint), landscape(mirror)
    _refuse_environment(blueprint)
    _refuse_second(blueprint.name, mirror)
    strategy = _chosen(blueprint, wish)
    driver: Strategy = load_driver("aether.strategies", strategy.kind)()
    changes = changes_of(blueprint, land)
    stages = driver.stages(changes, strategy.options)
    assert stages, "a strategy has at least one stage"
    assert stages[-1].share == 1.0, "a strategy ends with all traffic on the new version"
    if not any(c.old and c.new and c.old.id != c.new.id for c in changes):
        stages = (AT_ONCE,)  # There is no other version to share the traffic with.
    plan = plan_deployment(blueprint, changes, stages, land)
    return _Beginning(plan, stages, strategy, wish.blueprint)


def _chosen(blueprint: Blueprint, wish: Wish) -> StrategyTable:
    """Return the blueprint's strategy, overruled by what the command line said."""
    kind = (wish.strategy or blueprint.strategy.kind).replace("-", "_")
    is_same = kind == blueprint.strategy.kind.replace("-", "_")
    # Options of one strategy mean nothing to another.
    options = blueprint.strategy.options if is_same else {}
    deadline = {"deadline_s": blueprint.strategy.deadline_s}
    return StrategyTable.model_validate({**deadline, **options, **wish.options, "kind": kind})


def _refuse_second(name: str, mirror: Mirror) -> None:
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


async def _begin(
    node: Node, request_id: str, caller: Caller, beginning: _Beginning
) -> dict[str, Any]:
    plan, mirror = beginning.plan, node.mirror
    earlier = [d for d in mirror.all(Deployment, keys.DEPLOYMENTS) if d.blueprint == plan.blueprint]
    number = max((int(d.id.rpartition("-")[2]) for d in earlier), default=0) + 1
    now, deadline_s = node.clock.at(), beginning.strategy.deadline_s
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
        deadline_s=deadline_s,
        deadline_at=now + timedelta(seconds=longest_s(beginning.stages, deadline_s)),
        by=caller.name,
        routes_before=_routes_before(plan, mirror),
        history=(Move(now, DeploymentState.PENDING, f"asked for by {caller.name}"),),
    )
    writes: list[Put | Delete] = [
        put(keys.deployment(deployment.id), deployment),
        put(keys.active(plan.blueprint), deployment.id),
    ]
    compares = [
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


def _routes_before(plan: Plan, mirror: Mirror) -> tuple[Route, ...]:
    table = mirror.get(RouteTable, keys.ROUTES) or RouteTable()
    mine = {change.slice for change in plan.changes}
    return tuple(route for route in table.routes if route.slice in mine)


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


def _progress(deployment: Deployment, mirror: Mirror, trial: Trial | None) -> list[dict[str, Any]]:
    """Return how far each of the deployment's fleets is, and how its requests went."""
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
                    "variant": _variant(table, change.slice, fleet),
                    "counted": _counted(trial, fleet),
                }
            )
    return found


def _variant(table: RouteTable, name: str, fleet: FleetId) -> str:
    variants = table.variants.get(name)
    return variants.names.get(fleet, "") if variants else ""


def _counted(trial: Trial | None, fleet: FleetId) -> dict[str, Any] | None:
    """Return what the fleet's requests showed since the deployment began."""
    window = trial.totals.get(fleet) if trial else None
    if window is None:
        return None
    return {
        "requests": window.requests,
        "errors": window.errors,
        "latency_ms_p50": quantile_ms(window, 0.5),
        "latency_ms_p99": quantile_ms(window, 0.99),
    }
