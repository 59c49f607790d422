"""The options of a strategy: the keys of `[strategy]` that are its own, checked all at once."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from aether_core.errors import ConfigError, Problem

LONGEST_S = 30 * 86_400.0  # What is to last longer than a month is no rollout any more.
LARGEST_NUMBER = 1e12  # Far above anything meant, far below where numbers lose their digits.


@dataclass(frozen=True)
class Options:
    """No options. Strategies with some derive from it: fields are keys, defaults are defaults."""

    def problems(self) -> dict[str, str]:
        """Return what is wrong: key to reason. Values are whatever TOML can hold."""
        return {}


@dataclass(frozen=True)
class Limits(Options):
    """What the new version is held to, besides the comparison with the old one."""

    max_error_rate: float | None = None  # 0..1
    max_latency_p99_ms: float | None = None

    def problems(self) -> dict[str, str]:
        """Return what is wrong: key to reason."""
        found = {}
        rate, latency_ms = self.max_error_rate, self.max_latency_p99_ms
        if rate is not None and not (is_number(rate) and 0 < rate <= 1):
            found["max_error_rate"] = f"must be above 0 and at most 1, not {rate!r}"
        if latency_ms is not None and not (is_number(latency_ms) and latency_ms > 0):
            found["max_latency_p99_ms"] = f"must be a number above 0, not {latency_ms!r}"
        return found


Model = TypeVar("Model", bound=Options)


def read(model: type[Model], strategy: str, options: Mapping[str, object]) -> Model:
    """Return the options as `model`. Errors: ConfigError with every problem at once."""
    known = [field.name for field in fields(model)]
    reasons = {
        key: f"unknown option; allowed: {', '.join(known) or 'none'}"
        for key in options
        if key not in known
    }
    values: dict[str, Any] = {key: value for key, value in options.items() if key in known}
    made = model(**values)
    reasons |= made.problems()
    if reasons:
        where = f"strategy '{strategy}'"
        problems = tuple(Problem(where, 0, key, reason) for key, reason in reasons.items())
        raise ConfigError(f"{where} cannot be used", problems=problems)
    return made


def is_number(value: object) -> bool:
    """Return whether it is a number to reckon with: TOML's booleans, nan and inf are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= LARGEST_NUMBER


def are_hundredths(percentages: list[float]) -> bool:
    """Return whether each is a whole number of basis points, which is what shares are."""
    # Not by equality: 0.07 * 100 is not 7 to a computer.
    return all(abs(percent * 100 - round(percent * 100)) < 1e-6 for percent in percentages)


def wrong_seconds(value: object, *, above: float | None = None, at_least: float = 0.0) -> str:
    """Return why it cannot be a length of time within these bounds, or nothing."""
    lower = f"at least {at_least:g}" if above is None else f"above {above:g}"
    if is_number(value):
        seconds = float(str(value))
        is_long_enough = seconds >= at_least if above is None else seconds > above
        if is_long_enough and seconds <= LONGEST_S:
            return ""
    return f"must be seconds, {lower} and at most {LONGEST_S:.0f} (30 days), not {value!r}"
