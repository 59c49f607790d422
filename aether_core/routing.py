"""The one routing document as a deployment moves it: pure, all of its slices at once."""

from aether_core.deployment import Deployment
from aether_core.drivers import SliceChange, Split
from aether_core.model import WHOLE_SHARE_BP, Fleet, FleetId, Route, RouteTable, Variants


def routed(deployment: Deployment, table: RouteTable) -> RouteTable:
    """Return the table with the shares of the deployment's current stage.

    While two versions share the traffic, what only the old one had stays routed too.
    """
    stage = deployment.now
    mine = {change.slice for change in deployment.changes}
    old_routes = deployment.routes_before if stage.share < 1.0 else ()
    shares = {name: share for name, share in table.shares.items() if name not in mine}
    variants = {name: one for name, one in table.variants.items() if name not in mine}
    for change in deployment.changes:
        if change.new is not None:
            shares[change.slice] = _shares(change.old, change.new, stage.share)
        elif stage.share < 1.0 and change.old is not None:
            shares[change.slice] = {change.old.id: WHOLE_SHARE_BP}
        if stage.split is not None and len(shares.get(change.slice, {})) > 1:
            variants[change.slice] = _variants(deployment.id, change, stage.split)
    routes = _merged(table.routes, mine, (*deployment.routes, *old_routes))
    return RouteTable(routes=routes, shares=shares, variants=variants)


def rolled_back(deployment: Deployment, table: RouteTable, old_share: float) -> RouteTable:
    """Return the table with the old version back, as far as `old_share` of the traffic (0..1)."""
    mine = {change.slice for change in deployment.changes}
    shares = {name: share for name, share in table.shares.items() if name not in mine}
    for change in deployment.changes:
        if change.old is not None:
            # Never more for the new version than it has: going back goes one way.
            had = share_of(change, table) / WHOLE_SHARE_BP
            to_new = min(had, 1.0 - old_share)
            shares[change.slice] = _shares(change.old, change.new or change.old, to_new)
    variants = {name: one for name, one in table.variants.items() if name not in mine}
    routes = _merged(table.routes, mine, deployment.routes_before)
    return RouteTable(routes=routes, shares=shares, variants=variants)


def share_of(change: SliceChange, table: RouteTable) -> int:
    """Return the basis points that go to the change's new fleet."""
    return table.shares.get(change.slice, {}).get(change.new.id, 0) if change.new else 0


def _merged(
    routes: tuple[Route, ...], mine: set[str], wanted: tuple[Route, ...]
) -> tuple[Route, ...]:
    """Replace the routes of `mine`; where two want the same place, the first one has it."""
    places: dict[tuple[str, str], Route] = {}
    for route in (*(r for r in routes if r.slice not in mine), *wanted):
        places.setdefault((route.host, route.prefix), route)
    return tuple(places.values())


def _shares(old: Fleet | None, new: Fleet, to_new: float) -> dict[FleetId, int]:
    """Share out 10,000 basis points between the two; who has none is left out."""
    if old is None or old.id == new.id:
        return {new.id: WHOLE_SHARE_BP}
    new_bp = round(to_new * WHOLE_SHARE_BP)
    parts = {new.id: new_bp, old.id: WHOLE_SHARE_BP - new_bp}
    return {fleet: bp for fleet, bp in parts.items() if bp}


def _variants(test: str, change: SliceChange, split: Split) -> Variants:
    assert change.old is not None, "a slice without an old version has one share"
    assert change.new is not None, "a slice without a new version has one share"
    names = {change.new.id: split.new, change.old.id: split.old}
    return Variants(test, split.by, split.name, split.force_header, change.new.id, names)
