"""A figure: what several runs have measured, and the bar it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Bar", "Figure", "Skipped", "at_least", "at_most", "number"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A value that a figure has to reach, or must not pass."""

    side: Literal["≥", "≤", "<"]
    value: float

    def met(self, value: float) -> bool:
        """Whether ``value`` is on the right side."""
        if self.side == "≥":
            return value >= self.value
        return value < self.value if self.side == "<" else value <= self.value

    def __str__(self) -> str:
        return f"{self.side} {number(self.value)}"


def at_least(value: float) -> Bar:
    """The bar of a figure that should be large."""
    return Bar("≥", value)


def at_most(value: float) -> Bar:
    """The bar of a figure that should be small."""
    return Bar("≤", value)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: what was measured of which system, one value for each run. The median counts."""

    scenario: str
    system: str
    what: str
    unit: str
    values: Sequence[float]
    bar: Bar | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the bar; ``None`` without one."""
        return None if self.bar is None else self.bar.met(self.median)

    def as_json(self) -> dict[str, Any]:
        """The figure for a program to read."""
        return {
            "scenario": self.scenario,
            "system": self.system,
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
            "bar": str(self.bar) if self.bar else None,
            "met": self.met,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that could not be measured, and why."""

    scenario: str
    system: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The row for a program to read."""
        return {"scenario": self.scenario, "system": self.system, "skipped": self.reason}


def number(value: float) -> str:
    """A number with as many digits as anybody wants to read."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
