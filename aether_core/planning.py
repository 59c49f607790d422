"""What a blueprint would change, decided before anything is: pure. `--dry-run` prints it."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from aether_core.blueprint import Blueprint, SliceTable, instance_spec
from aether_core.drivers import SliceChange, Stage
from aether_core.errors import ConfigError, Problem, Refused
from aether_core.model import (
    ArtifactRecord,
    ArtifactState,
    Assignment,
    Fleet,
    FleetId,
    NodeId,
    Resources,
    Route,
    RouteTable,
    SliceRecord,
    fleet_id,
)
from aether_core.placement import Seat, place

MIB = 1024**2


@dataclass(frozen=True)
class Landscape:
    """What a plan is made against, as of `revision`."""

    revision: int
    artifacts: Mapping[str, ArtifactRecord]  # By "name:version".
    fleets: Mapping[FleetId, Fleet]
    slices: Mapping[str, SliceRecord]
    routes: RouteTable
    assignments: tuple[Assignment, ...]
    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class Load:
    """What instances reserve on a node, once old and new ones run side by side."""

    node: NodeId
    instances: int
    reserved: Resources
    capacity: Resources


@dataclass(frozen=True)
class Plan:
    """`starts` and `stops`: fleet to the nodes its instances start or stop on."""

    blueprint: str
    version: str
    revision: int
    changes: tuple[SliceChange, ...]
    routes: tuple[Route, ...]
    starts: dict[FleetId, tuple[NodeId, ...]]
    stops: dict[FleetId, tuple[NodeId, ...]]
    keeps: tuple[FleetId, ...]
    peak: tuple[Load, ...]


def changes_of(blueprint: Blueprint, land: Landscape) -> tuple[SliceChange, ...]:
    """Return what deploying changes. Errors: ConfigError, Refused with every reason at once."""
    _refuse_missing_artifacts(blueprint, land)
    _refuse_taken_names(blueprint, land)
    changes = [_change(piece, blueprint.name, land) for piece in blueprint.slices]
    wanted = {piece.name for piece in blueprint.slices}
    for record in land.slices.values():
        if record.blueprint == blueprint.name and record.name not in wanted:
            changes.append(SliceChange(record.name, _serving(record.name, land), None))
    return tuple(changes)


def plan_deployment(
    blueprint: Blueprint,
    changes: tuple[SliceChange, ...],
    stages: tuple[Stage, ...],
    land: Landscape,
) -> Plan:
    """Return what deploying does. Errors: Refused when a stage finds no room."""
    head = _Head(blueprint.name, blueprint.blueprint.version, blueprint.routes())
    return _plan(head, changes, stages, land)


def plan_removal(name: str, land: Landscape) -> Plan:
    """Return what removing a blueprint does."""
    changes = tuple(
        SliceChange(record.name, _serving(record.name, land), None)
        for record in land.slices.values()
        if record.blueprint == name
    )
    return _plan(_Head(name, "", ()), changes, (), land)


@dataclass(frozen=True)
class _Head:
    blueprint: str
    version: str
    routes: tuple[Route, ...]


def _plan(
    head: _Head, changes: tuple[SliceChange, ...], stages: tuple[Stage, ...], land: Landscape
) -> Plan:
    ordinals = {record.name: record.next_ordinal for record in land.slices.values()}
    assignments = {a.id: a for a in land.assignments}
    added: list[Assignment] = []
    peak: list[Assignment] = list(land.assignments)
    fleets = dict(land.fleets)
    # Every stage in turn, before what it no longer needs goes: then everything must fit at once.
    for fleets in _stage_fleets(changes, stages, land):
        placing = place(fleets.values(), assignments.values(), land.seats, ordinals)
        if placing.unplaced:
            raise Refused(_no_room(placing.unplaced, fleets, land))
        ordinals = placing.next_ordinals
        for gone in placing.remove:
            del assignments[gone.id]
        assignments |= {a.id: a for a in placing.add}
        added += placing.add
        peak = max(peak, list(assignments.values()), key=len)
    ending = {c.old.id for c in changes if c.old and (c.new is None or c.new.id != c.old.id)}
    surplus = [a for a in land.assignments if a.id not in assignments and a.fleet not in ending]
    leaving = [a for a in land.assignments if a.fleet in ending]
    return Plan(
        blueprint=head.blueprint,
        version=head.version,
        revision=land.revision,
        changes=changes,
        routes=head.routes,
        starts=_nodes_by_fleet(added),
        stops=_nodes_by_fleet([*leaving, *surplus]),
        keeps=tuple(c.new.id for c in changes if c.new and c.old and c.new.id == c.old.id),
        peak=_loads(peak, fleets, land.seats),
    )


def _stage_fleets(
    changes: tuple[SliceChange, ...], stages: tuple[Stage, ...], land: Landscape
) -> Iterator[dict[FleetId, Fleet]]:
    """Yield all fleets as each stage wants them while its new instances start."""
    before: Stage | None = None
    for stage in stages:
        fleets = dict(land.fleets)
        for change in changes:
            if change.old is not None:
                count = kept_of(change.old, before) if before else change.old.instances
                fleets[change.old.id] = replace(change.old, instances=count)
            if change.new is not None:
                count = wanted_of(change.new, change.old, stage)
                fleets[change.new.id] = replace(change.new, instances=count)
        yield fleets
        before = stage


def wanted_of(new: Fleet, old: Fleet | None, stage: Stage) -> int:
    """Return how many of the new fleet's instances the stage wants.

    Without another version to share its traffic with, a fleet is wanted whole from the first.
    """
    has_rival = old is not None and old.id != new.id
    return part(new, stage.new_fraction if has_rival else 1.0)


def kept_of(old: Fleet, stage: Stage) -> int:
    """Return how many of the old fleet's instances run on once the stage's traffic has moved.

    A fleet that has traffic is never without an instance, whatever its strategy may do without.
    """
    return max(part(old, stage.old_fraction), 1 if stage.share < 1.0 else 0)


def part(fleet: Fleet, fraction: float) -> int:
    """Return a fraction of the fleet's instances, rounded up but for what floats add."""
    return math.ceil(fleet.instances * fraction - 1e-9)


def _change(piece: SliceTable, blueprint: str, land: Landscape) -> SliceChange:
    record = land.slices.get(piece.name)
    pinned = record.pinned if record else None
    # Who scaled it did so within the bounds of then; nobody may leave those of now.
    instances = min(max(pinned or piece.instances, piece.scale.min), piece.scale.max)
    spec = instance_spec(piece, land.artifacts[piece.artifact])
    new = Fleet(fleet_id(spec), blueprint, spec, instances, piece.min_available)
    old = _serving(piece.name, land)
    return SliceChange(piece.name, old, new)


def _serving(name: str, land: Landscape) -> Fleet | None:
    """Return the fleet that has the slice's traffic."""
    shares = land.routes.shares.get(name, {})
    return next((land.fleets[fleet] for fleet in shares if fleet in land.fleets), None)


def _refuse_missing_artifacts(blueprint: Blueprint, land: Landscape) -> None:
    problems = []
    for number, piece in enumerate(blueprint.slices, start=1):
        record = land.artifacts.get(piece.artifact)
        if record is None or record.state != ArtifactState.STORED:
            name = piece.artifact.partition(":")[0]
            versions = [key for key in land.artifacts if key.partition(":")[0] == name]
            there = f"; there is {', '.join(sorted(versions))}" if versions else ""
            reason = f"artifact '{piece.artifact}' is not in the cluster{there}"
            hint = "aether artifact upload FILE"
            key = f"slices[{number}].artifact"
            problems.append(Problem(f"blueprint '{blueprint.name}'", 0, key, reason, hint))
    if problems:
        raise ConfigError(f"blueprint '{blueprint.name}' cannot run", problems=tuple(problems))


def _refuse_taken_names(blueprint: Blueprint, land: Landscape) -> None:
    reasons = []
    for piece in blueprint.slices:
        record = land.slices.get(piece.name)
        if record is not None and record.blueprint != blueprint.name:
            reasons.append(f"slice '{piece.name}' belongs to blueprint '{record.blueprint}'")
    others = {
        (route.host, route.prefix): route.slice
        for route in land.routes.routes
        if land.slices[route.slice].blueprint != blueprint.name
    }
    for route in blueprint.routes():
        taken = others.get((route.host, route.prefix))
        if taken is not None:
            reasons.append(
                f"route {route.host}{route.prefix} of slice '{route.slice}' is taken by slice "
                f"'{taken}' of blueprint '{land.slices[taken].blueprint}'"
            )
    if reasons:
        raise Refused("; ".join(reasons), hint="choose other names, hosts or prefixes")


def _no_room(
    unplaced: Mapping[FleetId, int], fleets: Mapping[FleetId, Fleet], land: Landscape
) -> str:
    parts = []
    for name, count in unplaced.items():
        need = fleets[name].spec.resources
        parts.append(
            f"{count} of {fleets[name].instances} instances of '{name}' find no node with "
            f"{need.cpu:g} cores and {need.memory_bytes // MIB} MiB free"
        )
    nodes = [seat for seat in land.seats if seat.is_open]
    total = sum(seat.capacity.memory_bytes for seat in nodes) // MIB
    return f"{'; '.join(parts)}; {len(nodes)} nodes have {total} MiB in all"


def _nodes_by_fleet(assignments: Iterable[Assignment]) -> dict[FleetId, tuple[NodeId, ...]]:
    found: dict[FleetId, tuple[NodeId, ...]] = {}
    for assignment in assignments:
        found[assignment.fleet] = (*found.get(assignment.fleet, ()), assignment.node)
    return {fleet: tuple(sorted(nodes)) for fleet, nodes in sorted(found.items())}


def _loads(
    assignments: Iterable[Assignment], fleets: Mapping[FleetId, Fleet], seats: Iterable[Seat]
) -> tuple[Load, ...]:
    loads = {seat.node: Load(seat.node, 0, Resources(), seat.capacity) for seat in seats}
    counted = Counter((a.node, a.fleet) for a in assignments if a.fleet in fleets)
    for (node, fleet), count in counted.items():
        if node in loads:
            need, load = fleets[fleet].spec.resources, loads[node]
            reserved = Resources(
                load.reserved.cpu + count * need.cpu,
                load.reserved.memory_bytes + count * need.memory_bytes,
            )
            loads[node] = replace(load, instances=load.instances + count, reserved=reserved)
    return tuple(loads[node] for node in sorted(loads))
