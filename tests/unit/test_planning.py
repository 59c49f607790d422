"""Plans: what `--dry-run` lists is all that happens; what cannot be is refused before it begins."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.blueprint import Blueprint, parse_blueprint
from aether_core.drivers import Stage
from aether_core.errors import ConfigError, Refused
from aether_core.model import (
    ArtifactRecord,
    ArtifactState,
    FleetId,
    NodeId,
    Resources,
    Route,
    RouteTable,
    SliceRecord,
    slice_of,
)
from aether_core.placement import Seat, place
from aether_core.planning import Landscape, Plan, changes_of, plan_deployment, plan_removal
from tests.unit.clocks import START

MIB = 1024**2


AT_ONCE = Stage(share=1.0, new_fraction=1.0, old_fraction=0.0)


def planned(blueprint: Blueprint, land: Landscape) -> Plan:
    """Return the plan for moving everything in one step."""
    return plan_deployment(blueprint, changes_of(blueprint, land), (AT_ONCE,), land)


def artifact(reference: str, *, state: ArtifactState = ArtifactState.STORED) -> ArtifactRecord:
    name, _, version = reference.partition(":")
    return ArtifactRecord(name, version, "pyz", 1, reference, state, (), START, "ci")


def blueprint(name: str = "shop", /, **slices: Mapping[str, Any]) -> Blueprint:
    """Return a blueprint of slices, each by default one instance of "<name>:1"."""
    tables = [{"name": key, "artifact": f"{key}:1", **value} for key, value in slices.items()]
    return parse_blueprint({"blueprint": {"name": name, "version": "1"}, "slices": tables})


EMPTY = Landscape(
    revision=7,
    artifacts={
        f"{record.name}:{record.version}": record
        for record in map(artifact, ["web:1", "web:2", "api:1", "api:2", "job:1"])
    },
    fleets={},
    slices={},
    routes=RouteTable(),
    assignments=(),
    seats=tuple(Seat(NodeId(f"n{n}"), Resources(4, 1000 * MIB)) for n in (1, 2, 3)),
)


def deployed(made: Blueprint, land: Landscape = EMPTY) -> Landscape:
    """Return the landscape after the blueprint was deployed and all traffic moved to it."""
    plan = planned(made, land)
    fleets = {c.new.id: c.new for c in plan.changes if c.new}
    ended = {c.old.id for c in plan.changes if c.old} - set(fleets)
    kept = {name: fleet for name, fleet in land.fleets.items() if name not in ended} | fleets
    ordinals = {record.name: record.next_ordinal for record in land.slices.values()}
    placing = place(kept.values(), land.assignments, land.seats, ordinals)
    assignments = [a for a in land.assignments if a not in placing.remove]
    routes = [r for r in land.routes.routes if land.slices[r.slice].blueprint != made.name]
    shares = {c.slice: {c.new.id: 10_000} for c in plan.changes if c.new}
    gone = {c.slice for c in plan.changes if c.new is None}
    others = {k: v for k, v in land.routes.shares.items() if k not in gone}
    records = {
        c.slice: SliceRecord(c.slice, made.name, placing.next_ordinals.get(c.slice, 1))
        for c in plan.changes
        if c.new
    }
    return replace(
        land,
        fleets=kept,
        slices={k: v for k, v in land.slices.items() if k not in gone} | records,
        routes=RouteTable((*routes, *plan.routes), others | shares),
        assignments=(*assignments, *placing.add),
    )


def shown(plan: Plan) -> list[str]:
    """Return what a plan starts, stops and keeps, fleets by slice and artifact version."""

    def counted(sign: str, nodes: Mapping[FleetId, tuple[NodeId, ...]]) -> list[str]:
        return [f"{sign}{name.rpartition('-')[0]}:{','.join(at)}" for name, at in nodes.items()]

    keeps = [f"={name.rpartition('-')[0]}" for name in plan.keeps]
    return counted("+", plan.starts) + counted("-", plan.stops) + keeps


SHOP = blueprint(web={"instances": 3}, api={"instances": 2})


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (SHOP, ["=web@1", "=api@1"]),
        (
            blueprint(web={"instances": 3, "artifact": "web:2"}, api={"instances": 2}),
            ["+web@2:n1,n2,n3", "-web@1:n1,n2,n3", "=api@1"],
        ),
        (blueprint(web={"instances": 4}, api={"instances": 2}), ["+web@1:n3", "=web@1", "=api@1"]),
        (blueprint(web={"instances": 2}, api={"instances": 2}), ["-web@1:n2", "=web@1", "=api@1"]),
        (blueprint(web={"instances": 3}), ["-api@1:n1,n2", "=web@1"]),
        (
            blueprint(web={"instances": 3}, api={"instances": 2}, job={}),
            ["+job@1:n3", "=web@1", "=api@1"],
        ),
        (
            blueprint(web={"instances": 3, "env": {"A": "1"}}, api={"instances": 2}),
            ["+web@1:n1,n2,n3", "-web@1:n1,n2,n3", "=api@1"],
        ),
    ],
    ids=["nothing", "version", "more", "fewer", "slice gone", "slice new", "variable"],
)
def test_what_a_second_deployment_does(after: Blueprint, expected: list[str]) -> None:
    plan = planned(after, deployed(SHOP))
    assert shown(plan) == expected
    assert plan.revision == 7


def test_a_first_deployment_lists_everything() -> None:
    plan = planned(
        blueprint(web={"instances": 2, "min_available": 1, "route": {"prefix": "/a"}}), EMPTY
    )
    assert shown(plan) == ["+web@1:n1,n2"]
    (change,) = plan.changes
    assert change.old is None
    assert change.new is not None
    assert (change.new.instances, change.new.min_available) == (2, 1)
    assert plan.routes == (Route("*", "/a", "web"),)
    assert [load.instances for load in plan.peak] == [1, 1, 0]


def test_removing_lists_what_stops_and_nothing_of_others() -> None:
    land = deployed(blueprint("batch", job={"instances": 2}), deployed(SHOP))
    plan = plan_removal("shop", land)
    assert [line for line in shown(plan) if not line.startswith("-")] == []
    assert {slice_of(name) for name in plan.stops} == {"web", "api"}
    assert sum(map(len, plan.stops.values())) == 5
    assert [change.new for change in plan.changes] == [None, None]
    assert plan.routes == ()


slices = st.dictionaries(
    st.sampled_from(["web", "api", "job"]),
    st.fixed_dictionaries(
        {"instances": st.integers(1, 5)},
        optional={"resources": st.fixed_dictionaries({"cpu": st.sampled_from([0.1, 0.5, 0.7])})},
    ),
    min_size=1,
)


@given(before=slices, after=slices)
def test_a_plan_lists_everything_the_deployment_changes(
    before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]
) -> None:
    try:
        land, wanted = deployed(blueprint("shop", **before)), blueprint("shop", **after)
        plan = planned(wanted, land)
    except Refused:
        return
    then = deployed(wanted, land)
    changed = Counter(a.fleet for a in then.assignments)
    changed.subtract(a.fleet for a in land.assignments)
    listed = Counter({fleet: len(nodes) for fleet, nodes in plan.starts.items()})
    listed.subtract({fleet: len(nodes) for fleet, nodes in plan.stops.items()})
    assert {k: v for k, v in listed.items() if v} == {k: v for k, v in changed.items() if v}
    for load in plan.peak:
        assert load.reserved.cpu <= load.capacity.cpu + 1e-6


def test_planning_what_is_there_plans_nothing() -> None:
    land = deployed(SHOP)
    assert deployed(SHOP, land) == land


# Pinned counts


@pytest.mark.parametrize(
    ("pinned", "expected"), [(None, 3), (4, 4), (1, 2), (50, 6)], ids=["no", "yes", "low", "high"]
)
def test_a_pinned_count_goes_first_but_never_leaves_the_bounds(
    pinned: int | None, expected: int
) -> None:
    made = blueprint(web={"instances": 3, "scale": {"min": 2, "max": 6}})
    land = replace(EMPTY, slices={"web": SliceRecord("web", "shop", 9, pinned)})
    (change,) = planned(made, land).changes
    assert change.new is not None
    assert change.new.instances == expected


# Refusals


def test_every_missing_artifact_is_named_with_what_there_is() -> None:
    staged = artifact("job:2", state=ArtifactState.STAGED)
    land = replace(EMPTY, artifacts={**EMPTY.artifacts, "job:2": staged})
    made = blueprint(web={"artifact": "web:3"}, api={}, job={"artifact": "job:2"}, new={})
    with pytest.raises(ConfigError) as caught:
        planned(made, land)
    assert [(p.key, p.reason) for p in caught.value.problems] == [
        ("slices[1].artifact", "artifact 'web:3' is not in the cluster; there is web:1, web:2"),
        ("slices[3].artifact", "artifact 'job:2' is not in the cluster; there is job:1, job:2"),
        ("slices[4].artifact", "artifact 'new:1' is not in the cluster"),
    ]


def test_every_taken_name_and_route_is_refused_together() -> None:
    other = blueprint("batch", web={"route": {"prefix": "/x"}}, job={"route": {"host": "b"}})
    made = blueprint(web={}, api={"route": {"host": "b"}})
    with pytest.raises(Refused) as caught:
        planned(made, deployed(other))
    assert caught.value.message == (
        "slice 'web' belongs to blueprint 'batch'; "
        "route b/ of slice 'api' is taken by slice 'job' of blueprint 'batch'"
    )


def test_a_blueprint_may_move_its_own_routes() -> None:
    before = blueprint(web={"route": {"prefix": "/x"}}, api={"route": {"prefix": "/y"}})
    after = blueprint(web={"route": {"prefix": "/y"}}, api={"route": {"prefix": "/x"}})
    assert planned(after, deployed(before)).routes == (
        Route("*", "/y", "web"),
        Route("*", "/x", "api"),
    )


def test_no_room_is_refused_with_the_sums() -> None:
    made = blueprint(web={"instances": 4, "resources": {"memory": "600MiB", "cpu": 0.5}})
    with pytest.raises(Refused) as caught:
        planned(made, EMPTY)
    assert caught.value.message.startswith("1 of 4 instances of 'web@1-")
    assert caught.value.message.endswith(
        "find no node with 0.5 cores and 600 MiB free; 3 nodes have 3000 MiB in all"
    )


def test_old_and_new_must_fit_side_by_side() -> None:
    big = {"instances": 3, "resources": {"memory": "600MiB"}}
    land = deployed(blueprint(web=big))
    with pytest.raises(Refused, match="3 of 3 instances"):
        planned(blueprint(web={**big, "artifact": "web:2"}), land)


def test_a_node_that_takes_nothing_new_is_no_room() -> None:
    closed = tuple(replace(seat, is_open=False) for seat in EMPTY.seats)
    with pytest.raises(Refused, match="0 nodes have 0 MiB in all"):
        planned(blueprint(web={}), replace(EMPTY, seats=closed))


@pytest.mark.parametrize(("kind", "is_refused"), [("whl", True), ("tar_gz", True), ("jar", False)])
def test_kinds_that_need_an_entry(kind: str, is_refused: bool) -> None:
    record = replace(artifact("web:1"), kind=kind)
    land = replace(EMPTY, artifacts={"web:1": record})
    if not is_refused:
        assert planned(blueprint(web={}), land).starts
        return
    with pytest.raises(ConfigError, match="slice 'web' has no entry") as caught:
        planned(blueprint(web={}), land)
    assert caught.value.hint.startswith("entry = ")


def test_the_peak_counts_old_and_new() -> None:
    made = blueprint(web={"instances": 3, "resources": {"memory": "100MiB", "cpu": 0.5}})
    land = deployed(made)
    plan = planned(
        blueprint(web={"instances": 3, "artifact": "web:2", "resources": {"memory": "200MiB"}}),
        land,
    )
    assert [load.instances for load in plan.peak] == [2, 2, 2]
    assert {load.reserved for load in plan.peak} == {Resources(0.5, 300 * MIB)}
