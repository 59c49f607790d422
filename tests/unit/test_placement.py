"""Placement as tables and properties."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.model import (
    Assignment,
    Fleet,
    FleetId,
    InstanceId,
    InstanceSpec,
    NodeId,
    Resources,
)
from aether_core.placement import Placing, Seat, place

MIB = 1024**2


def fleet(name: str, instances: int, *, version: str = "1", memory_mib: int = 0) -> Fleet:
    spec = InstanceSpec(
        name, version, f"{name}:{version}", "0", "pyz", resources=Resources(0, memory_mib * MIB)
    )
    return Fleet(FleetId(f"{name}@{version}"), "shop", spec, instances)


def seats(count: int, *, memory_mib: int = 1000) -> list[Seat]:
    return [Seat(NodeId(f"n{i}"), Resources(4, memory_mib * MIB)) for i in range(1, count + 1)]


def seated(*pairs: tuple[str, str, str]) -> list[Assignment]:
    return [Assignment(InstanceId(i), NodeId(n), FleetId(f)) for i, n, f in pairs]


def shown(placing: Placing) -> list[str]:
    added = [f"+{a.id}@{a.node}" for a in placing.add]
    return added + [f"-{a.id}@{a.node}" for a in placing.remove]


@pytest.mark.parametrize(
    ("fleets", "assignments", "nodes", "expected"),
    [
        ([fleet("web", 3)], [], 3, ["+web-1@n1", "+web-2@n2", "+web-3@n3"]),
        ([fleet("web", 2), fleet("api", 1)], [], 3, ["+api-1@n1", "+web-1@n2", "+web-2@n3"]),
        ([fleet("web", 1)], seated(("web-4", "n2", "web@1")), 3, []),
        (
            [fleet("web", 2)],
            seated(("web-1", "n1", "web@1"), ("web-2", "n1", "web@1"), ("web-10", "n1", "web@1")),
            2,
            ["-web-10@n1"],
        ),
        ([], seated(("web-1", "n1", "web@1")), 2, ["-web-1@n1"]),
        ([fleet("web", 1)], seated(("web-1", "gone", "web@1")), 2, ["+web-2@n1", "-web-1@gone"]),
        (
            [fleet("web", 1), fleet("web", 1, version="2")],
            seated(("web-1", "n1", "web@1")),
            2,
            ["+web-2@n2"],
        ),
    ],
    ids=["spreads", "two slices", "stays", "surplus", "no fleet", "node lost", "two versions"],
)
def test_table(
    fleets: list[Fleet], assignments: list[Assignment], nodes: int, expected: list[str]
) -> None:
    ordinals = {"web": max([int(a.id.split("-")[1]) for a in assignments], default=0) + 1}
    if any(a.node == "gone" for a in assignments):
        ordinals = {"web": 2}
    assert shown(place(fleets, assignments, seats(nodes), ordinals)) == expected


def test_what_does_not_fit_is_said_and_placed_nowhere() -> None:
    placing = place([fleet("big", 4, memory_mib=600)], [], seats(3), {})
    assert len(placing.add) == 3
    assert placing.unplaced == {FleetId("big@1"): 1}


def test_a_closed_seat_keeps_what_it_has_and_takes_nothing() -> None:
    closed = [Seat(NodeId("n1"), Resources(4, 0), is_open=False), *seats(2)[1:]]
    placing = place([fleet("web", 3)], seated(("web-1", "n1", "web@1")), closed, {"web": 2})
    assert shown(placing) == ["+web-2@n2", "+web-3@n2"]


def test_surplus_goes_from_a_closed_seat_first() -> None:
    closed = [Seat(NodeId("n1"), Resources(4, 0), is_open=False), *seats(2)[1:]]
    both = seated(("web-1", "n1", "web@1"), ("web-2", "n2", "web@1"))
    assert shown(place([fleet("web", 1)], both, closed, {"web": 3})) == ["-web-1@n1"]


fleets_strategy = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.tuples(st.integers(0, 9), st.integers(0, 400)),
    max_size=4,
)


@given(before=fleets_strategy, after=fleets_strategy, nodes=st.integers(1, 7))
def test_placing_is_balanced_bounded_stable_and_deterministic(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], nodes: int
) -> None:
    def make(wanted: dict[str, tuple[int, int]]) -> list[Fleet]:
        return [fleet(n, count, memory_mib=mib) for n, (count, mib) in wanted.items()]

    first = place(make(before), [], seats(nodes), {})
    second = place(make(after), first.add, seats(nodes), first.next_ordinals)
    assert second == place(make(after), first.add, seats(nodes), first.next_ordinals)

    now = [a for a in first.add if a not in second.remove] + list(second.add)
    assert len({a.id for a in now}) == len(now)
    memory: Counter[NodeId] = Counter()
    for wanted in make(after):
        mine = [a for a in now if a.fleet == wanted.id]
        assert len(mine) + second.unplaced.get(wanted.id, 0) == max(wanted.instances, len(mine))
        for assignment in mine:
            memory[assignment.node] += wanted.spec.resources.memory_bytes
    # Fleets that shrank or kept their size moved nothing; growing never stops anything.
    for name, (count, mib) in before.items():
        if name in after and after[name][1] == mib and count <= after[name][0]:
            assert not [a for a in second.remove if a.fleet == f"{name}@1"]
    if before == after:
        assert not second.add
        assert not second.remove
    if all(mib == before.get(name, (0, mib))[1] for name, (_, mib) in after.items()):
        assert all(used <= 1000 * MIB for used in memory.values())
