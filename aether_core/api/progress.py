"""Deployments as the API shows them: which one is meant, how far it is, how its requests went."""

from typing import Any

from aether_core import keys
from aether_core.deployment import Deployment
from aether_core.errors import NotFound, Refused
from aether_core.model import (
    FleetId,
    InstanceState,
    InstanceStatus,
    RouteTable,
)
from aether_core.store import Mirror
from aether_core.traffic import Trial, quantile_ms


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


def summary(deployment: Deployment) -> dict[str, Any]:
    """Return one line about a deployment."""
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


def progress(deployment: Deployment, mirror: Mirror, trial: Trial | None) -> list[dict[str, Any]]:
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
