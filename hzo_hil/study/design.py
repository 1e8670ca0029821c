"""Which points of its axes a study looks at: all of them, or a sample that meets every seed and method.

A point is a level for each axis. Knows no fields and runs nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hzo_hil.devices.errors import ConfigError
from hzo_hil.streams import generator, stream_key
from hzo_hil.study.constraints import Constraint
from hzo_hil.study.studyfile import CROSSED, AxisSection, DesignSection, levels_of, role_of

Point = dict[str, Any]


def size(design: DesignSection, axes: Mapping[str, AxisSection]) -> int:
    """Points before constraints."""
    levels = [len(levels_of(a) or ()) for n, a in axes.items() if design.kind == "grid" or role_of(n, a) in CROSSED]
    return math.prod(levels) * (design.runs or 1)


def points(design: DesignSection, axes: Mapping[str, AxisSection], constraints: list[str]) -> Iterator[Point]:
    """Every point that meets the constraints, in the order of the axes, the last one fastest. Raises ConfigError."""
    rules = [Constraint(text, list(axes)) for text in constraints]
    for point in _all(design, axes):
        if all(rule.holds(point) for rule in rules):
            yield point


def _all(design: DesignSection, axes: Mapping[str, AxisSection]) -> Iterator[Point]:
    if design.kind == "grid":
        yield from _grid({n: levels_of(a) or [] for n, a in axes.items()})
        return
    crossed = {n: levels_of(a) for n, a in axes.items() if role_of(n, a) in CROSSED}
    sampled = {n: a for n, a in axes.items() if n not in crossed}
    empty = [n for n, levels in crossed.items() if levels is None]
    if empty:
        raise ConfigError(f"axes {', '.join(empty)}: seeds and methods are compared on every point, so give values")
    if not sampled:
        raise ConfigError(f"design {design.kind}: there is nothing to sample beside seeds and methods; use grid")
    for row in _sample(design, len(sampled)):
        drawn = {n: _level(a, u) for (n, a), u in zip(sampled.items(), row, strict=True)}
        for chosen in _grid({n: levels or [] for n, levels in crossed.items()}):
            yield {n: (drawn | chosen)[n] for n in axes}


def _grid(levels: Mapping[str, list[Any]]) -> Iterator[Point]:
    for chosen in itertools.product(*levels.values()):
        yield dict(zip(levels, chosen, strict=True))


def _sample(design: DesignSection, dimensions: int) -> np.ndarray[Any, Any]:
    """Points `[runs, dimensions]` of the unit cube."""
    key = (design.seed, "study", design.kind)
    runs = design.runs or 1
    if design.kind == "random":
        return generator(*key).random((runs, dimensions))
    from scipy.stats import qmc

    return np.asarray(qmc.LatinHypercube(dimensions, rng=stream_key(*key)).random(runs))


def _level(axis: AxisSection, u: float) -> Any:
    """The level at `u` of 0..1."""
    levels = levels_of(axis)
    if levels is not None:
        return levels[min(int(u * len(levels)), len(levels) - 1)]
    low, high = axis.low or 0.0, axis.high or 0.0
    if axis.scale == "log":
        return float(low * (high / low) ** u)
    return float(low + (high - low) * u)
