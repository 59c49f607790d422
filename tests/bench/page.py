"""The page of figures: a table between two marks in docs/bench.md, and a plot beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from tests.bench.figures import Figure

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "aether"  # The same figures give the same file.

from matplotlib import pyplot as plt  # noqa: E402  After the choice of where it draws.

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"


def write_page(page: Path, figures: Sequence[Figure], where: str) -> None:
    """Replace what stands between the marks."""
    before, found, rest = page.read_text().partition(BEGIN)
    assert found, f"{page} has no place for the figures: {BEGIN}"
    _, found, after = rest.partition(END)
    assert found, f"{page} has no end for the figures: {END}"
    page.write_text(f"{before}{BEGIN}\n{table(figures)}\n\n{where}\n{END}{after}")


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table."""
    rows = [
        "| what | measured | floor | ratio | goal | reached | samples |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in figures:
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        floor = "" if one.floor_value is None else f"{_amount(one.floor_value, one.unit)}"
        goal = one.goal.text(one.unit) if one.goal else ""
        met = {None: "", True: "yes", False: "no"}[one.is_met]
        measured = _amount(one.value, one.unit)
        count = len(one.samples)
        rows.append(f"| {one.name} | {measured} | {floor} | {ratio} | {goal} | {met} | {count} |")
    return "\n".join(rows)


def write_json(path: Path, figures: Sequence[Figure], about: dict[str, Any]) -> None:
    """Write the summary for programs."""
    document = {**about, "figures": [one.document() for one in figures]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def draw(path: Path, figures: Sequence[Figure]) -> None:
    """Draw each figure's ratio to its floor, and how the switches' latencies are spread."""
    plot, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    beside = [one for one in figures if one.ratio]
    left.barh([one.name for one in beside], [one.ratio or 0.0 for one in beside], color="#4477aa")
    left.axvline(1.0, color="black", linewidth=1)
    left.set_xscale("log")
    left.set_xlabel("times the floor")
    left.invert_yaxis()
    left.tick_params(axis="y", labelsize=7)
    for one in figures:
        if one.unit == "ms" and one.quantile == 0.5 and "switch" in one.name:
            ordered = sorted(one.samples)
            parts = [(place + 1) / len(ordered) for place in range(len(ordered))]
            right.step(ordered, parts, where="post", label=one.name.removesuffix(", p50"))
    right.set_xscale("log")
    right.set_xlabel("ms from the transaction to the last node's answer")
    right.set_ylabel("part of the switches")
    if right.lines:
        right.legend(fontsize=7)
    plot.savefig(path, metadata={"Date": None})
    plt.close(plot)


def _amount(value: float, unit: str) -> str:
    digits = 0 if value >= 1000 or not unit else 2 if value < 100 else 1
    return f"{value:,.{digits}f} {unit}".rstrip()
