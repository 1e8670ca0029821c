"""Whether a device still is what it was: a canary that shows drift, references that correct it. Pure: asks nothing.

Both compare a fixed batch at fixed parameters with its first answers, in device units. `tending` does the asking.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Capabilities, Device, Segment, StageSpec

Array = NDArray[Any]
_SEED = 20_260_401  # every host asks every device the same


@dataclass(frozen=True)
class HealthPolicy:
    """How a device is watched. Queries count rows of any purpose; `canary` or `reference` of 0: none.

    `limit`: allowed drift of the canary, as a fraction of its answers' spread. `on_drift`: call the device's own
    `maintain()` and look again, at most `tries` times with `pause_s` in between, or stop the run.
    """

    canary: int = 0
    limit: float = 0.1
    on_drift: Literal["maintain", "stop"] = "stop"
    tries: int = 3
    pause_s: float = 0.0
    reference: int = 0
    rows: int = 16


@dataclass
class Probe:
    """A fixed batch through a fixed segment at fixed parameters, and how it was answered at first."""

    segment: Segment
    inputs: Array
    parameters: Mapping[int, Mapping[str, Array]]
    every: int
    first: Array | None = None
    noise: float = 0.0
    asked_at: int | None = None

    def due(self, queries: int) -> bool:
        return self.asked_at is None or queries - self.asked_at >= self.every


@dataclass
class Watch:
    """What is known of one device's health. `queries` is counted by whoever asks it."""

    policy: HealthPolicy
    capabilities: Capabilities
    queries: int = 0
    reconnects: int = 0
    gain: float = 1.0
    dark: float = 0.0
    drift: float = 0.0
    canary: Probe | None = field(init=False)
    reference: Probe | None = field(init=False)

    def __post_init__(self) -> None:
        c, p = self.capabilities, self.policy
        whole = Segment(0, len(c.stages))
        self.canary = _probe(c, whole, p.canary, [_bright(c, 0, p.rows)]) if p.canary else None
        single = _reference_segment(c)
        # A dark and a bright level tell gain and offset apart.
        levels = [_dark(c, single.lo, p.rows), _bright(c, single.lo, p.rows)]
        self.reference = _probe(c, single, p.reference, levels) if p.reference else None

    def corrected(self, outputs: Array) -> Array:
        """Answers as they would have been when the reference was first asked."""
        if self.gain == 1.0 and self.dark == 0.0:
            return outputs
        kind = outputs.dtype.type
        return (outputs - kind(self.dark)) / kind(self.gain)

    def learn(self, answers: Array) -> None:
        """Take the reference's answers: y = gain * first + dark, by least squares over all rows and channels."""
        assert self.reference is not None and self.reference.first is not None
        x, y = self.reference.first.astype(np.float64).ravel(), answers.astype(np.float64).ravel()
        spread = x - x.mean()
        power = float(spread @ spread)
        gain = float(spread @ (y - y.mean())) / power if power > 0 else 1.0
        # A gain near zero is a dead device, not a slow change: leave it for the canary to see.
        self.gain = gain if gain > 0.05 else 1.0
        self.dark = float(y.mean() - self.gain * x.mean())

    def drifted(self, answers: Array) -> bool:
        """Whether the canary's answers left their first ones by more than the limit and their noise explain."""
        assert self.canary is not None and self.canary.first is not None
        first = self.canary.first.astype(np.float64)
        change = float(np.mean((answers - first) ** 2)) - 2 * self.canary.noise**2
        size = float(np.sqrt(np.mean((first - first.mean()) ** 2))) or 1.0
        self.drift = float(np.sqrt(max(0.0, change))) / size
        # Mean squares of noise scatter by sqrt(2 / count): five times that is a false alarm below 1e-6.
        slack = 5 * np.sqrt(2 / first.size) * 2 * self.canary.noise**2
        return change > (self.policy.limit * size) ** 2 + slack


_watched: weakref.WeakKeyDictionary[Any, Watch] = weakref.WeakKeyDictionary()


def watch(device: Device, policy: HealthPolicy | None = None, **settings: Any) -> Watch:
    """Have a device looked after from its next use on: `watch(device, canary=50_000, on_drift="maintain")`.

    To be called before the first `Opaque` is made on it.
    """
    _watched[device] = Watch(policy or HealthPolicy(**settings), device.capabilities)
    return _watched[device]


def watch_of(device: Device) -> Watch | None:
    return _watched.get(device)


def _probe(c: Capabilities, segment: Segment, every: int, levels: list[Array]) -> Probe:
    parameters = {k: _setting(c, k) for k in range(segment.lo, segment.hi) if c.stages[k].parameters}
    return Probe(segment, np.ascontiguousarray(np.concatenate(levels), dtype=c.dtype), parameters, every)


def _reference_segment(c: Capabilities) -> Segment:
    """One stage that can be driven and read, best one without parameters: its answers need no write."""
    single = [k for k in range(len(c.stages)) if c.boundaries[k].drive and c.boundaries[k + 1].read]
    bare = [k for k in single if not c.stages[k].parameters]
    if not single:
        return Segment(0, len(c.stages))
    k = (bare or single)[0]
    return Segment(k, k + 1)


def _dark(c: Capabilities, boundary: int, rows: int) -> Array:
    spec = c.boundaries[boundary]
    return np.full((rows, c.width(boundary)), np.clip(0.0, spec.low, spec.high))


def _bright(c: Capabilities, boundary: int, rows: int) -> Array:
    spec = c.boundaries[boundary]
    draw = np.random.default_rng([_SEED, boundary]).random((rows, c.width(boundary)))
    low, high = max(spec.low, -1.0), min(spec.high, 1.0)
    # A range that lies beyond one is used as it is.
    low, high = (low, high) if low < high else (spec.low, min(spec.high, spec.low + 1.0))
    return low + (high - low) * draw


def _setting(c: Capabilities, stage: int) -> dict[str, Array]:
    """Fixed values of a stage's parameters, within its ranges, levels and limits."""
    spec: StageSpec = c.stages[stage]
    rng = np.random.default_rng([_SEED, stage, 1])
    values: dict[str, Array] = {}
    for p in spec.parameters:
        bounded = np.isfinite(p.low) and np.isfinite(p.high)
        drawn = p.low + (p.high - p.low) * rng.random(p.shape) if bounded else rng.standard_normal(p.shape)
        values[p.name] = drawn if bounded else np.clip(drawn / np.sqrt(spec.in_width), p.low, p.high)
    for limit in spec.limits:
        over = limit.total(values) / limit.high
        for name in limit.parameters if over > 1 else ():
            values[name] = values[name] * (0.99 / over) ** (1 / limit.power)
    for p in spec.parameters:
        if p.levels is not None:
            levels = np.asarray(p.levels)
            at = np.searchsorted(levels, values[p.name]).clip(0, len(levels) - 1)
            values[p.name] = levels[at]
        values[p.name] = values[p.name].astype(c.dtype)
    return values
