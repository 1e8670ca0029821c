"""How sure: intervals over seeds. Nothing here knows what is measured.

A seed is one independent repetition (one simulated chip, one start, one order of the data), so seeds are what is
counted, whatever else a seed was averaged over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """`low`, `high` are None where one value, or none, says nothing of spread. `confidence` is that of the interval."""

    middle: float
    low: float | None
    high: float | None
    count: int
    confidence: float = CONFIDENCE

    @property
    def is_constant(self) -> bool:
        """Several values, all alike."""
        return self.count > 1 and self.low is None

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(values: Sequence[float], comparisons: int = 1) -> Interval:
    """Mean and Student's t interval of independent values; of `comparisons` such, all hold at once (Bonferroni).

    Assumes that means of that many values are near normal. Values all alike give no interval: with a handful of seeds
    that is coarseness of the measure, not certainty.
    """
    x = np.asarray(values, dtype=np.float64)
    middle = float(x.mean()) if len(x) else math.nan
    if len(x) < 2 or np.ptp(x) <= 1e-12 * np.abs(x).max():
        return Interval(middle, None, None, len(x))
    tail = (1 - CONFIDENCE) / (2 * max(comparisons, 1))
    half = float(special.stdtrit(len(x) - 1, 1 - tail) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(middle, middle - half, middle + half, len(x))


def median_interval(values: Sequence[float]) -> Interval:
    """Median with two of the values as its interval, the tightest pair that reaches 95 %, else the outermost.

    For values of any distribution, infinite ones ("beyond the range") included: the k-th from below and from above hold
    the median with probability 1 - 2 P[Binomial(n, 1/2) < k]; that is 75 % for three seeds, 94 % for five.
    """
    x = sorted(values)
    n = len(x)
    if not n:
        return Interval(math.nan, None, None, 0)
    low, high = x[(n - 1) // 2], x[n // 2]
    middle = low if low == high or math.isinf(low) else (low + high) / 2
    if n < 2:
        return Interval(middle, None, None, n)
    k = max((k for k in range(1, n // 2 + 1) if _holds(k, n) >= CONFIDENCE), default=1)
    return Interval(middle, x[k - 1], x[n - k], n, _holds(k, n))


def _holds(k: int, n: int) -> float:
    return float(1 - 2 * special.bdtr(k - 1, n, 0.5))
