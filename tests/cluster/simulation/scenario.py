"""What a seed means: which blueprints are deployed how, which faults strike, who asks for what."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from aether_core.deployment import Ask
from aether_core.evidence import Evidence
from aether_core.judge import Judgement, Limits, Verdict
from tests.cluster.simulation.link import Weather
from tests.cluster.simulation.machine import Temper

NAMES = ("api", "cart", "web")
STRATEGIES = ("immediate", "rolling", "canary", "blue_green", "ab_test")
GOOD = Temper()


@dataclass(frozen=True)
class Storm:
    """The faults of one deployment. Periods are means; None: that fault does not happen."""

    lasts_s: float = 0.0
    weather: Weather = field(default_factory=Weather)
    slow_apply: float = 0.0
    rejected: float = 0.0
    flaky: float = 0.0
    #: The chance that the leader dies with a write of its, before it hears of it.
    assassin: float = 0.0
    agent_dies_each_s: float | None = None
    machine_dies_each_s: float | None = None
    pause_each_s: float | None = None
    cut_each_s: float | None = None
    outage_s: float | None = None  # Once, nobody reaches the store for so long.


@dataclass(frozen=True)
class Mood:
    """What the judge makes of the evidence: an error more than `patience` is too many, and
    without one `enough` requests are; a blind judge never knows."""

    enough: int = 50
    patience: int = 5
    is_blind: bool = False

    def judge(self) -> Callable[[Evidence, Limits], Awaitable[Judgement]]:
        async def judge(evidence: Evidence, limits: Limits) -> Judgement:
            total = evidence.errors.total
            if self.is_blind:
                return Judgement(Verdict.INCONCLUSIVE, "nobody knows", (), 1000)
            if total.new_hits > self.patience:
                return Judgement(Verdict.DEGRADED, f"{total.new_hits} errors", (), 0)
            if total.new_requests >= self.enough:
                return Judgement(Verdict.HEALTHY, f"{total.new_requests} requests", (), 0)
            return Judgement(Verdict.INCONCLUSIVE, "too few", (), self.enough)

        return judge


@dataclass(frozen=True)
class Wave:
    """One deployment. `document` None: the blueprint's removal. `tempers`: by artifact.

    `must_land`: nothing speaks against it, so it has to be COMPLETED.
    """

    document: dict[str, Any] | None
    tempers: dict[str, Temper]
    mood: Mood
    storm: Storm
    asks: tuple[tuple[float, Ask], ...]  # Seconds after its beginning.
    requests_s: int  # Per slice and node.
    must_land: bool = False


@dataclass(frozen=True)
class Scenario:
    nodes: int
    waves: tuple[Wave, ...]


def scenario(seed: int) -> Scenario:
    """Return what `seed` means: a first deployment, one or two that may fail, a last good one."""
    chance = Random(seed)  # noqa: S311  Chance that can be repeated is the point.
    nodes = chance.randint(2, 5)
    names = chance.sample(NAMES, chance.randint(1, 3))
    pieces = {name: (1, chance.randint(1, 10 if len(names) == 1 else 5)) for name in names}
    newest = dict.fromkeys(NAMES, 1)
    waves = [_calm_wave(pieces, "immediate")]
    for _ in range(chance.choice((1, 1, 2))):
        if pieces and chance.random() < 0.04:
            storm, removal = _storm(chance), replace(_calm_wave(pieces, ""), document=None)
            waves.append(replace(removal, storm=storm, must_land=storm == Storm()))
            pieces = {}
        else:
            pieces = _changed(chance, pieces, newest)
            waves.append(_wave(chance, pieces, newest))
    last = {name: (newest[name] + 1, chance.randint(1, 3)) for name in pieces or names}
    waves.append(_calm_wave(last, chance.choice(("immediate", "rolling"))))
    return Scenario(nodes, tuple(waves))


Pieces = dict[str, tuple[int, int]]  # Slice: version, instances.


def _changed(chance: Random, pieces: Pieces, newest: dict[str, int]) -> Pieces:
    """Return other versions of most slices; some stay, go or come."""
    changed: Pieces = {}
    for name, (version, instances) in pieces.items():
        fate = chance.random()
        if fate < 0.15 and len(pieces) > 1:
            continue
        if fate < 0.3:
            changed[name] = (version, instances)
            continue
        newest[name] += 1
        same = chance.random() < 0.7
        changed[name] = (newest[name], instances if same else chance.randint(1, 6))
    absent = [name for name in NAMES if name not in pieces]
    if absent and chance.random() < 0.3:
        name = chance.choice(absent)
        newest[name] += 1
        changed[name] = (newest[name], chance.randint(1, 4))
    if not changed:
        name = chance.choice(tuple(pieces) or NAMES)
        newest[name] += 1
        changed[name] = (newest[name], chance.randint(1, 4))
    return changed


def _wave(chance: Random, pieces: Pieces, newest: dict[str, int]) -> Wave:
    strategy = _strategy(chance, sizes=[count for _, count in pieces.values()])
    tempers = {
        f"{name}:{version}": _temper(chance)
        for name, (version, _) in pieces.items()
        if version == newest[name] and version > 1
    }
    asks = tuple(
        (chance.uniform(0.0, 40.0), chance.choice(tuple(Ask)))
        for _ in range(chance.choice((0, 0, 1, 2, 3)))
    )
    return Wave(
        document=_document(pieces, strategy),
        tempers=tempers,
        mood=Mood(
            enough=chance.choice((10, 50, 200)),
            patience=chance.choice((0, 5)),
            is_blind=chance.random() < 0.15,
        ),
        storm=_storm(chance),
        asks=asks,
        requests_s=chance.choice((0, 2, 20, 20, 100)),
    )


def _calm_wave(pieces: Pieces, kind: str) -> Wave:
    strategy = {"kind": kind, "deadline_s": 20.0}
    return Wave(_document(pieces, strategy), {}, Mood(), Storm(), (), 20, must_land=True)


def _document(pieces: Pieces, strategy: dict[str, Any]) -> dict[str, Any]:
    return {
        "blueprint": {"name": "shop", "version": "1"},
        "slices": [
            {
                "name": name,
                "artifact": f"{name}:{version}",
                "instances": instances,
                "route": {"host": "*", "prefix": f"/{name}"},
                "health": {"start_s": 4.0},
                "drain_s": 3.0,
                "grace_s": 1.0,
            }
            for name, (version, instances) in sorted(pieces.items())
        ],
        "strategy": strategy,
    }


def _strategy(chance: Random, sizes: list[int]) -> dict[str, Any]:
    kind = chance.choice(STRATEGIES)
    options: dict[str, Any] = {}
    if kind == "rolling":
        surge = chance.choice((0, 1, 2, "25%", "50%", "100%"))
        missing = chance.choice((1, 2, "25%") if surge == 0 else (0, 0, 1, "25%"))
        options = {"max_surge": surge, "max_unavailable": missing}
        options["pause_s"] = chance.choice((0.0, 0.0, 2.0))
    elif kind == "canary":
        steps = sorted(chance.sample((1, 5, 10, 25, 33, 50, 75), chance.randint(0, 3)))
        stage_s = chance.choice((0.0, 1.0, 3.0))
        options = {"stages": [*steps, 100], "stage_s": stage_s}
        options["stage_deadline_s"] = stage_s + chance.uniform(2.0, 20.0)
    elif kind == "blue_green":
        options = {"complete_after_s": chance.uniform(0.0, 20.0)}
    elif kind == "ab_test":
        share = chance.choice((10, 50, 90))
        options = {"context": {"cookie": "uid"}, "variants": {"A": 100 - share, "B": share}}
        options["end_after_s"] = chance.uniform(1.0, 20.0)
    return {"kind": kind, "deadline_s": chance.choice((5.0, 10.0, 20.0)), **options}


def _temper(chance: Random) -> Temper:
    fate = chance.random()
    if fate < 0.12:
        return Temper(error_rate=chance.choice((0.05, 0.5, 1.0)))
    if fate < 0.2:
        return Temper(ends_after_s=chance.choice((0.1, 5.0, 30.0)))
    if fate < 0.27:
        return Temper(is_ever_healthy=False)
    if fate < 0.35:
        return Temper(start_s=chance.choice((6.0, 15.0, 30.0)))
    return Temper(start_s=chance.choice((0.1, 1.0, 2.0)))


def _storm(chance: Random) -> Storm:
    """Return no faults, one kind of them, or several."""
    if chance.random() < 0.25:
        return Storm()
    many = chance.choice((0.15, 0.35, 0.6))

    def some(*values: float) -> float:
        return chance.choice(values) if chance.random() < many else 0.0

    weather = Weather(
        slow=some(0.05, 0.3),
        lost=some(0.01, 0.05),
        late=some(0.02, 0.1, 0.3),
        unheard=some(0.02, 0.1),
        relisted=some(0.02, 0.1),
    )
    return Storm(
        lasts_s=chance.choice((5.0, 20.0, 40.0, 80.0, 160.0)),
        weather=weather,
        slow_apply=some(0.02, 0.1),
        rejected=some(0.02, 0.1),
        flaky=some(0.1, 0.4),
        assassin=some(0.02, 0.1, 0.3),
        agent_dies_each_s=some(3.0, 15.0) or None,
        machine_dies_each_s=some(8.0, 25.0) or None,
        pause_each_s=some(5.0, 15.0) or None,
        cut_each_s=some(5.0, 15.0) or None,
        outage_s=some(10.0, 60.0, 150.0) or None,
    )
