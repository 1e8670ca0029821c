"""Poisson numbers by inversion: the count follows from one uniform number and the mean, and grows with both.

So means that differ by rounding give the same count, or at times its neighbour. Knows nothing of light.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from hzo_hil.simulators.arrays import is_numpy

_FEW = 16.0  # means below which probabilities are added up one by one
_BLOCK = 1 << 13  # numbers that numpy handles at once: its intermediate arrays stay in the cache
_MOST = 120  # counts that a mean below `_FEW` never reaches


def poisson(uniform: Any, mean: Any) -> Any:
    """The smallest n with P(N <= n) >= u for a Poisson N: float64 arrays or tensors of one shape, and so the answer.

    Means from 16 up: a Cornish-Fisher expansion (in the form of Giles, ACM Trans. Math. Softw. 42(1), 7, 2016) is
    taken where it is surely right; elsewhere the cumulative probability, an incomplete gamma function, decides.
    Means below 0 count as 0, a u of 0 as 1e-17.
    """
    if is_numpy(mean) and mean.size > _BLOCK:
        parts = range(0, mean.size, _BLOCK)
        flat, means = uniform.ravel(), mean.ravel()
        found = np.concatenate([poisson(flat[p : p + _BLOCK], means[p : p + _BLOCK]) for p in parts])
        return found.reshape(mean.shape)
    xp, lib = (np, special) if is_numpy(mean) else _torch()
    uniform, mean = xp.clip(uniform, 1e-17, None), xp.clip(mean, 0.0, None)
    few = mean < _FEW
    w = lib.ndtri(uniform)
    square, root = w * w, xp.sqrt(xp.where(few, _FEW, mean))
    # P(N <= n) = u at n + 1 = point, were n continuous: the count is the integer below.
    point = mean + root * w + (1 / 3 + square / 6) - w * (square + 2) / (72 * root)
    count = xp.clip(xp.ceil(point) - 1, 0.0, None)
    doubt = (1 + square) * (1 + square) / (25 * mean + 1)  # twice the next term
    unsure = ~few & (xp.abs(point - xp.round(point)) < doubt)
    if unsure.any():
        count[unsure] = _decided(xp, lib, uniform[unsure], mean[unsure], count[unsure])
    if few.any():
        count[few] = _added(xp, uniform[few], mean[few])
    return count


def _added(xp: Any, uniform: Any, mean: Any) -> Any:
    """Small means: how many cumulative probabilities lie below u."""
    count, term = mean * 0, xp.exp(-mean)
    total = term * 1
    for n in range(1, _MOST):
        below = (total < uniform) & (term > 1e-17)  # what comes behind is lost in the rounding of the total
        if not below.any():
            break
        count += below
        term *= mean / n
        total += term
    return count


def _decided(xp: Any, lib: Any, uniform: Any, mean: Any, count: Any) -> Any:
    """Step up or down from a near count until it is the right one."""
    while (low := lib.gammaincc(count + 1, mean) < uniform).any():
        count = xp.where(low, count + 1, count)
    while (high := (count > 0) & (lib.gammaincc(xp.clip(count, 1e-9, None), mean) >= uniform)).any():
        count = xp.where(high, count - 1, count)
    return count


def _torch() -> tuple[Any, Any]:
    import torch

    return torch, torch.special
