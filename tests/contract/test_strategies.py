"""The strategies' conformance suite over every one that is installed; one without a suite fails."""

from typing import ClassVar

import pytest

from aether_core.drivers import API_VERSION, SliceChange, Stage
from aether_core.plugins import driver_names
from aether_core.testing import StrategySuite
from aether_core.testing.strategies import SITUATIONS


class TestImmediate(StrategySuite):
    name = "immediate"


class TestRolling(StrategySuite):
    name = "rolling"


class TestRollingBothWays(StrategySuite):
    name = "rolling"
    options: ClassVar = {"max_surge": 1, "max_unavailable": "50%", "pause_s": 1}


class TestCanary(StrategySuite):
    name = "canary"


class TestBlueGreen(StrategySuite):
    name = "blue_green"


class TestAbTest(StrategySuite):
    name = "ab_test"
    options: ClassVar = {"context": {"header": "x-user"}, "variants": {"A": 90, "B": 10}}


def test_every_installed_strategy_has_its_suite() -> None:
    proven = {kind.name for kind in StrategySuite.__subclasses__() if kind.__module__ == __name__}
    assert set(driver_names("aether.strategies")) == proven


class Careless:
    """A strategy that leaves everybody without an instance and takes any option."""

    api_version: ClassVar[int] = API_VERSION

    def stages(self, changes: tuple[SliceChange, ...], options: object) -> tuple[Stage, ...]:
        return (Stage(0.5, 0.5, 0.0), Stage(0.4, 0.5, 0.6), Stage(1.0, 1.0, 0.0))


def test_the_suite_sees_a_careless_strategy() -> None:
    suite, changes = StrategySuite(), SITUATIONS["3 instances"]
    stages = Careless().stages(changes, {})
    with pytest.raises(AssertionError):
        suite.test_from_stage_to_stage_the_new_version_grows(stages)
    with pytest.raises(AssertionError):
        suite.test_whoever_has_traffic_has_instances(stages, changes)
    with pytest.raises(pytest.fail.Exception):
        suite.test_an_unknown_option_is_refused_by_its_name(Careless())
