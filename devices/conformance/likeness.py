"""Whether two sets of answers are alike, by the device's own noise. Pure; knows no device.

A sample is an array `[shot, row, column]` of answers to the same question asked several times. Two samples are compared
element by element with Student's t; the level of an element is that of its row in the report divided by all elements
compared there (Bonferroni), so whatever correlation the noise has, a row's false-alarm rate is at most its level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TOTAL_ALPHA = 1e-3
"""The chance that a sound device fails the whole kit."""
STATISTICAL_ROWS = 40
"""At least as many as the kit has rows that compare answers (asserted where the kit lists them)."""
ROW_ALPHA = TOTAL_ALPHA / STATISTICAL_ROWS


def t_quantile(tail: float, freedom: int) -> float:
    """The value Student's t exceeds with probability `tail`: Cornish-Fisher (Abramowitz & Stegun 26.7.5)."""
    z = -NormalDist().inv_cdf(tail)
    n = float(freedom)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def chi_square_quantile(tail: float, freedom: float) -> float:
    """The value chi-square exceeds with probability `tail` (Wilson & Hilferty 1931)."""
    z = -NormalDist().inv_cdf(tail)
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


@dataclass(frozen=True)
class Likeness:
    """`worst`: the largest difference of an element; `resolved`: the smallest difference that would have shown."""

    alike: bool
    worst: float
    resolved: float
    text: str


def compare(a: Array, b: Array, *, rounding: float, codes: bool = False, tests: int = 1) -> Likeness:
    """Samples `[shot, row, column]` of one shape. One shot each: they must agree to `rounding` (absolute).

    `codes`: a converter lies on the way, so of single shots 2 % of the elements (at least one) may differ: a value at
    the edge of a code falls either way. `tests`: samples compared in the same row of the report.
    """
    if len(a) == 1:
        return _exact(a[0], b[0], rounding, codes)
    shots = len(a)
    difference = np.abs(a.mean(axis=0) - b.mean(axis=0))
    variance = (a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / 2
    # An element that happened to scatter little is judged by the scatter of all.
    deviation = np.sqrt(np.maximum(variance, variance.mean()))
    limit = t_quantile(ROW_ALPHA / (2 * difference.size * tests), 2 * shots - 2)
    allowed = limit * deviation * math.sqrt(2 / shots) + rounding
    worst, resolved = float(difference.max(initial=0.0)), float(np.median(allowed)) if allowed.size else 0.0
    ok = bool((difference <= allowed).all())
    text = f"differs by {worst:.3g} at most, {resolved:.3g} would show (false-alarm rate {ROW_ALPHA:.2g})"
    return Likeness(ok, worst, resolved, text)


def _exact(a: Array, b: Array, rounding: float, codes: bool) -> Likeness:
    difference = np.abs(a - b)
    off = int(np.count_nonzero(~(difference <= rounding)))
    allowed = max(1, difference.size // 50) if codes else 0
    worst = float(difference.max(initial=0.0))
    text = f"differs by {worst:.3g} at most, {rounding:.2g} is rounding"
    return Likeness(off <= allowed, worst, rounding, text)
