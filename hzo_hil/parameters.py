"""Master parameters against what a device can hold: ranges, converter codes, slew.

Masters are torch tensors in full precision; what is written is the nearest converter level, so that
updates below one step add up in the master.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput

Array = NDArray[Any]


def fold(spec: ParameterSpec, values: Tensor) -> int:
    """Bring a master back into its range, in place, by the spec's `edge` rule; return how many values moved."""
    low, high = spec.low, spec.high
    if spec.edge == "wrap":
        base = low if math.isfinite(low) else 0.0
        folded = base + (values - base).remainder(spec.period)
    elif not math.isfinite(low) and not math.isfinite(high):
        return 0
    elif spec.edge == "reflect":
        span = high - low
        phase = (values - low).remainder(2 * span)
        folded = low + phase.minimum(2 * span - phase)
    else:
        folded = values.clamp(low, high)
    outside = (values < low) | (values > high) if spec.edge != "wrap" else folded != values
    moved = int(outside.sum())
    if moved:
        values.copy_(folded.where(outside, values))
    return moved


def to_device(spec: ParameterSpec, values: Tensor, dtype: str, where: str) -> Array:
    """What will be written: the nearest level of the converter, or the values in the device's dtype."""
    array = values.detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise BadInput(
            f"{where}: parameter {spec.name!r} holds {bad} non-finite values, nothing was written."
            " Likely cause: a diverging optimiser; lower its learning rate"
        )
    if spec.levels is None:
        return array.astype(dtype)
    levels = np.asarray(spec.levels)
    return levels[nearest(levels, array)].astype(dtype)


def settled(spec: ParameterSpec, values: Array, dtype: str, where: str) -> Array:
    """What the device will hold of perturbed `values`: cut at the ends (a reflected probe could end where it began)."""
    master = torch.as_tensor(np.array(values, dtype=np.float64))
    fold(replace(spec, edge="clip") if spec.edge == "reflect" else spec, master)
    return to_device(spec, master, dtype, where)


def nearest(levels: Array, values: Array) -> Array:
    """Index of the level nearest each value; ties go down."""
    middles = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middles, values, side="left")


def slewed(spec: ParameterSpec, held: Array | None, wanted: Array) -> list[Array]:
    """The writes that lead from what a device holds to what is wanted, none changing a value by more than `slew`."""
    if not spec.slew or held is None:
        return [wanted]
    change = wanted.astype(float) - held
    count = max(1, math.ceil(float(np.abs(change).max(initial=0.0)) / spec.slew * (1 - 1e-9)))
    return [(held + change * (i / count)).astype(wanted.dtype) for i in range(1, count)] + [wanted]


def widest_gap(spec: ParameterSpec) -> float:
    """The largest step of the converter; 0 without one."""
    return float(np.diff(spec.levels).max()) if spec.levels else 0.0


def difference(spec: ParameterSpec, plus: Array, minus: Array) -> Array:
    """plus - minus in float64, the short way round for values that wrap."""
    change = plus.astype(np.float64) - minus
    if spec.edge == "wrap":
        change -= spec.period * np.round(change / spec.period)
    return change
