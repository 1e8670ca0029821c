"""What a report is about: runs, the axes they lie on, and what was measured. Knows neither files nor figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

Value = str | float | int | bool | None
Role = Literal["noise", "method", "seed", "setting"]
COSTS = ("queries", "stage_evaluations", "device_seconds", "wall_seconds", "calls", "writes", "steps")
TIERS = ("loss", "taps", "inject", "twin", "graph")  # what the host was told, least first


@dataclass(frozen=True)
class Axis:
    """Something that was varied. `levels` in the order of the study file; None where it was drawn from a range."""

    name: str
    label: str
    unit: str
    role: Role
    levels: tuple[Value, ...] | None
    tiers: Mapping[str, str] = field(default_factory=dict)
    """Of a method axis: what the host was told for each method."""
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def counts_bits(self) -> bool:
        return self.unit in ("bit", "bits")

    @property
    def from_clean(self) -> tuple[Value, ...]:
        """Levels from the least noise to the most: of bits the most first, of all else what is nearest to 0.

        None stands for "no such noise, no converter" and comes first. Words keep their order.
        """
        levels = self.levels or ()
        numbers = [v for v in levels if is_number(v)]
        if len(numbers) + (None in levels) != len(levels):
            return levels
        ordered = sorted(numbers, key=lambda v: -float(v) if self.counts_bits else abs(float(v)))
        return (*([None] if None in levels else []), *ordered)

    def shown(self, level: Value) -> str:
        """A level in words with its unit."""
        text = show(level)
        return text if not self.unit or level is None else f"{text} {self.unit}"

    def span(self, first: Value, last: Value) -> str:
        """From one level to another, the unit said once."""
        return f"{show(first) if is_number(first) and is_number(last) else self.shown(first)} to {self.shown(last)}"


@dataclass(frozen=True)
class Metric:
    """A number that every run gives. `better` is None where neither direction is."""

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"] | None

    @property
    def is_fraction(self) -> bool:
        return self.unit == "fraction"

    @property
    def title(self) -> str:
        unit = "%" if self.is_fraction else self.unit
        return f"{self.label} ({unit})" if unit else self.label

    @property
    def sign(self) -> int:
        """Times a difference: positive is better."""
        return -1 if self.better == "lower" else 1

    @property
    def scale(self) -> float:
        return 100.0 if self.is_fraction else 1.0

    def shown(self, value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "-"
        if self.is_fraction:
            return f"{100 * value:.1f} %"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

    def bare(self, value: float) -> str:
        """Without the unit, as the end of an interval."""
        return f"{100 * value:.1f}" if self.is_fraction else f"{value:.3g}"

    def difference(self, value: float) -> str:
        """A difference of two values; fractions differ by percentage points."""
        return f"{100 * value:.1f} points" if self.is_fraction else f"{value:.3g}"


@dataclass(frozen=True)
class Run:
    """One run. `folder` is what `train` wrote, where it did; `home` is what a reader is sent to."""

    name: str
    status: Literal["done", "failed", "missing"]
    at: Mapping[str, Value]
    metrics: Mapping[str, float]
    error: str = ""
    folder: Path | None = None
    home: Path | None = None


@dataclass(frozen=True)
class Settings:
    """All that is needed to do it again."""

    rows: Sequence[tuple[str, str]]
    text: str
    """The study file or the configuration, as resolved (YAML)."""
    differences: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By run, "field: first run's value -> its own"."""


@dataclass
class Material:
    """A study, a comparison or a single run, as read."""

    kind: Literal["study", "comparison", "run"]
    name: str
    axes: Sequence[Axis]
    metrics: Sequence[Metric]
    runs: Sequence[Run]
    settings: Settings
    devices: Mapping[str, Any] = field(default_factory=dict)
    """By device identity, a snapshot."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, and the like."""

    def of_role(self, role: Role) -> list[Axis]:
        return [a for a in self.axes if a.role == role]

    @property
    def done(self) -> list[Run]:
        return [r for r in self.runs if r.status == "done"]

    @property
    def outcomes(self) -> list[Metric]:
        """What is to be good: the score where there is one, else up to four metrics with a better direction."""
        score = [m for m in self.metrics if m.name == "score"]
        if score:
            return score
        wanted = [m for m in self.metrics if m.better and m.name not in COSTS]
        return (wanted or [m for m in self.metrics if m.name not in COSTS] or list(self.metrics))[:4]

    def metric(self, name: str) -> Metric | None:
        return next((m for m in self.metrics if m.name == name), None)

    def method(self, run: Run) -> str:
        """The name of what was compared; "" where nothing was."""
        return ", ".join(show(run.at.get(a.name)) for a in self.of_role("method"))

    def seed(self, run: Run) -> tuple[Value, ...]:
        return tuple(run.at.get(a.name) for a in self.of_role("seed"))

    def tier(self, method: str) -> str:
        return next((a.tiers[method] for a in self.of_role("method") if method in a.tiers), "")

    @property
    def methods(self) -> list[str]:
        """Those with a run that is done, by tier, else in the order of the study file."""
        order = [show(v) for a in self.of_role("method") for v in a.levels or ()]
        found = list(dict.fromkeys(self.method(r) for r in self.done))
        found.sort(key=lambda m: order.index(m) if m in order else len(order))
        known = [*TIERS, *(t for a in self.of_role("method") for t in a.tiers.values())]
        return sorted(found, key=lambda m: known.index(t) if (t := self.tier(m)) else len(known))

    @property
    def seeds(self) -> list[tuple[Value, ...]]:
        return list(dict.fromkeys(self.seed(r) for r in self.done))


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentence(held: str) -> str:
    """How the other axes stand, as the end of a caption."""
    return f" With {held}." if held else ""


def listed(parts: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def show(value: Value) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
