"""/v1/plans, /v1/deployments, /v1/blueprints: what runs, and how it comes to run."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require
from aether_core.api.begin import Beginning, Wish, begin, newest_input, plan_wish, refuse_second
from aether_core.api.once import RequestId, answer_of, commit_once
from aether_core.api.progress import find, progress, summary
from aether_core.blueprint import StrategyTable
from aether_core.deployment import ASKABLE, Ask, Asking, Deployment
from aether_core.errors import NotFound, Refused
from aether_core.landscape import landscape
from aether_core.model import Role, to_plain
from aether_core.node import Node
from aether_core.planning import plan_removal
from aether_core.store import Compare, Mirror, put
from aether_core.traffic import Trial

router = APIRouter(prefix="/v1", tags=["deployments"])


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
    beginning = plan_wish(wish, await node.fresh())
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

    async def planned(mirror: Mirror) -> Beginning:
        beginning = plan_wish(wish, mirror)
        if wish.revision is not None and newest_input(mirror) > wish.revision:
            raise Refused("the cluster changed since the plan was made", hint="plan again")
        await node.hooks.admit_deployment(to_plain(beginning.plan))
        return beginning

    return await begin(node, request_id, caller, planned)


@router.delete("/blueprints/{name}")
async def undeploy(
    name: str,
    request_id: RequestId,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Begin the removal of a blueprint: first its routes, then its instances."""

    async def planned(mirror: Mirror) -> Beginning:
        if mirror.entry(keys.blueprint(name)) is None:
            raise NotFound(f"blueprint '{name}' is not deployed")
        refuse_second(name, mirror)
        return Beginning(plan_removal(name, landscape(mirror)), (), StrategyTable(), None)

    return await begin(node, request_id, caller, planned)


@router.get("/deployments")
async def list_deployments(
    _: Annotated[Caller, require(Role.VIEWER)], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """All deployments, the newest last."""
    mirror = await node.fresh()
    found = sorted(mirror.all(Deployment, keys.DEPLOYMENTS), key=lambda d: d.created_at)
    return {"deployments": [summary(deployment) for deployment in found]}


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
        "fleets": progress(deployment, mirror, trial),
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
    mirror = await node.fresh()
    if before := await answer_of(node, request_id):
        return dict(before)
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
        f"deployment '{deployment.id}' is {deployment.state}: {what} is possible while it is "
        f"{' or '.join(ASKABLE[what])}",
        hint=f"aether deploy status {deployment.id}",
    )
