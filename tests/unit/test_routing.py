"""The one routing document, as a deployment moves it there and back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.deployment import Deployment
from aether_core.drivers import SliceChange, Split, Stage
from aether_core.model import WHOLE_SHARE_BP, FleetId, Route, RouteTable, Variants
from aether_core.routing import rolled_back, routed, share_of
from tests.unit.fleets import change, fleet
from tests.unit.rollouts import deployment

OLD, NEW = FleetId("web@1"), FleetId("web@2")
OTHER = Route("*", "/other", "other")
TABLE = RouteTable(
    routes=(OTHER, Route("*", "/web", "web")),
    shares={"other": {FleetId("other@1"): 10_000}, "web": {OLD: 10_000}},
)
SPLIT = Split("header", "x-user", "x-variant", "A", "B")


def at(share: float, *changes: SliceChange, split: Split | None = None) -> Deployment:
    """Return a deployment whose current stage has this share."""
    begun = deployment("immediate", *(changes or (change(),)))
    return replace(begun, stages=(Stage(share, 1.0, 1.0, split=split),))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, {OLD: 10_000}),
        (0.05, {NEW: 500, OLD: 9_500}),
        (1 / 3, {NEW: 3_333, OLD: 6_667}),
        (1.0, {NEW: 10_000}),
    ],
)
def test_a_stage_moves_its_share_and_nothing_else(share: float, expected: object) -> None:
    table = routed(at(share), TABLE)
    assert table.shares == {"other": TABLE.shares["other"], "web": expected}
    assert set(table.routes) == set(TABLE.routes)
    assert not table.variants


def test_a_new_slice_is_routed_as_a_whole_at_once() -> None:
    new = SliceChange("new", None, fleet("1", name="new"))
    table = routed(at(0.05, change(), new), TABLE)
    assert table.shares["new"] == {new.new.id if new.new else "": 10_000}
    assert Route("*", "/new", "new") in table.routes


def test_a_slice_that_goes_stays_routed_until_all_traffic_has_moved() -> None:
    gone = SliceChange("gone", fleet("1", name="gone"), None)
    before = routed(at(1.0, SliceChange("gone", None, gone.old)), TABLE)
    assert routed(at(0.5, change(), gone), before).shares["gone"] == {FleetId("gone@1"): 10_000}
    assert Route("*", "/gone", "gone") in routed(at(0.5, change(), gone), before).routes
    after = routed(at(1.0, change(), gone), before)
    assert "gone" not in after.shares
    assert after.routes == (OTHER, Route("*", "/web", "web"))


def test_a_place_belongs_to_the_new_version_while_both_share() -> None:
    moved = replace(at(0.5), routes=(Route("*", "/shop", "web"),))
    assert set(routed(moved, TABLE).routes) == {
        OTHER,
        Route("*", "/shop", "web"),
        Route("*", "/web", "web"),
    }
    # What the new version's slice takes over from another of the same blueprint is the new one's.
    taken = replace(at(0.5, change(), change(name="api")), routes=(Route("*", "/web", "api"),))
    assert routed(taken, TABLE).routes == (
        OTHER,
        Route("*", "/web", "api"),
        Route("*", "/api", "api"),
    )
    assert set(routed(replace(moved, stages=at(1.0).stages), TABLE).routes) == {
        OTHER,
        Route("*", "/shop", "web"),
    }


def test_a_split_names_its_variants_while_there_are_two() -> None:
    table = routed(at(0.1, split=SPLIT), TABLE)
    names = {NEW: "B", OLD: "A"}
    assert table.variants == {
        "web": Variants("shop-2", "header", "x-user", "x-variant", NEW, names)
    }
    assert not routed(at(1.0, split=SPLIT), table).variants
    assert not rolled_back(at(0.1, split=SPLIT), table, 1.0).variants


def test_a_slice_that_does_not_change_has_no_variants() -> None:
    same = SliceChange("same", fleet("1", name="same"), fleet("1", name="same"))
    new = SliceChange("new", None, fleet("1", name="new"))
    table = routed(at(0.1, change(), same, new, split=SPLIT), TABLE)
    assert list(table.variants) == ["web"]
    assert table.shares["same"] == {FleetId("same@1"): 10_000}


def test_going_back_undoes_routes_and_shares() -> None:
    new = SliceChange("new", None, fleet("1", name="new"))
    gone = SliceChange("gone", fleet("1", name="gone"), None)
    before = routed(at(1.0, SliceChange("gone", None, gone.old)), TABLE)
    moving = at(1.0, change(), new, gone)
    back = rolled_back(moving, routed(moving, before), 1.0)
    assert back.shares == before.shares
    assert set(back.routes) == set(before.routes)


@pytest.mark.parametrize(
    ("had", "affordable", "to_new"),
    [(1.0, 1.0, 0), (1.0, 0.25, 7_500), (0.1, 0.25, 1_000), (0.0, 0.25, 0), (0.5, 0.0, 5_000)],
)
def test_going_back_goes_as_far_as_the_old_version_can_carry(
    had: float, affordable: float, to_new: int
) -> None:
    back = rolled_back(at(had), routed(at(had), TABLE), affordable)
    assert share_of(change(), back) == to_new


shares = st.floats(0, 1)


@given(share=shares, affordable=shares, later=shares, has_split=st.booleans())
def test_shares_are_whole_and_doing_it_twice_changes_nothing(
    share: float, affordable: float, later: float, has_split: bool
) -> None:
    new = SliceChange("new", None, fleet("1", name="new"))
    gone = SliceChange("gone", fleet("1", name="gone"), None)
    moving = at(share, change(), change(name="api"), new, gone, split=SPLIT if has_split else None)
    there = routed(moving, TABLE)
    back = rolled_back(moving, there, affordable)
    for table in (there, back):
        for name, parts in table.shares.items():
            assert sum(parts.values()) == WHOLE_SHARE_BP, name
            assert all(parts.values()), name
        assert set(table.variants) <= {n for n, parts in table.shares.items() if len(parts) == 2}
    assert routed(moving, there) == there
    assert rolled_back(moving, back, affordable) == back
    further = rolled_back(moving, back, later)
    for one in moving.trials:
        assert share_of(one, further) <= share_of(one, back) <= share_of(one, there)
