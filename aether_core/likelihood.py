"""How likely counts of the old and the new version are, if the new one were so much worse.

Hits (errors, slow requests) of a block are compared given how many there were in both versions,
so a burst that both share cancels out. A hypothesis is a pair: `ratio`, how many times the old
version's rate of hits the new one's is, and `shape`, how little each bursts on its own. Pure
mathematics, derived in docs/judge.md; called by `evidence` and `judge`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, inf, lgamma, log, pi
from operator import add

RATIOS = (1 / 10, 1 / 3, 2 / 3, 1.0, 1.2, 1.5, 2.0, 2.5, 4.0, 10.0, 30.0)
#: Pseudo-hits of a block: at 0.05 one version has nearly all hits by chance, at infinity each hit
#: falls on its own (Poisson). Bursts of gamma shape k in each version give about 2 k.
SHAPES = (0.05, 0.5, 2.0, 8.0, 40.0, inf)
_HYPOTHESES = tuple((ratio, shape) for ratio in RATIOS for shape in SHAPES)
_NO_HARM = RATIOS.index(1.0) * len(SHAPES)

#: One log-likelihood per hypothesis, before anything was seen.
NO_TABLE = (0.0,) * len(_HYPOTHESES)

MOST_SCALE = 1.1
FEW_HITS = 2.5  # So few in a block do not tell a burst from chance: they count as single hits.


@dataclass(frozen=True)
class Tally:
    """Requests of both versions over the same seconds, and how many of them were hits."""

    old_requests: int = 0
    old_hits: int = 0
    new_requests: int = 0
    new_hits: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.old_requests + other.old_requests,
            self.old_hits + other.old_hits,
            self.new_requests + other.new_requests,
            self.new_hits + other.new_hits,
        )


NO_TALLY = Tally()


@dataclass(frozen=True)
class Prior:
    """Where the bets are placed; each part sums to one.

    `harm` spreads the stake over RATIOS above one and `bet` over SHAPES, if there is harm; `calm`
    is how bursty a healthy version is held to be. Healthy ones are held to be burstier: it costs
    a few minutes of power and keeps bursts from passing for harm.
    """

    harm: tuple[float, ...]
    bet: tuple[float, ...]
    calm: tuple[float, ...]


#: Mostly on two and a half times as many: for a doubling it pays sooner than a bet on two.
ERROR_PRIOR = Prior(
    harm=(0.03, 0.03, 0.01, 0.84, 0.05, 0.03, 0.01),
    bet=(0.005, 0.005, 0.01, 0.02, 0.06, 0.9),
    calm=(0.01, 0.04, 0.34, 0.34, 0.12, 0.15),
)
#: Latency drifts from minute to minute, so a whole block is often slow or fast together.
LATENCY_PRIOR = Prior(
    harm=(0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.1),
    bet=(0.2, 0.2, 0.2, 0.15, 0.15, 0.1),
    calm=(0.3, 0.2, 0.2, 0.1, 0.1, 0.1),
)


def add_block(table: tuple[float, ...], tally: Tally) -> tuple[float, ...]:
    """Return the log-likelihoods after one more block of requests.

    Both versions' hits are scaled to the harmonic mean of their requests: then who has more is a
    fair coin if both are alike, however they burst. Comparing with shares of requests instead
    would call every burst of a small new version harm. A small old version is scaled up by a
    tenth at most: its luck, enlarged, would be the new one's fault. A block without requests of
    one version compares nothing.
    """
    hits = tally.old_hits + tally.new_hits
    if not hits or not tally.old_requests or not tally.new_requests:
        return table
    harmonic = 2 / (1 / tally.old_requests + 1 / tally.new_requests)
    requests = min(harmonic, MOST_SCALE * tally.old_requests)
    new = tally.new_hits * requests / tally.new_requests
    old = tally.old_hits * requests / tally.old_requests
    likelihoods = _few_hits(new, old) if new + old <= FEW_HITS else _many_hits(new, old)
    return tuple(before + now for before, now in zip(table, likelihoods, strict=True))


def _few_hits(new: float, old: float) -> Iterable[float]:
    return (new * log(ratio) - (new + old) * log(1 + ratio) for ratio, _ in _HYPOTHESES)


def _many_hits(new: float, old: float) -> Iterable[float]:
    """Yield log P(these hits), beta-binomial: the chance that a hit is the new one's varies."""
    totals = {shape: lgamma(shape + new + old) for shape in SHAPES if shape != inf}
    for ratio, shape, a, b, constant in _CELLS:
        if shape == inf:
            yield new * log(ratio) - (new + old) * log(1 + ratio)
        else:
            yield lgamma(a + new) + lgamma(b + old) - totals[shape] + constant


def _cell(ratio: float, shape: float) -> tuple[float, float, float, float, float]:
    if shape == inf:
        return ratio, shape, 0.0, 0.0, 0.0
    a, b = shape * ratio / (1 + ratio), shape / (1 + ratio)
    return ratio, shape, a, b, lgamma(shape) - lgamma(a) - lgamma(b)


_CELLS = tuple(_cell(ratio, shape) for ratio, shape in _HYPOTHESES)


def log_e_value(table: Sequence[float], prior: Prior) -> float:
    """Return the log of the bet's winnings: harm against none, both over all shapes."""
    harmful = table[_NO_HARM + len(SHAPES) :]
    harm = log_sum(map(add, harmful, _log_stakes(prior)))
    calm = log_sum(map(add, table[_NO_HARM:], _logs(prior.calm)))
    return harm - calm


@cache
def _log_stakes(prior: Prior) -> tuple[float, ...]:
    return tuple(log(harm * bet) for harm in prior.harm for bet in prior.bet)


@cache
def _logs(weights: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(log(weight) for weight in weights)


def ratio_bounds(table: Sequence[float], prior: Prior, level: float) -> tuple[float, float]:
    """Return the ratios that stay credible, at every look, but for a chance of `level`.

    The ends of RATIOS mean "or beyond".
    """
    width = len(SHAPES)
    by_ratio = [
        log_sum(map(add, table[start : start + width], _logs(prior.bet)))
        for start in range(0, len(table), width)
    ]
    floor = log_sum(by_ratio) - log(len(by_ratio)) + log(level)
    inside = [index for index, value in enumerate(by_ratio) if value >= floor]
    low = _crossing(by_ratio, floor, inside[0], inside[0] - 1)
    return low, _crossing(by_ratio, floor, inside[-1], inside[-1] + 1)


def _crossing(by_ratio: Sequence[float], floor: float, inside: int, outside: int) -> float:
    """Return where between two neighbouring ratios the likelihood falls through `floor`."""
    if not 0 <= outside < len(RATIOS):
        return RATIOS[inside]
    step = (by_ratio[inside] - floor) / (by_ratio[inside] - by_ratio[outside])
    return RATIOS[inside] * exp(step * log(RATIOS[outside] / RATIOS[inside]))


#: Where between a limit and certainty the chance of a hit is bet to be.
_ABOVE = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)


def log_e_above(hits: int, requests: int, limit: float) -> float:
    """Return the log of the winnings of a bet that the chance of a hit is above `limit`."""
    if not 0 < limit < 1:
        return 0.0
    misses = max(0, requests - hits)
    return log_sum(
        hits * log(1 + part * (1 - limit) / limit) + misses * log(1 - part) for part in _ABOVE
    ) - log(len(_ABOVE))


def log_e_rare(old_hits: int, new_hits: int, blocks: int, calm_blocks: float) -> float:
    """Return the log of the bet that something rare became common in the new version.

    If not, both have it at one rate, held to be one in `calm_blocks` until the blocks tell more.
    """
    apart = _log_beta_mean(1.0, 3.0, new_hits, blocks)
    apart += _log_beta_mean(0.5, calm_blocks / 2, old_hits, blocks)
    return apart - _log_beta_mean(0.5, calm_blocks / 2, old_hits + new_hits, 2 * blocks)


def _log_beta_mean(a: float, b: float, hits: int, tries: int) -> float:
    """Return log P(hits) averaged over a chance with a beta distribution."""
    return (
        lgamma(a + hits) - lgamma(a)
        + lgamma(b + tries - hits) - lgamma(b)
        - lgamma(a + b + tries) + lgamma(a + b)
    )  # fmt: skip


def upper_rate(hits: int, requests: int, level: float) -> float:
    """Return the chance of a hit that is not exceeded, at every look, but for `level`.

    It is where the likelihood falls to `level` of its mean over a beta(1/2, 1/2) chance.
    """
    misses = max(0, requests - hits)
    if not misses:
        return 1.0
    floor = lgamma(hits + 0.5) + lgamma(misses + 0.5) - lgamma(hits + misses + 1) - log(pi)
    floor += log(level)
    low, high = hits / (hits + misses), 1.0
    for _ in range(20):  # Halves the gap each time: six digits.
        chance = (low + high) / 2
        if (hits * log(chance) if hits else 0.0) + misses * log(1 - chance) > floor:
            low = chance
        else:
            high = chance
    return high


def log_sum(values: Iterable[float]) -> float:
    """Return log(sum(exp(values))) without overflow."""
    terms = list(values)
    top = max(terms)
    return top + log(sum([exp(term - top) for term in terms]))
