"""Made-up traffic of an old and a new version, minute by minute, with known truth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import erf, inf, pi, sin

import numpy as np

from aether_core.evidence import LATENCY_BOUNDS_MS, Period, Window

_BOUNDS = np.array([*LATENCY_BOUNDS_MS, inf])
_erf = np.vectorize(erf)


@dataclass(frozen=True)
class Canary:
    """The truth about two versions. Rates are per minute, latencies in ms."""

    name: str
    rate: float = 600.0  # Requests of the new version.
    share: float = 0.5  # Of all requests that go to the new version.
    errors_old: float = 0.01
    errors_new: float = 0.01
    burst: float = inf  # Gamma shape of each minute's error rate; infinite: none.
    is_burst_shared: bool = False
    latency_new: float = 100.0
    drift: float = 10.0  # Spread of each minute's mean latency, each version its own.
    drift_new: float = 10.0
    spells: float = 0.0  # Share of the new version's minutes that are ten times slower.
    is_diurnal: bool = False
    minutes: int = 60
    look_s: float = 60.0


def periods(canary: Canary, rng: np.random.Generator) -> Iterator[Period]:
    """Yield the periods of one deployment, each as long as the time between two looks."""
    steps = round(60 / canary.look_s)
    for minute in range(canary.minutes):
        load = 1 + 0.8 * sin(2 * pi * minute / canary.minutes) if canary.is_diurnal else 1.0
        bursts = _bursts(canary, rng)
        old_rate = canary.rate * (1 - canary.share) / canary.share
        old = _window(old_rate * load / steps, canary.errors_old * bursts[0], rng)
        slow = 10.0 if rng.random() < canary.spells else 1.0
        new = _window(canary.rate * load / steps, canary.errors_new * bursts[1], rng)
        old_ms = rng.normal(100.0, canary.drift)
        new_ms = slow * rng.normal(canary.latency_new, canary.drift_new)
        old_chances, new_chances = _chances(old_ms), _chances(new_ms)
        for _ in range(steps):
            yield Period(old(old_chances), new(new_chances), canary.look_s)


def _bursts(canary: Canary, rng: np.random.Generator) -> tuple[float, float]:
    if canary.burst == inf:
        return 1.0, 1.0
    one = rng.gamma(canary.burst) / canary.burst
    return (one, one) if canary.is_burst_shared else (one, rng.gamma(canary.burst) / canary.burst)


def _window(
    mean_requests: float, error_rate: float, rng: np.random.Generator
) -> Callable[[np.ndarray], Window]:
    def window(chances: np.ndarray) -> Window:
        requests = int(rng.poisson(mean_requests))
        errors = int(rng.binomial(requests, min(1.0, error_rate)))
        latency = tuple(rng.multinomial(requests, chances).tolist())
        return Window(requests, errors, latency)

    return window


def _chances(mean_ms: float) -> np.ndarray:
    """Return the chance of each bucket: normal about the minute's mean, a tenth of it wide."""
    mean_ms = max(2.0, mean_ms)
    below = 0.5 * (1 + _erf((_BOUNDS + 0.5 - mean_ms) / (0.1 * mean_ms * 2**0.5)))
    return np.asarray(np.diff(below, prepend=0.0).clip(0.0))
