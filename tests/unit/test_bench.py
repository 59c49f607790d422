"""The bench's arithmetic and its page, on numbers made up for it."""

import json
from pathlib import Path

import pytest

from tests.bench import page
from tests.bench.figures import Figure, Goal, Of, quantile

SWITCH = Figure(
    "one node: routing switch at rest, p50", "ms", (3.0, 5.0, 4.0), (2.0, 2.0, 2.0), "the store"
)


@pytest.mark.parametrize(("part", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.99, 3.97), (1.0, 4.0)])
def test_a_quantile_lies_between_its_neighbours(part: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], part) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("goal", "is_met"),
    [
        (None, None),
        (Goal(Of.VALUE, 4.0), True),
        (Goal(Of.VALUE, 3.9), False),
        (Goal(Of.RATIO, 2.0), True),
        (Goal(Of.RATIO, 1.9), False),
        (Goal(Of.RATIO, 2.1, at_least=True), False),
        (Goal(Of.EXCESS, 2.0), True),
        (Goal(Of.EXCESS, 1.9), False),
    ],
)
def test_a_goal_bounds_the_value_the_ratio_or_the_excess(
    goal: Goal | None, is_met: bool | None
) -> None:
    figure = Figure("x", "ms", SWITCH.samples, SWITCH.floor, goal=goal)
    assert (figure.value, figure.ratio, figure.is_met) == (4.0, 2.0, is_met)


def test_the_table_is_written_between_the_marks_only(tmp_path: Path) -> None:
    target = tmp_path / "bench.md"
    target.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write_page(target, [SWITCH], "Measured here.")
    first = target.read_text()
    assert first.startswith("before\n")
    assert first.endswith("after\n")
    assert "| 4.00 ms | 2.00 ms | 2.00 |" in first
    assert "old" not in first
    page.write_page(target, [SWITCH], "Measured here.")
    assert target.read_text() == first


def test_results_are_drawn_and_written_for_programs(tmp_path: Path) -> None:
    alone = Figure("aether --help", "ms", (200.0,), goal=Goal(Of.VALUE, 300.0))
    page.draw(tmp_path / "figures.svg", [SWITCH, alone])
    assert "<svg" in (tmp_path / "figures.svg").read_text()
    page.write_json(tmp_path / "results.json", [SWITCH, alone], {"cores": 2})
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["cores"] == 2
    assert [one["ratio"] for one in document["figures"]] == [2.0, None]
    assert document["figures"][1]["met"] is True
