"""How much of a noise a method stands: the level up to which it keeps a share of what it reaches at the least noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hzo_hil.report.intervals import Interval, median_interval
from hzo_hil.report.model import Axis, Material, Metric, Run, Value, is_number
from hzo_hil.report.slices import along

KEEP = 0.95


@dataclass(frozen=True)
class Threshold:
    """`at` is the median over seeds in the order of noise: of bits the negative number, as fewer are more noise.

    Infinite: it held at every level that was run. Minus infinite: it was lost at the first level after "none".
    """

    method: str
    axis: Axis
    clean: float
    """Mean outcome at the least noise."""
    at: Interval
    levels: Sequence[Value]
    """From clean to noisy."""

    def shown(self, value: float) -> str:
        axis = self.axis
        if value == math.inf:
            return f"beyond the range (held at {axis.shown(self.levels[-1])})"
        if value == -math.inf:
            return f"not held at {axis.shown(self.levels[1])}"
        return axis.shown(float(f"{abs(value) if axis.counts_bits else value:.3g}"))

    def spread(self) -> str:
        """The interval in words; empty where there is none."""
        if self.at.low is None or self.at.high is None:
            return ""
        low, high = self.shown(self.at.low), self.shown(self.at.high)
        if low == high:
            return low
        if self.axis.counts_bits and math.isfinite(self.at.low):
            low, high = high, low
        if math.isfinite(self.at.low) and math.isfinite(self.at.high) and self.axis.unit:
            low = low.removesuffix(f" {self.axis.unit}")
        return f"{low} to {high}" if math.isfinite(self.at.low) else f"from “{low}” to {high}"


def thresholds(
    material: Material, axis: Axis, runs: Sequence[Run], metric: Metric, keep: float = KEEP
) -> list[Threshold]:
    """Of every method along one axis with levels. Only seeds that were run at every level count."""
    found = []
    for method, rows in along(material, axis, runs, metric).items():
        seeds = [s for s in rows[0][1] if all(s in table for _, table in rows)]
        clean = sum(rows[0][1][s] for s in seeds) / len(seeds) if seeds else 0.0
        levels = [level for level, _ in rows]
        if len(rows) < 2 or clean <= 0 or levels[0] != axis.from_clean[0] or not _ordered(levels):
            continue
        places = [_place(axis, level) for level in levels]
        crossings = [crossing(places, [table[s] for _, table in rows], metric.sign, keep) for s in seeds]
        found.append(Threshold(method, axis, clean, median_interval(crossings), levels))
    return found


def _ordered(levels: Sequence[Value]) -> bool:
    return all(is_number(v) or v is None for v in levels)


def _place(axis: Axis, level: Value) -> float:
    if level is None:
        return -math.inf
    number = float(level)
    return -number if axis.counts_bits else number


def crossing(places: Sequence[float], curve: Sequence[float], sign: int, keep: float) -> float:
    """Where a curve over `places`, from clean to noisy, is first worse than its share of the first value.

    Linear between two levels; infinite where it never is worse. `sign` is 1 where more is better, -1 where less is. The
    *first* time: a curve that recovers by chance does not move it, which errs to the cautious side.
    """
    limit = curve[0] * keep if sign > 0 else curve[0] / keep
    for i in range(1, len(curve)):
        before, value = curve[i - 1], curve[i]
        if sign * (value - limit) < 0:
            if math.isinf(places[i - 1]):
                return -math.inf
            return places[i - 1] + (before - limit) / (before - value) * (places[i] - places[i - 1])
    return math.inf
