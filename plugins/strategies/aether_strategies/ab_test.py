"""Two variants side by side: who gets which is decided by what the request carries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aether_core.drivers import API_VERSION, SliceChange, Split, Stage
from aether_strategies.options import Options, are_hundredths, is_number, read, wrong_seconds

CONTEXTS = ("header", "cookie", "query")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class AbTestOptions(Options):
    """`context`: what tells visitors apart, such as {header = "x-user"}, {cookie = "uid"} or
    {query = "user"}. `variants`: name to percent, what runs first, then what is deployed.
    `force_header`: a header whose value names the variant, for testers. `end_after_s`: without a
    winner by then, what ran before stays.
    """

    context: Any = None
    variants: Any = None
    force_header: str = ""
    end_after_s: float = 14 * 86_400.0

    def problems(self) -> dict[str, str]:
        """Return what is wrong: key to reason."""
        found = {}
        context, variants = self.context, self.variants
        if not isinstance(context, dict) or len(context) != 1 or not _is_context(context):
            allowed = 'one of {header = "x-user"}, {cookie = "uid"}, {query = "user"}'
            found["context"] = f"must be {allowed}, not {context!r}"
        if variants is not None and not _are_variants(variants):
            allowed = "two names with percentages that sum to 100, such as {A = 90, B = 10}"
            found["variants"] = f"must be {allowed} (whole hundredths), not {variants!r}"
        if not isinstance(self.force_header, str) or not (
            self.force_header == "" or NAME.fullmatch(self.force_header)
        ):
            found["force_header"] = f"must be the name of a header, not {self.force_header!r}"
        if reason := wrong_seconds(self.end_after_s, above=0):
            found["end_after_s"] = reason
        return found


class AbTest:
    """`[strategy] kind = "ab_test"`. Ends with `complete --winner` or `variant remove`."""

    api_version: ClassVar[int] = API_VERSION

    def stages(
        self, changes: tuple[SliceChange, ...], options: Mapping[str, object]
    ) -> tuple[Stage, ...]:
        wanted = read(AbTestOptions, "ab_test", options)
        (old, _), (new, percent) = (wanted.variants or {"A": 50, "B": 50}).items()
        ((by, name),) = wanted.context.items()
        split = Split(by, name.lower() if by == "header" else name, wanted.force_header, old, new)
        side_by_side = Stage(
            share=percent / 100,
            new_fraction=1.0,
            old_fraction=1.0,
            is_manual=True,
            patience_s=wanted.end_after_s,
            split=split,
        )
        return (side_by_side, Stage(share=1.0, new_fraction=1.0, old_fraction=0.0))


def _is_context(context: dict[str, Any]) -> bool:
    return all(
        by in CONTEXTS and isinstance(name, str) and NAME.fullmatch(name)
        for by, name in context.items()
    )


def _are_variants(variants: Any) -> bool:
    return (
        isinstance(variants, dict)
        and len(variants) == 2
        and all(NAME.fullmatch(str(name)) for name in variants)
        and all(is_number(percent) and percent > 0 for percent in variants.values())
        and are_hundredths([*variants.values()])
        and round(sum(variants.values()), 2) == 100
    )
