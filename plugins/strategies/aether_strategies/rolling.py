"""Instances replaced step by step; traffic follows the instances."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aether_core.drivers import API_VERSION, Judging, SliceChange, Stage
from aether_core.errors import Refused
from aether_strategies.options import Limits, read, wrong_seconds

# At a step an instance may become unhealthy and recover; one that does not reverses the step.
RECOVERY_S = 60.0


@dataclass(frozen=True)
class RollingOptions(Limits):
    """`max_surge`, `max_unavailable`: how many instances more and fewer than wanted there may be
    meanwhile, as a number or a percentage such as "25%". `pause_s`: the least time at each step.
    """

    max_surge: Any = 1
    max_unavailable: Any = 0
    pause_s: float = 0.0

    def problems(self) -> dict[str, str]:
        """Return what is wrong: key to reason."""
        found = super().problems()
        for key in ("max_surge", "max_unavailable"):
            if _count(getattr(self, key), 100) is None:
                allowed = 'a whole number, or "0%" to "100%"'
                found[key] = f"must be {allowed}, not {getattr(self, key)!r}"
        if reason := wrong_seconds(self.pause_s):
            found["pause_s"] = reason
        if _count(self.max_surge, 100) == 0 == _count(self.max_unavailable, 100):
            found["max_surge"] = "must not be 0 when max_unavailable is 0: nothing could move"
        return found


class Rolling:
    """`[strategy] kind = "rolling"`. Every step has its share of the traffic and of the instances;
    a step whose instances are not healthy waits, a degraded one is reversed."""

    api_version: ClassVar[int] = API_VERSION

    def stages(
        self, changes: tuple[SliceChange, ...], options: Mapping[str, object]
    ) -> tuple[Stage, ...]:
        wanted = read(RollingOptions, "rolling", options)
        size = max((c.new.instances for c in changes if c.old and c.new), default=1)
        surge = min(_count(wanted.max_surge, size, up=True) or 0, size)
        missing = min(_count(wanted.max_unavailable, size) or 0, size)
        if not surge and not missing:
            missing = 1  # A percentage of few instances: one at a time.
        _refuse_too_few(changes, missing / size)
        # Those that may be missing go first: only then there is room for as many more new ones.
        at_once = min(surge + missing, size)
        counts = [*([0] if missing else []), *range(at_once, size, at_once), size]
        return tuple(_stage(count, size, missing, wanted) for count in counts)


def _stage(count: int, size: int, missing: int, wanted: RollingOptions) -> Stage:
    """Return the step at which `count` of `size` instances are new."""
    old_count = max(0, size - count - missing)
    return Stage(
        # Of those that run, not of those that are wanted: when no old one is left, all of it.
        share=count / (count + old_count) if count else 0.0,
        new_fraction=count / size,
        old_fraction=old_count / size,
        hold_s=wanted.pause_s if 0 < count < size else 0.0,
        judging=Judging.VETO,
        patience_s=wanted.pause_s + RECOVERY_S,
    )


def _refuse_too_few(changes: tuple[SliceChange, ...], missing: float) -> None:
    """Refuse when a slice would fall below its budget with a fraction `missing` of it gone."""
    for change in changes:
        if change.old is None or change.new is None:
            continue
        new = change.new
        left = math.ceil(new.instances * (1.0 - missing) - 1e-9)
        if left < new.min_available:
            raise Refused(
                f"slice '{change.slice}' needs {new.min_available} of its {new.instances} "
                f"instances: max_unavailable would leave {left}",
                hint="lower max_unavailable, and have max_surge instead",
            )


def _count(value: Any, size: int, *, up: bool = False) -> int | None:
    """Return how many of `size` instances are meant; None: neither a number nor a percentage."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"([0-9]{1,3})%", value) if isinstance(value, str) else None
    if match is None or int(match[1]) > 100:
        return None
    part = size * int(match[1]) / 100
    return math.ceil(part) if up else math.floor(part)
