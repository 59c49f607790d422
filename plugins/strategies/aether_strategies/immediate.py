"""All instances at once: when every new one is ready, all traffic moves in one step."""

from collections.abc import Mapping
from typing import ClassVar

from aether_core.drivers import API_VERSION, SliceChange, Stage
from aether_strategies.options import Options, read


class Immediate:
    """`[strategy] kind = "immediate"`. Takes no options. Undone by deploying what was there."""

    api_version: ClassVar[int] = API_VERSION

    def stages(
        self, changes: tuple[SliceChange, ...], options: Mapping[str, object]
    ) -> tuple[Stage, ...]:
        read(Options, "immediate", options)
        return (Stage(share=1.0, new_fraction=1.0, old_fraction=0.0),)
