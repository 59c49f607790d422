"""What the mirror shows, gathered for deciders: which nodes live, what they carry."""

from aether_core import keys
from aether_core.model import (
    ArtifactRecord,
    Assignment,
    Fleet,
    NodeId,
    NodeRecord,
    NodeState,
    NodeStatus,
    Resources,
    RouteTable,
    SliceRecord,
)
from aether_core.placement import Seat
from aether_core.planning import Landscape
from aether_core.store import Mirror


def live_nodes(mirror: Mirror) -> set[NodeId]:
    """Return the nodes that hold their lease."""
    return {status.id for status in mirror.all(NodeStatus, keys.NODE_STATUSES)}


def seats(mirror: Mirror, *, lost: frozenset[NodeId] = frozenset()) -> list[Seat]:
    """Return where instances may be: closed where nothing new should go; not on `lost` nodes."""
    statuses = {s.id: s for s in mirror.all(NodeStatus, keys.NODE_STATUSES)}
    found = []
    for record in mirror.all(NodeRecord, keys.NODES):
        if record.id not in lost and record.state != NodeState.DECOMMISSIONED:
            status = statuses.get(record.id)
            is_open = status is not None and record.state == NodeState.ON_DUTY
            capacity = status.capacity if status else Resources()
            found.append(Seat(record.id, capacity, is_open=is_open))
    return found


def landscape(mirror: Mirror) -> Landscape:
    """Return what a plan is made against."""
    records = mirror.all(ArtifactRecord, keys.ARTIFACTS)
    return Landscape(
        revision=mirror.revision,
        artifacts={f"{record.name}:{record.version}": record for record in records},
        fleets={fleet.id: fleet for fleet in mirror.all(Fleet, keys.FLEETS)},
        slices={record.name: record for record in mirror.all(SliceRecord, keys.SLICES)},
        routes=mirror.get(RouteTable, keys.ROUTES) or RouteTable(),
        assignments=tuple(mirror.all(Assignment, keys.INSTANCES)),
        seats=tuple(seats(mirror)),
    )
