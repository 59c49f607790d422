"""The strategies: stages as tables, wrong options, what rolling promises at every step."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aether_core.drivers import SliceChange, Stage, Strategy
from aether_core.errors import ConfigError, Refused
from aether_core.planning import part
from aether_core.plugins import load_driver
from tests.unit.fleets import change, fleet

KINDS = ("immediate", "rolling", "canary", "blue_green", "ab_test")
BY_HEADER = {"context": {"header": "X-User"}}
ENOUGH = {"ab_test": BY_HEADER}  # The options that a strategy cannot do without.


def stages(kind: str, *changes: SliceChange, **options: object) -> tuple[Stage, ...]:
    driver: Strategy = load_driver("aether.strategies", kind)()
    return driver.stages(changes or (change(),), ENOUGH.get(kind, {}) | options)


def shown(stage: Stage) -> str:
    """Write a stage as: share, new/old fractions, then what is not as usual."""
    words = [f"{stage.share:.4g}: {stage.new_fraction:.4g}/{stage.old_fraction:.4g}"]
    words += [f"holds {stage.hold_s:g}"] if stage.hold_s else []
    words += ["manual"] if stage.is_manual else []
    words += [stage.judging] if stage.judging != "NONE" else []
    words += [f"at most {stage.patience_s:g}"] if stage.patience_s else []
    words += [stage.lapse] if stage.lapse != "ROLL_BACK" else []
    if split := stage.split:
        words += [f"{split.old}|{split.new} by {split.by} {split.name} {split.force_header}"]
    return " ".join(words).strip()


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("immediate", {}, ["1: 1/0"]),
        (
            "rolling",
            {},
            [
                "0.3333: 0.3333/0.6667 VETO at most 60",
                "0.6667: 0.6667/0.3333 VETO at most 60",
                "1: 1/0 VETO at most 60",
            ],
        ),
        (
            "rolling",
            {"max_surge": 0, "max_unavailable": 2, "pause_s": 5},
            [
                "0: 0/0.3333 VETO at most 65",
                "1: 0.6667/0 holds 5 VETO at most 65",
                "1: 1/0 VETO at most 65",
            ],
        ),
        (
            "rolling",
            {"max_surge": "34%", "max_unavailable": "34%"},
            ["0: 0/0.6667 VETO at most 60", "1: 1/0 VETO at most 60"],
        ),
        ("rolling", {"max_surge": "100%"}, ["1: 1/0 VETO at most 60"]),
        ("rolling", {"max_surge": 10**400}, ["1: 1/0 VETO at most 60"]),
        (
            "canary",
            {},
            [
                "0.05: 0.05/1 holds 120 REQUIRED at most 3600",
                "0.25: 0.25/1 holds 120 REQUIRED at most 3600",
                "0.5: 0.5/1 holds 120 REQUIRED at most 3600",
                "1: 1/1 holds 120 VETO at most 3600",
            ],
        ),
        (
            "canary",
            {"stages": [0.07, 1.1, 100.0], "stage_s": 0, "stage_deadline_s": 60},
            [
                "0.0007: 0.0007/1 REQUIRED at most 60",
                "0.011: 0.011/1 REQUIRED at most 60",
                "1: 1/1 VETO at most 60",
            ],
        ),
        (
            "canary",
            {"stages": [100], "max_error_rate": 1, "max_latency_p99_ms": 0.5},
            ["1: 1/1 holds 120 VETO at most 3600"],
        ),
        ("blue_green", {}, ["1: 1/1 manual at most 86400 GO_ON"]),
        ("blue_green", {"complete_after_s": 0}, ["1: 1/1 manual GO_ON"]),
        (
            "ab_test",
            {},
            ["0.5: 1/1 manual at most 1.2096e+06 A|B by header x-user", "1: 1/0"],
        ),
        (
            "ab_test",
            {
                "context": {"cookie": "Uid"},
                "variants": {"plain": 99.93, "fancy": 0.07},
                "force_header": "X-Variant",
                "end_after_s": 60,
            },
            ["0.0007: 1/1 manual at most 60 plain|fancy by cookie Uid X-Variant", "1: 1/0"],
        ),
        (
            "ab_test",
            {"context": {"query": "user"}, "variants": {"B": 90, "A": 10}, "end_after_s": 9},
            ["0.1: 1/1 manual at most 9 B|A by query user", "1: 1/0"],
        ),
    ],
)
def test_stages(kind: str, options: dict[str, object], expected: list[str]) -> None:
    assert [shown(stage) for stage in stages(kind, **options)] == expected


@pytest.mark.parametrize("wrong", [[], [5, 25], [25, 5, 100], [5, 5, 100], [0, 100], [-1, 100],
                                   [5, 101], ["5", 100], [True, 100], [math.nan, 100],
                                   [math.inf], [0.001, 100], 100, "5, 100", {"a": 1}])  # fmt: skip
def test_wrong_stages_of_a_canary(wrong: object) -> None:
    assert list(problems("canary", stages=wrong)) == ["stages"]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("immediate", {"stage_s": 1}, {"stage_s": "unknown option; allowed: none"}),
        (
            "blue_green",
            {"complete_after": 1, "complete_after_s": "1h"},
            {
                "complete_after": "unknown option; allowed: complete_after_s",
                "complete_after_s": "must be seconds, at least 0 and at most 2592000 (30 days), "
                "not '1h'",
            },
        ),
        (
            "canary",
            {
                "stages": "all",
                "stage_s": True,
                "stage_deadline_s": 0,
                "max_error_rate": 1.5,
                "max_latency_p99_ms": "500",
                "stage": 1,
            },
            {
                "stage": "unknown option; allowed: max_error_rate, max_latency_p99_ms, stages, "
                "stage_s, stage_deadline_s",
                "max_error_rate": "must be above 0 and at most 1, not 1.5",
                "max_latency_p99_ms": "must be a number above 0, not '500'",
                "stages": "must be percentages that rise and end at 100, such as "
                "[5, 25, 50, 100], not 'all'",
                "stage_s": "must be seconds, at least 0 and at most 2592000 (30 days), not True",
                "stage_deadline_s": "must be seconds, above 0 and at most 2592000 (30 days), not 0",
            },
        ),
        (
            "canary",
            {"stage_s": 60, "stage_deadline_s": 59, "stages": [0.005, 100]},
            {
                "stages": "must be whole hundredths of a percent, not [0.005, 100]",
                "stage_deadline_s": "must be at least stage_s, 60, not 59",
            },
        ),
        (
            "rolling",
            {"max_surge": 0, "max_error_rate": 0, "pause_s": -1},
            {
                "max_error_rate": "must be above 0 and at most 1, not 0",
                "pause_s": "must be seconds, at least 0 and at most 2592000 (30 days), not -1",
                "max_surge": "must not be 0 when max_unavailable is 0: nothing could move",
            },
        ),
        (
            "rolling",
            {"max_surge": "0%", "max_unavailable": "0%"},
            {"max_surge": "must not be 0 when max_unavailable is 0: nothing could move"},
        ),
        (
            "rolling",
            {"max_surge": "101%", "max_unavailable": 0.5},
            {
                "max_surge": 'must be a whole number, or "0%" to "100%", not \'101%\'',
                "max_unavailable": 'must be a whole number, or "0%" to "100%", not 0.5',
            },
        ),
        (
            "ab_test",
            {"context": None, "variants": [1], "force_header": 1, "end_after_s": 0, "winner": "A"},
            {
                "winner": "unknown option; allowed: context, variants, force_header, end_after_s",
                "context": 'must be one of {header = "x-user"}, {cookie = "uid"}, '
                '{query = "user"}, not None',
                "variants": "must be two names with percentages that sum to 100, such as "
                "{A = 90, B = 10} (whole hundredths), not [1]",
                "force_header": "must be the name of a header, not 1",
                "end_after_s": "must be seconds, above 0 and at most 2592000 (30 days), not 0",
            },
        ),
    ],
)
def test_wrong_options_are_named_all_at_once(
    kind: str, options: dict[str, object], expected: dict[str, str]
) -> None:
    assert problems(kind, **options) == expected


@pytest.mark.parametrize("wrong", [{}, {"ip": "x"}, {"header": ""}, {"header": "a b"},
                                   {"header": 1}, {"header": "a", "cookie": "b"}, "header",
                                   {"cookie": "a=b"}, {"query": ["a"]}, None])  # fmt: skip
def test_wrong_contexts_of_an_ab_test(wrong: object) -> None:
    assert list(problems("ab_test", context=wrong)) == ["context"]


@pytest.mark.parametrize("wrong", [{}, {"A": 100}, {"A": 50, "B": 49}, {"A": 100, "B": 0},
                                   {"A": 50, "B": 25, "C": 25}, {"A": "50", "B": "50"},
                                   {"A": True, "B": 99}, {"A B": 50, "B": 50}, {"": 50, "B": 50},
                                   {"A": 99.999, "B": 0.001}, {"A": math.inf, "B": 1},
                                   {"A": 1e300, "B": 1}, {"A": math.nan, "B": 50}])  # fmt: skip
def test_wrong_variants_of_an_ab_test(wrong: object) -> None:
    assert list(problems("ab_test", variants=wrong)) == ["variants"]


def problems(kind: str, **options: object) -> dict[str, str]:
    with pytest.raises(ConfigError, match=f"strategy '{kind}' cannot be used") as caught:
        stages(kind, **options)
    return {problem.key: problem.reason for problem in caught.value.problems}


toml_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["25%", "0%", "header", "1h"])
    | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["header", "cookie", "query", "A", "B", ""]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
OPTIONS = """
stages stage_s stage_deadline_s max_error_rate max_latency_p99_ms max_surge max_unavailable pause_s
complete_after_s context variants force_header end_after_s else
"""
option_names = st.sampled_from(OPTIONS.split())


@given(kind=st.sampled_from(KINDS), options=st.dictionaries(option_names, toml_values, max_size=4))
@example(kind="ab_test", options={"variants": {"A": math.inf, "B": 1}})
@example(kind="rolling", options={"max_surge": 10**400})
@example(kind="canary", options={"stages": [10**400, 100], "stage_s": 10**400})
def test_whatever_a_file_holds_gives_stages_or_a_clear_line(
    kind: str, options: dict[str, Any]
) -> None:
    try:
        found = stages(kind, **options)
    except ConfigError as error:
        wrong = {problem.key: problem.reason for problem in error.problems}
    else:
        wrong = {}
        assert found[-1].share == 1.0
    assert wrong.keys() <= options.keys()
    assert all(reason and "\n" not in reason for reason in wrong.values())


counts = st.integers(0, 12) | st.integers(0, 100).map("{}%".format)


@given(size=st.integers(1, 10), max_surge=counts, max_unavailable=counts)
def test_rolling_never_has_more_or_fewer_than_it_may(
    size: int, max_surge: int | str, max_unavailable: int | str
) -> None:
    surge, missing = allowed(max_surge, size, math.ceil), allowed(max_unavailable, size, math.floor)
    if max_surge in (0, "0%") and max_unavailable in (0, "0%"):
        return
    missing = missing or (0 if surge else 1)
    one = change(size)
    found = stages("rolling", one, max_surge=max_surge, max_unavailable=max_unavailable)
    assert one.old is not None
    assert one.new is not None
    old, new = size, 0
    for stage in found:
        before, new = new, part(one.new, stage.new_fraction)
        assert old + new <= size + surge, "while the step's new instances start"
        assert before + old >= size - missing, "as long as only the earlier ones are ready"
        old = part(one.old, stage.old_fraction)
        assert new + old >= size - missing, "once the step's old instances are gone"
        running = pytest.approx(new / (new + old)) if new + old else 0.0
        assert stage.share == running, "traffic follows the instances"
    assert (old, new) == (0, size)
    assert all(one.share <= after.share for one, after in pairwise(found))
    assert all(one.new_fraction < after.new_fraction for one, after in pairwise(found))


def allowed(value: int | str, size: int, rounded: Any) -> int:
    wanted = value if isinstance(value, int) else rounded(size * int(value[:-1]) / 100)
    return min(int(wanted), size)


@pytest.mark.parametrize(
    ("max_unavailable", "least", "is_refused"),
    [(1, 2, False), (1, 3, True), ("67%", 1, False), ("67%", 2, True), (3, 0, False), (3, 1, True)],
)
def test_rolling_keeps_the_budget(max_unavailable: int | str, least: int, is_refused: bool) -> None:
    options = {"max_surge": 0, "max_unavailable": max_unavailable}
    if not is_refused:
        assert stages("rolling", change(3, least=least), **options)
        return
    with pytest.raises(Refused, match=f"slice 'web' needs {least} of its 3 instances"):
        stages("rolling", change(3, least=least), **options)


def test_rolling_keeps_the_budget_of_every_slice() -> None:
    """What is missing is a fraction: of two instances, a tenth is none."""
    large, small = change(10), change(2, name="api", least=2)
    assert stages("rolling", large, small, max_surge=1, max_unavailable=1)
    with pytest.raises(Refused, match=r"slice 'api' needs 2 of its 2 instances: .* leave 1"):
        stages("rolling", large, small, max_surge=1, max_unavailable=5)


def test_rolling_without_surge_never_sends_traffic_where_nothing_runs() -> None:
    """The old instances are gone before the last new one may start: by then they have no share."""
    found = stages("rolling", change(3), max_surge=0, max_unavailable=1)
    assert [(stage.share, stage.old_fraction) for stage in found] == [
        (0.0, 2 / 3),
        (1 / 2, 1 / 3),
        (1.0, 0.0),
        (1.0, 0.0),
    ]


def test_rolling_steps_by_the_largest_slice_that_changes() -> None:
    new, gone = SliceChange("a", None, fleet("1", 9)), SliceChange("b", fleet("1", 9), None)
    assert len(stages("rolling", new, change(2), change(4, name="api"), gone)) == 4
    assert len(stages("rolling", new, gone)) == 1
