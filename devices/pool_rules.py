"""What the members of a pool have in common, and whether two of them answer alike. Pure: asks no device.

The comparison of `unlike` is an F test of mean squared differences against the noise of repeated answers (any text on
analysis of variance), by the cube-root approximation of Wilson and Hilferty (1931).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, BoundarySpec, Capabilities, ChannelLimit, ParameterSpec, StageSpec
from hzo_hil.devices.errors import CapabilityError

FALSE_ALARM = 1e-6
_QUANTILE = 4.7534
"""Of the standard normal distribution, at 1 - FALSE_ALARM."""

# How a field of a stage, parameter or boundary of several members becomes one; fields not named must be equal.
Rule = Callable[[Sequence[Any]], Any]
_LOWEST: Rule = max
_HIGHEST: Rule = min


def _smallest_limit(values: Sequence[Any]) -> Any:
    """0 means no limit."""
    return min((v for v in values if v), default=0)


_BOUNDARY: dict[str, Rule] = {
    "drive": all, "read": all, "low": _LOWEST, "high": _HIGHEST, "in_step": max, "out_low": _LOWEST,
    "out_high": _HIGHEST, "out_step": max,
}  # fmt: skip
_PARAMETER: dict[str, Rule] = {"low": _LOWEST, "high": _HIGHEST, "slew": _smallest_limit}
_DEVICE: dict[str, Rule] = {
    "max_batch": _smallest_limit, "max_bytes": _smallest_limit, "latency_s": max, "query_s": max, "settling_s": max,
    "longest_call_s": max, "taps": all, "repeats": all, "keyed": all, "virtual_time": all,
}  # fmt: skip


def common(members: Sequence[Capabilities]) -> Capabilities:
    """What all of `members` can do. CapabilityError, naming two of them, where they contradict each other."""
    first = members[0]
    for other in members[1:]:
        _same(first, other, "number of stages", len(first.stages), len(other.stages))
        _same(first, other, "dtype", first.dtype, other.dtype)
    names = ", ".join(m.identity for m in members)
    stages = tuple(_stage(members, i) for i in range(len(first.stages)))
    boundaries = tuple(
        _merged(members, [m.boundaries[b] for m in members], _BOUNDARY, f"boundary {b}") for b in range(len(stages) + 1)
    )
    noises = [m.read_noise for m in members if m.read_noise is not None]
    return replace(
        first,
        identity=f"pool of {len(members)}: {names}",
        stages=stages,
        boundaries=boundaries,
        read_noise=max(noises) if len(noises) == len(members) else None,
        **{name: rule([getattr(m, name) for m in members]) for name, rule in _DEVICE.items()},
    )


def _stage(members: Sequence[Capabilities], index: int) -> StageSpec:
    stages = [m.stages[index] for m in members]
    where = f"stage {index}"
    for name in ("name", "in_width", "out_width", "structure"):
        _all_same(members, [getattr(s, name) for s in stages], f"{where}: {name}")
    _all_same(members, [[p.name for p in s.parameters] for s in stages], f"{where}: parameters")
    parameters = tuple(
        _merged(members, [s.parameters[k] for s in stages], _PARAMETER, f"{where}, parameter {p.name!r}")
        for k, p in enumerate(stages[0].parameters)
    )
    limits: dict[str, ChannelLimit] = {}
    for limit in (limit for s in stages for limit in s.limits):
        if limit.name not in limits or limit.high < limits[limit.name].high:
            limits[limit.name] = limit
    return replace(
        stages[0], parameters=parameters, linear=all(s.linear for s in stages), limits=tuple(limits.values())
    )


def _merged(members: Sequence[Capabilities], specs: Sequence[Any], rules: dict[str, Rule], where: str) -> Any:
    """One ParameterSpec or BoundarySpec out of those of all members."""
    made: dict[str, Any] = {}
    for name in vars(specs[0]):
        values = [getattr(s, name) for s in specs]
        if name in rules:
            made[name] = rules[name](values)
        else:
            _all_same(members, values, f"{where}: {name}")
            made[name] = values[0]
    if not made["low"] < made["high"]:
        low, high = max(specs, key=_low), min(specs, key=_high)
        raise CapabilityError(
            f"members of the pool have no range in common: {where} is at least {made['low']:g} for"
            f" {members[specs.index(low)].identity!r} and at most {made['high']:g} for"
            f" {members[specs.index(high)].identity!r}"
        )
    return type(specs[0])(**made)


def _low(spec: ParameterSpec | BoundarySpec) -> float:
    return spec.low


def _high(spec: ParameterSpec | BoundarySpec) -> float:
    return spec.high


def _all_same(members: Sequence[Capabilities], values: Sequence[Any], what: str) -> None:
    for member, value in zip(members[1:], values[1:], strict=True):
        _same(members[0], member, what, values[0], value)


def _same(first: Capabilities, other: Capabilities, what: str, a: Any, b: Any) -> None:
    if a != b:
        raise CapabilityError(
            f"members of a pool contradict each other: {what} is {a} for {first.identity!r} and {b} for"
            f" {other.identity!r}. A pool is of devices of one kind"
        )


# --- do two members answer alike? --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Root mean squares in units of the output; `worst` is (row, output, difference) of the largest."""

    found: float
    explained: float
    worst: tuple[int, int, float]

    def __str__(self) -> str:
        row, column, size = self.worst
        return (
            f"by {self.found:.3g} root mean square where noise explains {self.explained:.3g} (most at output"
            f" {column}, row"
            f" {row}: {size:.3g})"
        )


def unlike(a: Array, b: Array, spec: BoundarySpec, tolerance: float) -> Difference | None:
    """None where answers `a` and `b` `[repeat, row, output]` to the same rows differ no more than by noise.

    The noise of each output is that of the repeats of both. With independent Gaussian noise two equal devices are told
    apart by mistake with a probability of FALSE_ALARM at most. `tolerance` (units of the output, root mean square)
    is allowed beside the noise, as are a converter step and float32 sums in another order (1e-6 of the largest answer).
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (a, b))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(float("inf"), 0.0, (0, 0, float("inf")))
    repeats, rows, outputs = a.shape
    apart = b.mean(axis=0) - a.mean(axis=0)
    variance = (a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)).mean(axis=0) / 2  # [output]
    rounding = spec.out_step**2 / 12 + (1e-6 * float(np.abs(a).max(initial=0.0))) ** 2
    expected = 2 * variance / repeats + rounding + tolerance**2
    ratio = float((apart**2 / np.maximum(expected, np.finfo(float).tiny)).mean())
    freedom, noise_freedom = rows * outputs, 2 * (repeats - 1) * rows * outputs
    if _normal_score(ratio, freedom, noise_freedom) <= _QUANTILE:
        return None
    row, column = np.unravel_index(int(np.abs(apart).argmax()), apart.shape)
    return Difference(
        float(np.sqrt((apart**2).mean())),
        float(np.sqrt(expected.mean())),
        (int(row), int(column), float(apart[row, column])),
    )


def _normal_score(ratio: float, n: int, m: int) -> float:
    """The standard normal value as likely as an F ratio with n and m degrees of freedom (Wilson and Hilferty)."""
    a, b, root = 2 / (9 * n), 2 / (9 * m), ratio ** (1 / 3)
    return ((1 - b) * root - (1 - a)) / float(np.sqrt(b * root**2 + a))
