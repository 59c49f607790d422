"""The rule that most canary tools use by default, as a referee.

Two samples of one point a minute are compared by the rank-sum confidence interval of their shift
(98 %); the new version fails when even the lower end is more than a quarter of the shift's
Hodges-Lehmann estimate. Source: Kayenta's MannWhitneyClassifier with its default tolerance 0.25.
"""

from collections.abc import Iterable
from math import sqrt

import numpy as np

from aether_core.evidence import LATENCY_BOUNDS_MS, Period, Window

_Z_98 = 2.326
_TOLERANCE = 0.25
_MIDDLES_MS = np.array([0.5, *[b - 0.5 for b in LATENCY_BOUNDS_MS[1:]], LATENCY_BOUNDS_MS[-1]])


def fails(minutes: Iterable[Period]) -> bool:
    """Say whether the errors or the mean latency of the new version are classified High."""
    old, new = zip(*((_point(minute.old), _point(minute.new)) for minute in minutes), strict=True)
    old_points, new_points = np.array(old), np.array(new)
    return any(_is_high(old_points[:, metric], new_points[:, metric]) for metric in range(2))


def _point(window: Window) -> tuple[float, float]:
    requests = max(1, window.requests)
    return window.errors / requests, float(np.dot(window.latency, _MIDDLES_MS)) / requests


def _is_high(old: np.ndarray, new: np.ndarray) -> bool:
    shifts = np.sort(np.subtract.outer(new, old), axis=None)
    spread = sqrt(shifts.size * (old.size + new.size + 1) / 12)
    rank = max(0, int(shifts.size / 2 - _Z_98 * spread))
    estimate = float(np.median(shifts))
    return estimate > 0 and float(shifts[rank]) > _TOLERANCE * estimate
