"""A number with its interval, and the interval from a likelihood. Pure; knows neither devices nor simulators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CARE = 1.1
"""By how much intervals are made wider than the likelihood alone would have them: estimators neglect a little of one
another's errors, and a stated interval should rather hold more often than it says (see `benchmarks/fit.py`)."""
NORMAL_95 = CARE * 1.959964
"""Two-sided 95 % point of the normal law, with care."""
DROP_95 = NORMAL_95**2 / 2
"""By how much a profile log-likelihood falls at the ends of a 95 % interval (Wilks 1938)."""


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval; an end may be infinite where the data set no bound."""

    value: float
    low: float
    high: float

    def __mul__(self, factor: float) -> Estimate:
        """Times a positive factor known exactly."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def normal(value: float, std: float) -> Estimate:
    return Estimate(value, value - NORMAL_95 * std, value + NORMAL_95 * std)


def widened(found: Estimate, relative: float) -> Estimate:
    """Of something positive, with the error of something else, a relative standard deviation, added in quadrature."""
    extra = NORMAL_95 * relative * found.value
    return Estimate(
        found.value,
        max(0.0, found.value - math.hypot(found.value - found.low, extra)),
        found.value + math.hypot(found.high - found.value, extra),
    )


def grid_interval(grid: Array, profile: Array, drop: float = DROP_95) -> Estimate:
    """From a profile log-likelihood `[points]` on an ascending grid: its top, and where it has fallen by `drop`.

    An end where it has not fallen that far is where the grid ends: the caller says what that means.
    """
    top = int(np.argmax(profile))
    value, peak = _vertex(grid, profile, top)
    limit = peak - drop
    return Estimate(value, _crossing(grid, profile, top, limit, -1), _crossing(grid, profile, top, limit, 1))


def _vertex(grid: Array, profile: Array, top: int) -> tuple[float, float]:
    """Of the parabola through the highest point and its neighbours."""
    if not 0 < top < len(grid) - 1:
        return float(grid[top]), float(profile[top])
    curve = np.polyfit(grid[top - 1 : top + 2] - grid[top], profile[top - 1 : top + 2] - profile[top], 2)
    if not curve[0] < 0:
        return float(grid[top]), float(profile[top])
    shift = -curve[1] / (2 * curve[0])
    return float(grid[top] + shift), float(profile[top] + curve[2] - curve[1] ** 2 / (4 * curve[0]))


def _crossing(grid: Array, profile: Array, top: int, limit: float, way: int) -> float:
    at = top
    while 0 <= at + way < len(grid):
        if profile[at + way] < limit:
            inside, outside = profile[at] - limit, limit - profile[at + way]
            part = inside / (inside + outside) if np.isfinite(outside) else 0.5
            return float(grid[at] + part * (grid[at + way] - grid[at]))
        at += way
    return float(grid[at])


def profile_interval(profile: Callable[[float], float], best: float, step: float, floor: float) -> Estimate:
    """The same for a function, by bisection; `best` is its place of the top, `step` a first guess at the width.

    The lower end stops at `floor`, where the profile has not fallen far enough before.
    """
    limit = profile(best) - DROP_95
    return Estimate(best, _end(profile, best, -step, limit, floor), _end(profile, best, step, limit, floor))


def _end(profile: Callable[[float], float], best: float, step: float, limit: float, floor: float) -> float:
    inside, outside = best, best + step
    for _ in range(60):
        if outside <= floor:
            if profile(floor) >= limit:
                return floor
            outside = floor
            break
        if profile(outside) < limit:
            break
        inside, outside = outside, outside + 2 * (outside - inside)
    for _ in range(30):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if profile(middle) >= limit else (inside, middle)
        if abs(outside - inside) <= 1e-4 * abs(outside - best):
            break
    return (inside + outside) / 2
