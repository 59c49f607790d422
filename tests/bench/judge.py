"""How often the judge cries wolf, and how soon it finds harm: `python -m tests.bench.judge`.

Simulates deployments with a known truth, writes the table into docs/judge.md between its markers
and the plots into docs/judge/. `--runs` scales the sample; the published table has the default.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import inf, log10, sqrt
from multiprocessing import Pool
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aether_core.evidence import EMPTY, Period, Window, fold
from aether_core.judge import Limits, Verdict, judge
from tests.bench import kayenta
from tests.bench.canaries import Canary, periods

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- table: python -m tests.bench.judge -->", "<!-- end of table -->"
HORIZONS = (10, 30, 60)  # Minutes.
SAMPLE = 20260101  # Other draws than those the judge was tuned with.

HEALTHY = (
    Canary("equal", rate=60),
    Canary("equal"),
    Canary("equal, daily load", is_diurnal=True),
    Canary("equal, own bursts (gamma 5)", burst=5),
    Canary("equal, own bursts (gamma 1)", burst=1),
    Canary("equal, own bursts (gamma 1)", burst=1, rate=60),
    Canary("equal, own bursts (gamma 1)", burst=1, share=0.05, rate=60),
    Canary("equal, own bursts (gamma 1)", burst=1, rate=6000),
    Canary("equal, own bursts (gamma 1)", burst=1, share=0.95, rate=1140),
    Canary("equal", share=0.05, rate=60),
    Canary("equal", share=0.95, rate=1140),
    Canary("equal, latency drifts by 30 % a minute", drift=30, drift_new=30),
    Canary("equal, for 15 min", rate=60, look_s=1, minutes=15),
    Canary("equal, own bursts (gamma 1), for 15 min", burst=1, look_s=1, minutes=15),
)
HARMFUL = (
    Canary("errors 1 → 2 %", rate=60, errors_new=0.02),
    Canary("errors 1 → 2 %", rate=60, errors_new=0.02, share=0.05),
    Canary("errors 1 → 5 %", rate=60, errors_new=0.05),
    Canary("errors 1 → 2 %", errors_new=0.02),
    Canary("errors 1 → 2 %, shared bursts (gamma 5)", errors_new=0.02, burst=5,
           is_burst_shared=True),
    Canary("errors 1 → 2 %, own bursts (gamma 5)", errors_new=0.02, burst=5),
    Canary("errors 1 → 2 %, own bursts (gamma 1)", errors_new=0.02, burst=1),
    Canary("latency + 20 %", latency_new=120),
    Canary("latency + 20 %, its spread 10 → 40 ms", latency_new=120, drift_new=40),
    Canary("a fifth of the minutes ten times slower", spells=0.2),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One simulated deployment: when it was first called what, in minutes, and by whom."""

    degraded_at: float
    healthy_at: float
    referee: tuple[bool, ...]  # At each of HORIZONS.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    results: dict[Canary, list[Run]] = {}
    with Pool(arguments.processes) as pool:
        for canary in (*HEALTHY, *HARMFUL):
            # A rare false alarm takes more runs to measure than harm that is found.
            is_rare = canary in HEALTHY and canary.look_s > 1
            runs = range(arguments.runs * (3 if is_rare else 1))
            results[canary] = pool.map(partial(run, canary), runs, chunksize=10)
            print(row(canary, results[canary]), flush=True)  # noqa: T201
    write_table(results)
    plot_detection(results)
    plot_evidence()


def run(canary: Canary, seed: int) -> Run:
    """Fold and judge one deployment from its seed, looking after every period."""
    seen = list(periods(canary, np.random.default_rng([SAMPLE, seed])))
    evidence, degraded_at, healthy_at = EMPTY, inf, inf
    for look, period in enumerate(seen, start=1):
        evidence = fold(evidence, period)
        verdict = judge(evidence, Limits()).verdict
        minute = look * canary.look_s / 60
        if verdict is Verdict.HEALTHY:
            healthy_at = min(healthy_at, minute)
        if verdict is Verdict.DEGRADED:
            degraded_at = minute
            break
    minutes = list(_by_minute(seen, round(60 / canary.look_s)))
    return Run(degraded_at, healthy_at, tuple(kayenta.fails(minutes[:end]) for end in HORIZONS))


def _by_minute(seen: list[Period], looks: int) -> Iterator[Period]:
    for start in range(0, len(seen), looks):
        part = seen[start : start + looks]
        yield Period(_added(p.old for p in part), _added(p.new for p in part), 60.0)


def _added(windows: Iterable[Window]) -> Window:
    parts = list(windows)
    latency = np.sum([part.latency for part in parts], axis=0)
    requests = sum(part.requests for part in parts)
    return Window(requests, sum(part.errors for part in parts), tuple(latency.tolist()))


def row(canary: Canary, runs: list[Run]) -> str:
    """Return the cell's line of the table."""
    found = [_share(run.degraded_at <= end for run in runs) for end in HORIZONS]
    referee = [_share(run.referee[index] for run in runs) for index in range(len(HORIZONS))]
    healthy = _share(run.healthy_at < run.degraded_at for run in runs)
    low, high = _wilson(found[-1], len(runs))
    times = sorted(run.degraded_at for run in runs)
    middle = times[len(times) // 2]
    cells = (
        f"{canary.rate:g}", f"{canary.share:.0%}", canary.name,
        "second" if canary.look_s == 1 else "minute",
        *(f"{value:.3f}" for value in found), f"{low:.3f}-{high:.3f}",
        "" if middle == inf else f"{middle:.0f}", f"{healthy:.2f}",
        " / ".join(f"{value:.3f}" for value in referee), str(len(runs)),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _share(facts: Iterable[bool]) -> float:
    return float(np.mean(list(facts)))


def _wilson(share: float, runs: int) -> tuple[float, float]:
    """Return the 95 % interval of a share seen in so many runs."""
    z = 1.96
    middle = (share + z * z / (2 * runs)) / (1 + z * z / runs)
    half = z * sqrt(share * (1 - share) / runs + z * z / (4 * runs**2)) / (1 + z * z / runs)
    return max(0.0, middle - half), min(1.0, middle + half)


def write_table(results: dict[Canary, list[Run]]) -> None:
    """Replace what stands between the markers of docs/judge.md."""
    head = (
        "requests/min", "share", "truth", "look each", "DEGRADED in 10 min", "30 min", "60 min",
        "95 % interval", "median min", "HEALTHY before", "Kayenta's rule 10 / 30 / 60", "runs",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [row(canary, runs) for canary, runs in results.items()]
    page = DOCS / "judge.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after)


def plot_detection(results: dict[Canary, list[Run]]) -> None:
    """Draw for every harm the share of deployments found by each minute."""
    figure, axes = plt.subplots(figsize=(9, 5))
    for canary in HARMFUL:
        times = np.sort([run.degraded_at for run in results[canary]])
        minutes = np.arange(61)
        found = np.searchsorted(times, minutes, side="right") / times.size
        axes.plot(minutes, found, label=f"{canary.name}, {canary.rate:g}/min, {canary.share:.0%}")
    axes.set(xlabel="minutes", ylabel="share of deployments found DEGRADED", ylim=(0, 1))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, "detection")


def plot_evidence() -> None:
    """Draw how the bet on errors goes in twenty healthy and twenty harmed deployments."""
    figure, axes = plt.subplots(figsize=(9, 5))
    healthy = Canary("no change", burst=1)
    for canary, colour in ((healthy, "tab:blue"), (HARMFUL[0], "tab:red")):
        for seed in range(20):
            axes.plot(_bet(canary, seed), color=colour, alpha=0.5, linewidth=0.8)
        axes.plot([], color=colour, label=f"{canary.name}, {canary.rate:g}/min")
    axes.axhline(log10(1 / (0.88 * 0.01)), color="black", linestyle="--", label="DEGRADED above")
    axes.set(xlabel="minutes", ylabel="log10 of the bet's winnings", ylim=(-4, 4))
    axes.legend()
    _save(figure, "evidence")


def _bet(canary: Canary, seed: int) -> list[float]:
    evidence, path = EMPTY, [0.0]
    for period in periods(replace(canary, look_s=60.0), np.random.default_rng([SAMPLE, seed])):
        evidence = fold(evidence, period)
        path.append(log10(judge(evidence, Limits()).findings[0].e_value))
    return path


def _save(figure: Figure, name: str) -> None:
    figure.savefig(DOCS / "judge" / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
