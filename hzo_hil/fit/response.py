"""How the stage that is measured answers in the simulator: without defects, and how it scatters by CONFIG alone.

All by simulating, so that it holds for every kind of chip. Asks no device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devicesections import DeviceSection
from hzo_hil.simulators import chip
from hzo_hil.simulators.model import StageModel

Array = NDArray[Any]

NOISE = ("noise_std", "read_noise_std")
"""Options of plain noise at the output, by kind of chip."""
WRITE_KEY = 1
"""Names the noise of the one write, so that a keyed device realises what the simulator does."""
# An endless integration has no noise; unlike a bandwidth of 0 it leaves a detector that settles as it is.
_SILENT = {"amplifier_noise": 0.0, "integration_s": 1e30, "statistics": "gaussian"}
_OPEN = {"in_bits": None, "out_bits": None, "in_bound": 1e9, "out_bound": math.inf}
_SHOTS = 128
_DARK_SHOTS = 1 << 14
_ALIKE = 5.0  # standard deviations within which simulated noise counts as what the model says of itself


@dataclass(frozen=True)
class Response:
    """`pull` `[patterns, out]`: answers at amplitude 1, without noise and converters.

    Variances without plain noise are dark + linear v^degree + quadratic v^(2 degree): `dark` `[out]` (amplifiers, light
    of a local oscillator), `linear` and `quadratic` `[patterns, out]` (shot noise, phase noise). `noise_gain` `[out]`:
    standard deviation for a plain noise of 1.
    """

    pull: Array
    dark: Array
    linear: Array
    quadratic: Array
    noise_gain: Array


@dataclass(frozen=True)
class Simulator:
    """CONFIG's chip `seed`, with other options where it is asked for, seen at one stage."""

    section: DeviceSection
    options: Mapping[str, Any]
    seed: int
    stage: int

    def built(self, changes: Mapping[str, Any]) -> StageModel:
        known = {name: value for name, value in changes.items() if name in self.options}
        changed = {**self.section.options, **known}
        return chip.build(str(self.section.kind), self.section.preset, self.seed, **changed)[self.stage]

    @cached_property
    def clean(self) -> StageModel:
        """Without detector noise and converters."""
        silent = dict(_SILENT) if "integration_s" in self.options else {**_SILENT, "bandwidth": 0.0}
        return self.built({**dict.fromkeys(NOISE, 0.0), **silent, **_OPEN})


def _asker(model: StageModel, values: Mapping[str, Array]) -> Any:
    state = model.at(model.program(values, WRITE_KEY), 0.0)

    def ask(inputs: Array, shot: int = 0) -> Array:
        keys = np.arange(len(inputs), dtype=np.uint64) + np.uint64(shot << 32)
        return np.asarray(model.run(state, inputs, keys), dtype=np.float64)

    return ask


def degree_of(simulator: Simulator, values: Mapping[str, Array], patterns: Array, signed: bool) -> int | None:
    """1 for a stage whose answers are linear, 2 for one that answers with the square; None for neither."""
    ask = _asker(simulator.clean, values)
    whole, error = _mean(ask, patterns)
    size = float(np.abs(whole).max())
    slack = 1e-9 * size + 8 * error
    if not size > 0 or np.abs(_mean(ask, 0 * patterns)[0]).max() > slack:
        return None
    for degree in (1, 2):
        alike = [(0.5, 0.5**degree), (0.1, 0.1**degree)] + ([(-1.0, (-1.0) ** degree)] if signed else [])
        if all(np.abs(_mean(ask, a * patterns)[0] - b * whole).max() <= slack for a, b in alike):
            return degree
    return None


def response_of(
    simulator: Simulator, values: Mapping[str, Array], patterns: Array, degree: int, reach: float, follows: bool
) -> Response:
    """`reach`: largest amplitude that CONFIG's converter does not cut. `follows`: shot noise is fitted."""
    ask = _asker(simulator.clean, values)
    pull, _ = _mean(ask, patterns)
    silent = _SILENT if follows else {}
    quiet = simulator.built(
        {**dict.fromkeys(NOISE, 0.0), **silent, "in_bits": None, "out_bits": None, "out_bound": math.inf}
    )
    noisy = simulator.built({**dict.fromkeys(NOISE, 1.0), **_SILENT, **_OPEN})
    linear, quadratic = _scatter(_asker(quiet, values), patterns, degree, reach)
    dark = _dark(_asker(quiet, values), patterns.shape[1], quiet.read_noise)
    gain = np.sqrt(_dark(_asker(noisy, values), patterns.shape[1], noisy.read_noise))
    return Response(pull, dark, linear, quadratic * (1 + 1 / _SHOTS), gain)  # the mean was simulated, too


def _mean(ask: Any, patterns: Array) -> tuple[Array, float]:
    """Mean answers, and the largest error of one: one shot where all are alike."""
    moments = _Moments()
    for shot in range(_SHOTS):
        moments.add(ask(patterns, shot))
        if shot == 1 and not moments.squares.any():
            return moments.first, 0.0
    return moments.first + moments.total / _SHOTS, math.sqrt(float(moments.variance.max()) / _SHOTS)


def _dark(ask: Any, width: int, declared: float) -> Array:
    """Variance of dark answers `[out]`: what the model says of itself, where simulating it agrees."""
    if np.all(ask(np.zeros((4, width))) == 0):
        return np.zeros(ask(np.zeros((1, width))).shape[1])
    found = np.concatenate([ask(np.zeros((2048, width)), shot) for shot in range(_DARK_SHOTS // 2048)])
    # A read-out that cuts below 0 shows half of the noise.
    cut = found.min() >= 0
    variance = (found**2).mean(axis=0) * (2 if cut else 1)
    error = variance * math.sqrt((5 if cut else 2) / _DARK_SHOTS)
    alike = np.abs(variance - declared**2) <= _ALIKE * error
    return np.where(alike.all(), declared**2, variance)


def _scatter(ask: Any, patterns: Array, degree: int, reach: float) -> tuple[Array, Array]:
    """What light adds to the variance, at amplitude 1: in proportion to v^degree, and to v^(2 degree).

    The same draws at every amplitude: what does not depend on the light cancels.
    """
    half, whole = reach / 2, reach
    sums = [_Moments(), _Moments(), _Moments()]
    for shot in range(_SHOTS):
        for moments, amplitude in zip(sums, (0.0, half, whole), strict=True):
            moments.add(ask(amplitude * patterns, shot))
        if shot == 1 and all(np.allclose(m.variance, sums[0].variance, rtol=1e-6, atol=1e-20) for m in sums):
            return np.zeros_like(sums[0].variance), np.zeros_like(sums[0].variance)
    dark, middle, bright = (m.variance for m in sums)
    a, b = half**degree, whole**degree
    low, high = (middle - dark) / a, (bright - dark) / b  # each linear + quadratic times the amplitude^degree
    quadratic = (high - low) / (b - a)
    return low - quadratic * a, quadratic


class _Moments:
    """Mean and variance of what is added, about the first."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, values: Array) -> None:
        if not self.count:
            self.first, self.total, self.squares = values, np.zeros_like(values), np.zeros_like(values)
        away = values - self.first
        self.count, self.total, self.squares = self.count + 1, self.total + away, self.squares + away**2

    @property
    def variance(self) -> Array:
        mean = self.total / self.count
        return np.asarray((self.squares / self.count - mean**2) * self.count / max(self.count - 1, 1))
