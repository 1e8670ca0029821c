"""Looks at whole batches of values in as few passes over memory as they take.

Knows nothing of what the values are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def not_finite(values: Tensor) -> int:
    """How many are NaN or infinite."""
    flat = values.detach().reshape(-1)
    # The sum of squares needs no mask, and is not finite whenever a value is not; it may also overflow.
    if math.isfinite(float(torch.dot(flat, flat))):
        return 0
    return int((~torch.isfinite(flat)).sum())


def finite(values: Array) -> bool:
    """Whether all of [rows, width] are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.vecdot(values, values)).all()) or bool(np.isfinite(values).all())


def within(values: Array, low: float, high: float) -> Array:
    """Values clipped to a range: a copy, or where it has no end the same array."""
    return values if endless(low, high) else np.clip(values, low, high)


def endless(low: float, high: float) -> bool:
    return low == -math.inf and high == math.inf


def energy(values: Array | Tensor) -> float | Tensor:
    """Sum of the squares of [rows, width]; of a tensor as a tensor, so that nobody waits for it."""
    if isinstance(values, Tensor):
        return values.square().sum(dtype=torch.float64)
    return float(np.vecdot(values, values).sum(dtype=np.float64))
