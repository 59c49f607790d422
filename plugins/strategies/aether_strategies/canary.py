"""A growing share of the traffic, judged at every stage."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aether_core.drivers import API_VERSION, Judging, SliceChange, Stage
from aether_strategies.options import Limits, are_hundredths, is_number, read, wrong_seconds


@dataclass(frozen=True)
class CanaryOptions(Limits):
    """`stages`: percent of the traffic; `stage_s`: the least time at each, in seconds.

    `stage_deadline_s`: the longest; a stage that the judge has not found healthy by then is rolled
    back.
    """

    stages: Any = (5, 25, 50, 100)
    stage_s: float = 120.0
    stage_deadline_s: float = 3600.0

    def problems(self) -> dict[str, str]:
        """Return what is wrong: key to reason."""
        found = super().problems()
        if reason := _wrong_stages(self.stages):
            found["stages"] = reason
        if reason := wrong_seconds(self.stage_s):
            found["stage_s"] = reason
        if reason := wrong_seconds(self.stage_deadline_s, above=0):
            found["stage_deadline_s"] = reason
        are_seconds = not found.keys() & {"stage_s", "stage_deadline_s"}
        if are_seconds and self.stage_deadline_s < self.stage_s:
            least, given = f"{self.stage_s:g}", repr(self.stage_deadline_s)
            found["stage_deadline_s"] = f"must be at least stage_s, {least}, not {given}"
        return found


class Canary:
    """`[strategy] kind = "canary"`. The old version keeps all its instances until the end, so that
    going back is one change of routes; the new one has as many as its share needs."""

    api_version: ClassVar[int] = API_VERSION

    def stages(
        self, changes: tuple[SliceChange, ...], options: Mapping[str, object]
    ) -> tuple[Stage, ...]:
        wanted = read(CanaryOptions, "canary", options)
        return tuple(_stage(percent / 100, wanted) for percent in wanted.stages)


def _stage(share: float, wanted: CanaryOptions) -> Stage:
    # With all traffic on the new version nothing is left to compare with: limits still count, and
    # the old version stays warm for as long as at the other stages.
    is_last = share == 1.0
    return Stage(
        share=share,
        new_fraction=share,
        old_fraction=1.0,
        hold_s=wanted.stage_s,
        judging=Judging.VETO if is_last else Judging.REQUIRED,
        patience_s=wanted.stage_deadline_s,
    )


def _wrong_stages(stages: Any) -> str:
    """Return why these cannot be stages, or nothing."""
    allowed = "percentages that rise and end at 100, such as [5, 25, 50, 100]"
    if not isinstance(stages, list | tuple) or not stages or not all(map(is_number, stages)):
        return f"must be {allowed}, not {stages!r}"
    rises = all(one < next_one for one, next_one in itertools.pairwise(stages))
    if not rises or stages[0] <= 0 or stages[-1] != 100:
        return f"must be {allowed}, not {list(stages)}"
    if not are_hundredths([*stages]):
        return f"must be whole hundredths of a percent, not {list(stages)}"
    return ""
