"""Instances replaced step by step; traffic follows the instances."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aether_core.drivers import API_VERSION, Judging, SliceChange, Stage
from aether_core.errors import Refused
from aether_strategies.options import Limits, is_seconds, read


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
                found[key] = f'must be a whole number or "25%", not {getattr(self, key)!r}'
        if not is_seconds(self.pause_s):
            found["pause_s"] = f"must be a number of seconds, not {self.pause_s!r}"
        if not found and not _count(self.max_surge, 100) and not _count(self.max_unavailable, 100):
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
        surge = _count(wanted.max_surge, size, up=True) or 0
        missing = min(_count(wanted.max_unavailable, size) or 0, size)
        if not surge and not missing:
            missing = 1  # A percentage of few instances: one at a time.
        _refuse_too_few(changes, missing)
        steps = math.ceil(size / (surge + missing))
        first = () if surge else (_stage(0, steps, missing / size, wanted),)
        return (*first, *(_stage(n, steps, missing / size, wanted) for n in range(1, steps + 1)))


def _stage(number: int, steps: int, missing: float, wanted: RollingOptions) -> Stage:
    done = number / steps
    return Stage(
        share=done,
        new_fraction=done,
        old_fraction=max(0.0, 1.0 - done - missing),
        hold_s=wanted.pause_s if 0 < number < steps else 0.0,
        judging=Judging.VETO,
        patience_s=wanted.pause_s,
    )


def _refuse_too_few(changes: tuple[SliceChange, ...], missing: int) -> None:
    for change in changes:
        if change.old and change.new and change.new.instances - missing < change.new.min_available:
            raise Refused(
                f"slice '{change.slice}' needs {change.new.min_available} of its "
                f"{change.new.instances} instances: max_unavailable {missing} would leave fewer",
                hint="lower max_unavailable, and have max_surge instead",
            )


def _count(value: Any, size: int, *, up: bool = False) -> int | None:
    """Return how many of `size` instances are meant; None: neither a number nor a percentage."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d{1,3})%", value) if isinstance(value, str) else None
    if match is None or int(match[1]) > 100:
        return None
    part = size * int(match[1]) / 100
    return math.ceil(part) if up else math.floor(part)
