"""Slow changes of a chip as functions of device time: any moment, in any order, from the seed alone.

Knows neither what drifts nor who keeps the clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import noise

Array = NDArray[np.float64]
_FAR = 40.0  # correlation times after which two values count as independent: exp(-40) is far below rounding
_EARLY = 1e-6  # part of a step by which a time may round below the step's begin
_SHORTEST = 0.55  # steps: flattest end of the flicker spectrum
_RATIO = 3.0  # largest ratio of neighbouring correlation times of flicker


@dataclass(frozen=True)
class Wander:
    """A stationary Gaussian process of zero mean and variance std^2 for every element, independent between elements.

    `law` "ou" (Ornstein-Uhlenbeck): autocorrelation exp(-|t| / tau_s), exact at any lag that is a multiple of
    `step_s`. "flicker": power spectral density proportional to 1/f within 4 % from 1 / tau_s to 1 / (4 step_s), flat
    below. It is a sum of Ornstein-Uhlenbeck processes with evenly spaced logarithms of their times, the picture of
    McWhorter (1957), and needs tau_s of at least 20 steps. Time is used in steps of `step_s` seconds.

    Values are drawn at random access by conditioning the midpoint of an interval on its ends, down from intervals so
    long that their ends are independent (the Brownian bridge of Levy, for a Markov process with this correlation).
    """

    law: Literal["ou", "flicker"] = "ou"
    std: float = 0.0
    tau_s: float = 10.0
    step_s: float = 0.1

    def __post_init__(self) -> None:
        if self.law not in ("ou", "flicker"):
            raise ValueError(f"unknown law of drift {self.law!r}: known are 'ou' and 'flicker'")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"drift: std must be finite and not negative, not {self.std}")
        for name in ("tau_s", "step_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"drift: {name} must be finite and above 0 s, not {getattr(self, name)}")
        if self.law == "flicker" and self.tau_s < 20 * self.step_s:
            raise ValueError(
                f"flicker with tau_s {self.tau_s:g} s has no band at steps of {self.step_s:g} s: take a tau_s of at"
                f" least {20 * self.step_s:g} s, or shorter steps"
            )

    @property
    def times_s(self) -> Array:
        """Correlation times of the Ornstein-Uhlenbeck processes it is a sum of, all of the same variance."""
        if self.law == "ou":
            return np.array([self.tau_s])
        shortest = _SHORTEST * self.step_s
        count = math.ceil(math.log(self.tau_s / shortest) / math.log(_RATIO)) + 1
        return np.geomspace(self.tau_s, shortest, count)

    def values(self, seed: int, index: int, tag: int, count: int, seconds: float) -> Array:
        """Values `[count]` after `seconds` of device time, for chip `seed`, stage `index` and the quantity `tag`."""
        _check_time(seconds)
        return self.at_step(seed, index, tag, count, int(self.steps(seconds)))

    def steps(self, seconds: Any) -> Any:
        """The whole steps before a time, or before each of an array of times."""
        return np.floor(np.asarray(seconds) / self.step_s + _EARLY)

    def at_step(self, seed: int, index: int, tag: int, count: int, step: int) -> Array:
        """What `values` gives within a step, numbered from 0."""
        if not self.std or not count:
            return np.zeros(count)
        parts = _processes(self, seed, index, tag, count)
        found = parts[0].at(step)
        for part in parts[1:]:
            found = found + part.at(step)
        return found * (self.std / math.sqrt(len(parts)))


@dataclass(frozen=True)
class PowerLaw:
    """What is left of a quantity that decays as g(t) = g(0) (1 + t / t0)^-nu, as conductances of phase-change cells do.

    Every element has its own exponent, drawn once from a normal law of mean `nu` and standard deviation `nu_std`;
    exponents below 0 count as 0: nothing grows. After Joshi et al., Nat. Commun. 11, 2473 (2020), there with nu = 0.03
    to 0.06 and t0 near 20 s, counted from the first read.
    """

    nu: float = 0.0
    nu_std: float = 0.0
    t0_s: float = 20.0

    def __post_init__(self) -> None:
        if not (0 <= self.nu < math.inf and 0 <= self.nu_std < math.inf):
            raise ValueError(f"drift: nu {self.nu} and nu_std {self.nu_std} must be finite and not negative")
        if not 0 < self.t0_s < math.inf:
            raise ValueError(f"drift: t0_s must be finite and above 0 s, not {self.t0_s}")

    def values(self, seed: int, index: int, tag: int, count: int, seconds: float) -> Array:
        """g(t) / g(0) `[count]`, `seconds` after the start, for chip `seed`, stage `index` and the quantity `tag`."""
        _check_time(seconds)
        exponents = np.maximum(self.nu + self.nu_std * _standard(seed, index, tag, count), 0.0)
        return np.asarray((1 + seconds / self.t0_s) ** -exponents)


@dataclass(frozen=True)
class LaserWander:
    """Relative optical power 1 + amplitude * s(t), with s a sum of two incommensurate sines within [-1, 1].

    `amplitude` is the largest relative change (0.1: by 10 %), `period_s` the period of the slower sine in seconds of
    device time. s(0) = 0: the laser starts at its nominal power.
    """

    amplitude: float = 0.0
    period_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.amplitude < 1 or not self.period_s > 0:
            raise ValueError(
                f"laser wander: amplitude {self.amplitude} must be in [0, 1) and period {self.period_s} s above 0"
            )

    def gain(self, seconds: Any) -> Any:
        """The relative power at a time or at each of an array of times."""
        turn = 2 * math.pi * np.asarray(seconds, np.float64) / self.period_s
        return 1 + self.amplitude * (0.6 * np.sin(turn) + 0.4 * np.sin(turn * (1 + math.sqrt(5)) / 2))


class _Process:
    """Ornstein-Uhlenbeck processes `[count]` of variance 1 on the steps 0, 1, 2, ..., with a time of `tau` steps.

    The values on the way to the last step asked for are kept: the next step shares most of them.
    """

    def __init__(self, key: int, tau: float, count: int) -> None:
        self._key, self._tau, self._count = np.uint64(key), tau, count
        self._levels = max(0, math.ceil(math.log2(_FAR * tau)))
        self._kept: dict[int, Array] = {}

    def at(self, step: int) -> Array:
        """Not to be written into."""
        kept = self._kept
        if step in kept:
            return kept[step]
        path = _path(step, self._levels)
        missing = [place for place, _ in path if place not in kept]
        keys = noise.derive(self._key + np.array(missing, np.uint64))
        # Drawn in single precision, which is far finer than anybody knows a drift and ten times as fast.
        drawn = noise.normals(keys, noise.STREAM_DRIFT, self._count).astype(np.float64)
        values = dict(zip(missing, drawn, strict=True))
        for place, half in path:
            if place not in kept and half:
                # x given its neighbours at a distance of `half`: mean (left + right) / (2 cosh a), variance tanh a.
                a = half / self._tau
                ends = (kept[p] if p in kept else values[p] for p in (place - half, place + half))
                values[place] = sum(ends) / (2 * math.cosh(a)) + math.sqrt(math.tanh(a)) * values[place]
        self._kept = {place: kept[place] if place in kept else values[place] for place, _ in path}
        return self._kept[step]


def _path(step: int, levels: int) -> list[tuple[int, int]]:
    """(place, distance of the two it depends on) from the ends of a long interval (0: on none) down to `step`."""
    low = step >> levels << levels
    path = [(low, 0)]
    half = 1 << levels >> 1
    if low == step:
        return path
    path.append((low + 2 * half, 0))
    while path[-1][0] != step:
        middle = low + half
        path.append((middle, half))
        low = middle if step >= middle else low
        half >>= 1
    return path


@lru_cache(maxsize=64)
def _processes(law: Wander, seed: int, index: int, tag: int, count: int) -> tuple[_Process, ...]:
    keys = (_key(seed, index, tag, part) for part in range(len(law.times_s)))
    return tuple(_Process(key, tau / law.step_s, count) for key, tau in zip(keys, law.times_s, strict=True))


@lru_cache(maxsize=64)
def _standard(seed: int, index: int, tag: int, count: int) -> Array:
    return noise.normals(_key(seed, index, tag), noise.STREAM_DRIFT, count, np.float64)[0]


def _key(seed: int, *path: int) -> int:
    if seed < 0 or min(path) < 0:
        raise ValueError(f"chip seed {seed} and the place {list(path)} of what drifts must not be negative")
    return int(noise.derive(seed % 2**64, *path)[0])


def _check_time(seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"drift: device time must be finite and not negative, not {seconds} s")
