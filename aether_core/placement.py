"""Which node runs which instance: pure, deterministic, spreading, moving as little as possible."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aether_core.model import Assignment, Fleet, FleetId, InstanceId, NodeId, Resources, slice_of


@dataclass(frozen=True)
class Seat:
    """A node that runs instances, and what it can carry in all. A closed one takes no new ones."""

    node: NodeId
    capacity: Resources
    is_open: bool = True


@dataclass(frozen=True)
class Placing:
    """What to change. `next_ordinals`: per slice, the number its next instance will get."""

    add: tuple[Assignment, ...]
    remove: tuple[Assignment, ...]
    next_ordinals: dict[str, int]
    unplaced: dict[FleetId, int]  # How many instances found no node with room.


def place(
    fleets: Iterable[Fleet],
    assignments: Iterable[Assignment],
    seats: Iterable[Seat],
    next_ordinals: Mapping[str, int],
) -> Placing:
    """Bring every fleet to its wanted number of instances on `seats`.

    An assignment on a node that is no seat counts for nothing and is removed; so is one of a fleet
    that no longer exists. Surplus goes from closed seats first, whose node may be gone, then from
    the fullest nodes, newest instance first.
    """
    board = _Board(seats, dict(next_ordinals))
    wanted = {fleet.id: fleet for fleet in fleets}
    for assignment in sorted(assignments, key=_age):
        fleet = wanted.get(assignment.fleet)
        if fleet is None or assignment.node not in board.capacity:
            board.remove.append(assignment)
        else:
            board.sit(assignment, fleet)
    for fleet in sorted(wanted.values(), key=lambda fleet: fleet.id):
        board.shrink(fleet)
    # The hungry first: a small instance fits where a large one no longer does.
    for fleet in sorted(wanted.values(), key=_hunger):
        board.grow(fleet)
    return Placing(
        add=tuple(board.add),
        remove=tuple(board.remove),
        next_ordinals=board.next_ordinals,
        unplaced=board.unplaced,
    )


class _Board:
    """The seats while they fill."""

    def __init__(self, seats: Iterable[Seat], next_ordinals: dict[str, int]) -> None:
        seats = tuple(seats)
        self.capacity = {seat.node: seat.capacity for seat in seats}
        self.open = [seat.node for seat in seats if seat.is_open]
        self.cpu = dict.fromkeys(self.capacity, 0.0)
        self.memory_bytes = dict.fromkeys(self.capacity, 0)
        self.of_slice: Counter[tuple[str, NodeId]] = Counter()
        self.of_fleet: dict[FleetId, list[Assignment]] = {}
        self.total: Counter[NodeId] = Counter()
        self.next_ordinals = next_ordinals
        self.add: list[Assignment] = []
        self.remove: list[Assignment] = []
        self.unplaced: dict[FleetId, int] = {}

    def sit(self, assignment: Assignment, fleet: Fleet, *, count: int = 1) -> None:
        node = assignment.node
        self.cpu[node] += count * fleet.spec.resources.cpu
        self.memory_bytes[node] += count * fleet.spec.resources.memory_bytes
        self.of_slice[fleet.spec.slice, node] += count
        self.total[node] += count
        seated = self.of_fleet.setdefault(fleet.id, [])
        if count > 0:
            seated.append(assignment)
        else:
            seated.remove(assignment)

    def shrink(self, fleet: Fleet) -> None:
        seated = self.of_fleet.get(fleet.id, [])
        while len(seated) > fleet.instances:
            per_node = Counter(assignment.node for assignment in seated)
            surplus = max(
                seated, key=lambda a: (a.node not in self.open, per_node[a.node], _age(a))
            )
            self.sit(surplus, fleet, count=-1)
            self.remove.append(surplus)

    def grow(self, fleet: Fleet) -> None:
        for missing in range(fleet.instances - len(self.of_fleet.get(fleet.id, [])), 0, -1):
            node = self._best_node(fleet)
            if node is None:
                self.unplaced[fleet.id] = missing
                return
            name = fleet.spec.slice
            ordinal = self.next_ordinals.get(name, 1)
            self.next_ordinals[name] = ordinal + 1
            assignment = Assignment(InstanceId(f"{name}-{ordinal}"), node, fleet.id)
            self.sit(assignment, fleet)
            self.add.append(assignment)

    def _best_node(self, fleet: Fleet) -> NodeId | None:
        """Return the node with room that has the fewest of the fleet, of the slice, of all."""
        per_node = Counter(a.node for a in self.of_fleet.get(fleet.id, []))
        name = fleet.spec.slice
        fitting = [node for node in self.open if self._fits(node, fleet.spec.resources)]
        return min(
            fitting,
            key=lambda n: (per_node[n], self.of_slice[name, n], self.total[n], n),
            default=None,
        )

    def _fits(self, node: NodeId, wanted: Resources) -> bool:
        capacity = self.capacity[node]
        # Without a reservation an instance fits anywhere: it claims what is left over.
        fits_cpu = not wanted.cpu or self.cpu[node] + wanted.cpu <= capacity.cpu + 1e-9
        memory_bytes = self.memory_bytes[node] + wanted.memory_bytes
        return fits_cpu and (not wanted.memory_bytes or memory_bytes <= capacity.memory_bytes)


def _age(assignment: Assignment) -> tuple[str, int]:
    """Order instances of a slice by when they were placed: "web-2" before "web-10"."""
    _, _, ordinal = assignment.id.rpartition("-")
    return slice_of(assignment.fleet), int(ordinal)


def _hunger(fleet: Fleet) -> tuple[int, float, FleetId]:
    return -fleet.spec.resources.memory_bytes, -fleet.spec.resources.cpu, fleet.id
