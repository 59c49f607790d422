"""What every strategy must do: it is pure, so values in and values out are all there is to it."""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import pytest

from aether_core.drivers import SliceChange, Stage, Strategy
from aether_core.errors import ConfigError
from aether_core.model import Fleet, FleetId, InstanceSpec, decode, encode
from aether_core.planning import part
from aether_core.plugins import build_driver, load_driver

GROUP = "aether.strategies"
UNKNOWN = "no-strategy-has-this-option"
MOST_INSTANCES = 10


def _fleet(name: str, version: str, instances: int) -> Fleet:
    spec = InstanceSpec(name, version, f"{name}:{version}", "0", "pyz")
    return Fleet(FleetId(f"{name}@{version}"), "suite", spec, instances)


def _replaced(name: str, old: int, new: int) -> SliceChange:
    return SliceChange(name, _fleet(name, "1", old), _fleet(name, "2", new))


#: What deployments change: nothing that ran before, one slice of any size, several at once.
SITUATIONS: dict[str, tuple[SliceChange, ...]] = {
    "nothing": (),
    "a new slice": (SliceChange("web", None, _fleet("web", "1", 3)),),
    "a slice that goes": (SliceChange("web", _fleet("web", "1", 3), None),),
    **{f"{n} instances": (_replaced("web", n, n),) for n in range(1, MOST_INSTANCES + 1)},
    "more instances": (_replaced("web", 2, 7),),
    "fewer instances": (_replaced("web", 7, 2),),
    "two slices": (_replaced("web", 5, 5), _replaced("api", 2, 2)),
    "all of it": (
        _replaced("web", 5, 5),
        SliceChange("new", None, _fleet("new", "1", 9)),
        SliceChange("gone", _fleet("gone", "1", 9), None),
    ),
}


class StrategySuite:
    """Inherit and set `name`; and `options`, where the strategy cannot do without."""

    name: ClassVar[str]
    options: ClassVar[Mapping[str, object]] = {}

    @pytest.fixture
    def strategy(self) -> Strategy:
        built: Strategy = build_driver(GROUP, self.name)
        return built

    @pytest.fixture(params=[*SITUATIONS.values()], ids=[*SITUATIONS])
    def changes(self, request: pytest.FixtureRequest) -> tuple[SliceChange, ...]:
        found: tuple[SliceChange, ...] = request.param
        return found

    @pytest.fixture
    def stages(self, strategy: Strategy, changes: tuple[SliceChange, ...]) -> tuple[Stage, ...]:
        return strategy.stages(changes, self.options)

    def test_its_class_says_what_it_is(self) -> None:
        kind = load_driver(GROUP, self.name)
        assert isinstance(kind(), Strategy)

    def test_it_ends_with_all_traffic_on_a_whole_new_fleet(self, stages: tuple[Stage, ...]) -> None:
        assert stages, "there is at least one stage"
        assert stages[-1].share == 1.0
        assert stages[-1].new_fraction == 1.0

    def test_shares_and_fractions_are_parts_of_one(self, stages: tuple[Stage, ...]) -> None:
        for stage in stages:
            assert 0.0 <= stage.share <= 1.0
            assert 0.0 <= stage.new_fraction <= 1.0
            assert 0.0 <= stage.old_fraction <= 1.0

    def test_from_stage_to_stage_the_new_version_grows(self, stages: tuple[Stage, ...]) -> None:
        for one, after in pairwise(stages):
            assert one.share <= after.share
            assert one.new_fraction <= after.new_fraction
            assert (one.share, one.new_fraction) != (after.share, after.new_fraction)
            assert one.old_fraction >= after.old_fraction

    def test_whoever_has_traffic_has_instances(
        self, stages: tuple[Stage, ...], changes: tuple[SliceChange, ...]
    ) -> None:
        for stage in stages:
            for change in changes:
                if change.old and change.new:
                    assert stage.share == 0 or part(change.new, stage.new_fraction)
                    assert stage.share == 1 or part(change.old, stage.old_fraction)

    def test_waits_end(self, stages: tuple[Stage, ...]) -> None:
        for stage in stages:
            assert stage.hold_s >= 0
            assert 0 <= stage.patience_s < float("inf")

    def test_whom_a_split_serves_is_told_apart(self, stages: tuple[Stage, ...]) -> None:
        for split in (stage.split for stage in stages if stage.split):
            assert split.by in ("header", "cookie", "query")
            assert split.name
            assert split.old != split.new

    def test_the_same_question_has_the_same_answer(
        self, stages: tuple[Stage, ...], changes: tuple[SliceChange, ...]
    ) -> None:
        again: Strategy = build_driver(GROUP, self.name)
        assert again.stages(changes, dict(self.options)) == stages

    def test_stages_survive_the_store(self, stages: tuple[Stage, ...]) -> None:
        assert decode(tuple[Stage, ...], encode(stages)) == stages

    def test_an_unknown_option_is_refused_by_its_name(self, strategy: Strategy) -> None:
        with pytest.raises(ConfigError) as caught:
            strategy.stages((), {**self.options, UNKNOWN: 1})
        assert UNKNOWN in str(caught.value) + "".join(map(str, caught.value.problems))
