"""The options of a strategy: the keys of `[strategy]` that are its own, checked all at once."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from aether_core.errors import ConfigError, Problem


@dataclass(frozen=True)
class Options:
    """No options. Strategies with some derive from it: fields are keys, defaults are defaults."""

    def problems(self) -> dict[str, str]:
        """Return what is wrong: key to reason."""
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
            found["max_latency_p99_ms"] = f"must be above 0, not {latency_ms!r}"
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
    """Return whether it is a number; TOML's booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_seconds(value: object, *, at_least: float = 0.0) -> bool:
    """Return whether it is a length of time of at most thirty days."""
    return is_number(value) and at_least <= float(str(value)) <= 30 * 86_400
