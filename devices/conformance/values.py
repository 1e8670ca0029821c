"""Inputs and parameter values that a device must take: inside every declared range, on levels, within limits.

Pure: asks nothing, draws from the generator it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import BoundarySpec, ChannelLimit, ParameterSpec, StageSpec

Array = NDArray[Any]
Values = dict[str, Array]


def inputs(spec: BoundarySpec, rows: int, width: int, rng: np.random.Generator, dtype: str) -> Array:
    """`[rows, width]`, in the middle 80 % of the range, rising in the first column.

    Rows in rising order look the same to a driver that sorts its batch; the check of order turns them round.
    """
    low, high = span(spec.low, spec.high)
    middle, half = (low + high) / 2, 0.4 * (high - low)
    drawn = middle + half * rng.uniform(-1, 1, (rows, width))
    drawn = drawn[np.argsort(drawn[:, 0], kind="stable")]
    return np.ascontiguousarray(drawn, dtype=dtype)


def span(low: float, high: float) -> tuple[float, float]:
    """A stretch of the range worth using: an end that is not finite lies 1 from 0, or 2 from the other end."""
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    if math.isfinite(low):
        return low, low + 2.0
    if math.isfinite(high):
        return high - 2.0, high
    return -1.0, 1.0


def parameters(stage: StageSpec, rng: np.random.Generator) -> Values:
    """One value for each parameter of a stage, drawn from the middle half of its range."""
    drawn = {p.name: _parameter(p, stage, rng) for p in stage.parameters}
    for limit in stage.limits:
        _bring_below(limit, drawn, stage)
    return drawn


def other(stage: StageSpec, name: str, values: Mapping[str, Array], rng: np.random.Generator) -> Values:
    """`values` with the one parameter `name` drawn anew."""
    drawn = {**values, name: parameters(stage, rng)[name]}
    for limit in stage.limits:
        _bring_below(limit, drawn, stage)
    return drawn


def _parameter(spec: ParameterSpec, stage: StageSpec, rng: np.random.Generator) -> Array:
    low, high = spec.low, spec.high
    if spec.period and not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, spec.period
    if math.isinf(low) and math.isinf(high):
        values = rng.uniform(-1, 1, spec.shape) * math.sqrt(3 / stage.in_width)
    else:
        low, high = span(low, high)
        values = low + (high - low) * rng.uniform(0.25, 0.75, spec.shape)
    return on_levels(spec, values)


def on_levels(spec: ParameterSpec, values: Array) -> Array:
    """Each value moved to the nearest level of the converter, if there is one."""
    if spec.levels is None:
        return np.asarray(values, dtype=np.float64)
    known = np.asarray(spec.levels)
    nearest: Array = known[np.searchsorted((known[1:] + known[:-1]) / 2, values, side="left")]
    return nearest


def _bring_below(limit: ChannelLimit, values: Values, stage: StageSpec) -> None:
    """Shrink the parameters of a limit towards 0 until their total is nine tenths of it."""
    specs = {p.name: p for p in stage.parameters}
    for _ in range(20):
        total = limit.total(values)
        if total <= 0.95 * limit.high:
            return
        factor = (0.9 * limit.high / total) ** (1 / limit.power)
        for name in limit.parameters:
            low, high = specs[name].low, specs[name].high
            values[name] = on_levels(specs[name], np.clip(values[name] * factor, low, high))


def steps(spec: StageSpec, held: Mapping[str, Array] | None, wanted: Values) -> list[Values]:
    """The writes from what a stage holds to what is wanted, none beyond a slew limit."""
    count = 1
    for p in spec.parameters:
        if p.slew and held is not None and p.name in held:
            moved = float(np.abs(wanted[p.name] - np.asarray(held[p.name], dtype=np.float64)).max(initial=0.0))
            count = max(count, math.ceil(moved / p.slew * (1 - 1e-9)))
    if count == 1 or held is None:
        return [wanted]
    start = {n: np.asarray(held[n], dtype=np.float64) for n in wanted}
    return [{n: start[n] + (wanted[n] - start[n]) * (i / count) for n in wanted} for i in range(1, count)] + [wanted]
