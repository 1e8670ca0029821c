"""Finding a converter's step from what it does to numbers. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def grid_of(values: Array, rounding: float) -> float | None:
    """The step of the grid that values `[row, column]` lie on; None where they lie on none.

    Each column is judged alone (gains may differ): the smallest gap between distinct values must divide all others.
    Too many distinct values for the rows asked look like no grid.
    """
    steps = [s for column in values.T if (s := _column_grid(column, rounding))]
    constant = sum(np.ptp(c) <= rounding for c in values.T)
    return float(np.median(steps)) if steps and len(steps) + constant == values.shape[1] else None


def _column_grid(column: Array, rounding: float) -> float | None:
    ordered = np.sort(column)
    # Values a rounding apart are one.
    heads = np.concatenate([[True], np.diff(ordered) > 4 * rounding])
    distinct = ordered[heads]
    if len(distinct) < 3 or len(distinct) > 0.7 * len(column):
        return None
    gaps = np.diff(distinct)
    step = float(gaps.min())
    whole = gaps / step
    step = float(gaps.sum() / np.rint(whole).sum())
    whole = gaps / step
    return step if np.abs(whole - np.rint(whole)).max() < 0.1 else None


def stair_of(ramp: Array, answers: Array, rounding: float) -> float | None:
    """The step of an input converter from answers `[row, column]` to a ramp; 0 for a smooth curve; None: cannot tell.

    Where all columns jump at even distances the input is rounded. A read-out's converter, or one hidden behind a
    non-linearity, jumps at other places in every column.
    """
    jumps = np.flatnonzero((np.abs(np.diff(answers, axis=0)) > rounding).any(axis=1))
    if len(jumps) > 0.6 * len(ramp):
        return 0.0
    if not 5 <= len(jumps) <= len(ramp) // 4:
        return None
    sample = float(ramp[-1] - ramp[0]) / (len(ramp) - 1)
    gaps = np.diff(jumps) * sample
    even = np.abs(gaps - np.median(gaps)).max() <= 1.5 * sample
    return float((ramp[jumps[-1]] - ramp[jumps[0]]) / (len(jumps) - 1)) if even else None
