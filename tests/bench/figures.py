"""What a measurement says: samples beside the samples of its floor, and what was hoped for."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Of(StrEnum):
    """What a goal bounds."""

    VALUE = "value"
    RATIO = "ratio"  # value / floor
    EXCESS = "excess"  # value - floor


@dataclass(frozen=True)
class Goal:
    """A bound on a figure. It is printed beside the figure and decides nothing."""

    of: Of
    bound: float
    at_least: bool = False

    def text(self, unit: str) -> str:
        sign = "≥" if self.at_least else "≤"
        if self.of == Of.VALUE:
            return f"{sign} {self.bound:g} {unit}".rstrip()
        if self.of == Of.RATIO:
            return f"{sign} {self.bound:g} times the floor"
        return f"{sign} floor + {self.bound:g} {unit}".rstrip()


@dataclass(frozen=True)
class Figure:
    """One measured quantity. Units: `samples` and `floor` are both in `unit`.

    `quantile`: which of the samples is the figure; the floor is taken at the same one.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    floor: tuple[float, ...] = ()
    floor_is: str = ""
    goal: Goal | None = None
    quantile: float = 0.5

    @property
    def value(self) -> float:
        return quantile(self.samples, self.quantile)

    @property
    def floor_value(self) -> float | None:
        return quantile(self.floor, self.quantile) if self.floor else None

    @property
    def ratio(self) -> float | None:
        floor = self.floor_value
        return self.value / floor if floor else None

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        floor = self.floor_value or 0.0
        measured = {
            Of.VALUE: self.value,
            Of.RATIO: self.ratio or 0.0,
            Of.EXCESS: self.value - floor,
        }[self.goal.of]
        return measured >= self.goal.bound if self.goal.at_least else measured <= self.goal.bound

    def document(self) -> dict[str, Any]:
        """Return the figure as JSON-ready values, the samples included."""
        return {
            "name": self.name,
            "unit": self.unit,
            "value": round(self.value, 4),
            "quantile": self.quantile,
            "floor": None if self.floor_value is None else round(self.floor_value, 4),
            "floor_is": self.floor_is,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "goal": self.goal.text(self.unit) if self.goal else "",
            "met": self.is_met,
            "spread": [round(min(self.samples), 4), round(max(self.samples), 4)],
            "samples": len(self.samples),
        }


def quantile(samples: Sequence[float], part: float) -> float:
    """Return the sample below which `part` of the samples lie, interpolated between two."""
    ordered = sorted(samples)
    assert ordered, "a figure has at least one sample"
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
