"""How likely counts of the old and the new version are, if the new one were so much worse.

Hits (errors, slow requests) are compared given how many there were in both versions together, so
a burst that both share cancels out. A hypothesis is a pair: `ratio`, how much larger the new
version's share of hits is, and `shape`, how little each version bursts on its own (infinite: not
at all). The mathematics is derived in docs/judge.md. Called by `evidence` and `judge`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, inf, lgamma, log, pi

#: What the new version's share of hits may be, relative to the old one's.
RATIOS = (1 / 8, 1 / 4, 1 / 2, 2 / 3, 5 / 6, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
#: Pseudo-counts of a block: at 0.5 one version often has all hits by chance; infinite is Poisson.
SHAPES = (0.5, 2.0, 6.0, 20.0, 80.0, inf)

#: Where the bet on harm is placed: mostly on a doubling, the smallest harm most people act on.
_HARM = {1.2: 0.08, 1.5: 0.17, 2.0: 0.4, 3.0: 0.15, 5.0: 0.1, 10.0: 0.05, 30.0: 0.05}
_SHAPE_PRIOR = (0.1, 0.1, 0.1, 0.1, 0.1, 0.5)

_HYPOTHESES = tuple((ratio, shape) for ratio in RATIOS for shape in SHAPES)
_HARMFUL = tuple(
    (index, log(_HARM[ratio]) + log(_SHAPE_PRIOR[SHAPES.index(shape)]))
    for index, (ratio, shape) in enumerate(_HYPOTHESES)
    if ratio > 1
)
_HARMLESS = tuple(index for index, (ratio, _) in enumerate(_HYPOTHESES) if ratio <= 1)

#: One log-likelihood per hypothesis, before anything was seen.
NO_TABLE = (0.0,) * len(_HYPOTHESES)


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


#: Nothing seen.
NO_TALLY = Tally()


def add_block(table: tuple[float, ...], tally: Tally) -> tuple[float, ...]:
    """Return the log-likelihoods after one more block of requests.

    A block in which a version had no requests compares nothing and changes nothing.
    """
    hits = tally.old_hits + tally.new_hits
    if not hits or not tally.old_requests or not tally.new_requests:
        return table
    odds = tally.new_requests / tally.old_requests
    likelihoods = (
        _log_likelihood(tally.new_hits, tally.old_hits, ratio * odds, shape)
        for ratio, shape in _HYPOTHESES
    )
    return tuple(before + now for before, now in zip(table, likelihoods, strict=True))


def _log_likelihood(new: int, old: int, odds: float, shape: float) -> float:
    """Return log P(these hits in this order), each hit being the new version's with `odds`."""
    chance = odds / (1 + odds)
    if shape == inf:
        return new * log(chance) + old * log(1 - chance)
    a, b = shape * chance, shape * (1 - chance)
    return (
        lgamma(a + new) - lgamma(a)
        + lgamma(b + old) - lgamma(b)
        - lgamma(shape + new + old) + lgamma(shape)
    )  # fmt: skip


def log_e_value(table: Sequence[float]) -> float:
    """Return the log of the bet on harm against the best that no harm can explain."""
    harm = log_sum(table[index] + prior for index, prior in _HARMFUL)
    return harm - max(table[index] for index in _HARMLESS)


def ratio_bounds(table: Sequence[float], level: float) -> tuple[float, float]:
    """Return the ratios that stay credible, at every look, but for a chance of `level`.

    Shapes are averaged, not maximised: this bounds harm, it raises no alarm. The ends of RATIOS
    mean "or beyond".
    """
    width = len(SHAPES)
    rows = [table[start : start + width] for start in range(0, len(table), width)]
    by_ratio = [
        log_sum(cell + log(prior) for cell, prior in zip(row, _SHAPE_PRIOR, strict=True))
        for row in rows
    ]
    floor = log_sum(by_ratio) - log(len(by_ratio)) + log(level)
    inside = [index for index, value in enumerate(by_ratio) if value >= floor]
    if not inside:  # Blocks that contradict one another: nothing fits, so nothing is excluded.
        return RATIOS[0], RATIOS[-1]
    low = _crossing(by_ratio, floor, inside[0], inside[0] - 1)
    return low, _crossing(by_ratio, floor, inside[-1], inside[-1] + 1)


def _crossing(by_ratio: Sequence[float], floor: float, inside: int, outside: int) -> float:
    """Return where between two neighbouring ratios the likelihood falls through `floor`."""
    if not 0 <= outside < len(RATIOS):
        return RATIOS[inside]
    step = (by_ratio[inside] - floor) / (by_ratio[inside] - by_ratio[outside])
    return RATIOS[inside] * exp(step * log(RATIOS[outside] / RATIOS[inside]))


def log_e_above(hits: int, requests: int, limit: float) -> float:
    """Return the log of the bet that the chance of a hit is above `limit`."""
    if not 0 < limit < 1:
        return 0.0
    misses = max(0, requests - hits)
    # Alternatives between the limit and certainty, evenly in log-odds of what is left.
    alternatives = (limit + (1 - limit) * part for part in _PARTS)
    return log_sum(
        hits * log(chance / limit) + misses * log((1 - chance) / (1 - limit))
        for chance in alternatives
    ) - log(len(_PARTS))


_PARTS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)


def upper_rate(hits: int, requests: int, level: float) -> float:
    """Return the chance of a hit that is not exceeded, at every look, but for `level`.

    Source: the beta mixture of Robbins; the bound solves mixture / likelihood = 1 / level.
    """
    misses = max(0, requests - hits)
    mixture = lgamma(hits + 0.5) + lgamma(misses + 0.5) - lgamma(hits + misses + 1) - log(pi)
    if not misses:
        return 1.0
    low, high = hits / (hits + misses), 1.0
    for _ in range(20):  # Halves the gap each time: six digits.
        chance = (low + high) / 2
        likelihood = (hits * log(chance) if hits else 0.0) + misses * log(1 - chance)
        if mixture - likelihood < -log(level):
            low = chance
        else:
            high = chance
    return high


def log_sum(values: Iterable[float]) -> float:
    """Return log(sum(exp(values))) without overflow."""
    terms = list(values)
    top = max(terms)
    return top + log(sum(exp(term - top) for term in terms))
