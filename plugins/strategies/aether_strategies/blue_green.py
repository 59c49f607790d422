"""A whole second fleet, then one switch, which can be switched back until somebody completes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from aether_core.drivers import API_VERSION, Lapse, SliceChange, Stage
from aether_strategies.options import Options, read, wrong_seconds


@dataclass(frozen=True)
class BlueGreenOptions(Options):
    """`complete_after_s`: the old fleet is kept this long if nobody completes or rolls back."""

    complete_after_s: float = 86_400.0

    def problems(self) -> dict[str, str]:
        """Return what is wrong: key to reason."""
        reason = wrong_seconds(self.complete_after_s)
        return {"complete_after_s": reason} if reason else {}


class BlueGreen:
    """`[strategy] kind = "blue_green"`. Both fleets are complete while it lasts."""

    api_version: ClassVar[int] = API_VERSION

    def stages(
        self, changes: tuple[SliceChange, ...], options: Mapping[str, object]
    ) -> tuple[Stage, ...]:
        wanted = read(BlueGreenOptions, "blue_green", options)
        switched = Stage(
            share=1.0,
            new_fraction=1.0,
            old_fraction=1.0,
            is_manual=True,
            patience_s=wanted.complete_after_s,
            lapse=Lapse.GO_ON,
        )
        return (switched,)
