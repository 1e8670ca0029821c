"""The noise of answers by maximum likelihood, through a converter, clipped ends and a signal known beforehand. Pure.

An answer on a converter's code only says in which interval the noisy value lay; one at a clipped end, that it lay
beyond. Others are the value itself. Fitted are a plain noise and, where noise follows the signal, what grows with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_ndtr, ndtr, ndtri

from hzo_hil.fit.estimate import DROP_95, NORMAL_95, Estimate, normal, profile_interval
from hzo_hil.fit.rows import Flags, Floats

_MOST = 20_000  # answers used
_DEEP = 1e-5  # the smallest noise told apart from none, relative to the scale of the answers


@dataclass(frozen=True)
class Readings:
    """Flat arrays `[answers]`: `mean` expected, `low` and `high` ends of where the noisy value lay (equal: it itself),
    `extra` variance besides the noise, `share` of the noise that is left where a mean was fitted to them."""

    mean: Floats
    low: Floats
    high: Floats
    extra: Floats
    share: Floats

    def __len__(self) -> int:
        return len(self.mean)

    def where(self, chosen: Flags | slice) -> Readings:
        return Readings(*(getattr(self, f.name)[chosen] for f in fields(Readings)))

    def thinned(self) -> Readings:
        return self.where(slice(None, None, math.ceil(len(self) / _MOST)))


def readings(
    values: Floats, mean: Floats, extra: Floats, step: float, low: float, high: float, share: Floats | None = None
) -> Readings:
    """Of `values` read by a converter of `step` (0: none) whose ends are `low` and `high` (infinite: none)."""
    half = step / 2
    slack = 1e-6 * max(abs(e) for e in (low, high, 0.0) if math.isfinite(e)) + step / 4
    below = np.where(values <= low + slack, -math.inf, values - half)
    above = np.where(values >= high - slack, math.inf, values + half)
    return Readings(mean, below, above, extra, np.ones_like(mean) if share is None else share)


def log_likelihood(seen: Readings, variance: Floats | float) -> float:
    """Natural logarithm; Gaussian noise of `variance` on top of what is `extra`."""
    std = np.sqrt(np.maximum(variance * seen.share + seen.extra, 1e-300))
    points = seen.low == seen.high
    low, high = (seen.low - seen.mean) / std, (seen.high - seen.mean) / std
    density = -0.5 * low[points] ** 2 - np.log(std[points])
    return float(density.sum() + _log_between(low[~points], high[~points]).sum())


def _log_between(low: Floats, high: Floats) -> Floats:
    """log(Phi(high) - Phi(low)), exact far out in either tail."""
    turned = low > 0
    a, b = np.where(turned, -high, low), np.where(turned, -low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        upper, lower = log_ndtr(b), log_ndtr(a)
        return np.asarray(np.maximum(upper + np.log1p(-np.exp(lower - upper)), -1e4))


def normal_scores(seen: Readings, variance: Floats | float, rng: np.random.Generator) -> Floats:
    """Standard normal numbers if the model holds: randomised quantile residuals (Dunn & Smyth 1996)."""
    std = np.sqrt(np.maximum(variance * seen.share + seen.extra, 1e-300))
    low, high = (seen.low - seen.mean) / std, (seen.high - seen.mean) / std
    points = seen.low == seen.high
    # In the lower tail of either side, where probabilities keep their precision.
    turned = np.where(points, low, np.nan_to_num(low, neginf=-1e9) + np.nan_to_num(high, posinf=1e9)) > 0
    a, b = np.where(turned, -high, low), np.where(turned, -low, high)
    drawn = ndtr(a) + (ndtr(b) - ndtr(a)) * rng.random(len(a))
    scores = ndtri(np.clip(drawn, 1e-300, 1 - 1e-16))
    return np.where(points, low, np.where(turned, -scores, scores))


# --- plain noise ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """`std`: plain noise, in the units of the readings. `bandwidth`: Hz, where noise follows the signal, else None.
    `seen`: whether any noise was (with a bandwidth: any that follows). `error`: relative, of the variance."""

    std: Estimate
    bandwidth: Estimate | None
    seen: bool
    error: float


def plain_noise(seen: Readings, scale: float) -> Noise:
    """The standard deviation; `scale`: that of the answers, below a part of which noise counts as none."""
    seen = seen.thinned()
    floor = _DEEP * scale

    def likely(log_std: float) -> float:
        return log_likelihood(seen, math.exp(2 * log_std))

    grid = np.linspace(math.log(floor), math.log(scale), 32)
    found = np.array([likely(g) for g in grid])
    top = int(np.argmax(found))
    ends = grid[max(top - 1, 0)], grid[min(top + 1, len(grid) - 1)]
    best = float(minimize_scalar(lambda g: -likely(g), bounds=ends, method="bounded", options={"xatol": 1e-7}).x)
    if likely(best) < likely(grid[0]) + DROP_95:  # as good without any
        least = profile_interval(likely, float(grid[0]), 0.1, float(grid[0]))
        return Noise(Estimate(0.0, 0.0, math.exp(least.high)), None, False, 0.0)
    wide = max(1e-7, math.sqrt(1 / len(seen)))
    around = profile_interval(likely, best, wide, float(grid[0]))
    low = 0.0 if around.low <= grid[0] else math.exp(around.low)
    error = (around.high - around.low) / NORMAL_95
    return Noise(Estimate(math.exp(best), low, math.exp(around.high)), None, True, error)


# --- noise that follows the signal ---------------------------------------------------------------------------------


def following_noise(
    seen: Readings, physical: Callable[[float], float], per_hertz: float, gain: float, start: float
) -> Noise:
    """Plain noise and bandwidth of a detector whose noise grows with the intensity.

    The variance is (gain std)^2 + physical(bandwidth) + per_hertz bandwidth mean, physical in proportion to the
    bandwidth. `start`: a first guess of the standard deviation in the dark. Intervals are those of the normal law for
    the two variances, from the curvature of the likelihood, cut at 0.
    """
    seen = seen.thinned()
    bright = np.maximum(seen.mean, 0)
    spread = start**2 or 1e-12

    def likely(dark: float, rise: float) -> float:
        """By variance in the dark and what a mean of 1 adds, in units of `spread`."""
        return log_likelihood(seen, np.maximum(spread * (dark + rise * bright), 1e-6 * spread))

    def lost(both: NDArray[np.float64]) -> float:
        return -likely(both[0], both[1])

    settings: Any = {"xatol": 1e-5, "fatol": 1e-4, "maxiter": 400}
    top: Floats = minimize(lost, np.ones(2), method="Nelder-Mead", options=settings).x
    covariance = np.linalg.inv(_curvature(likely, top))
    unit = physical(1.0) / per_hertz  # what an increase of the rise by 1 adds in the dark
    plain = _variance_of(np.array([1.0, -unit]), top, covariance) * spread
    rise = _variance_of(np.array([0.0, 1.0]), top, covariance) * spread
    std = Estimate(*(math.sqrt(max(v, 0.0)) / gain for v in (plain.value, plain.low, plain.high)))
    usual = np.array([1.0, float(bright.mean())])
    error = math.sqrt(float(usual @ covariance @ usual)) / float(usual @ top)
    return Noise(std, _above(rise * (1 / per_hertz)), rise.low > 0, error)


def _curvature(likely: Callable[[float, float], float], top: Floats) -> Floats:
    """Minus the second derivatives at the top, over steps by which the likelihood falls noticeably."""
    steps = [_noticeable(likely, top, axis, 0.05) for axis in np.eye(2)]
    peak = likely(*top)
    found = np.zeros((2, 2))
    for k, (axis, h) in enumerate(zip(np.eye(2), steps, strict=True)):
        found[k, k] = (2 * peak - likely(*(top + h * axis)) - likely(*(top - h * axis))) / h**2
    a, b = steps
    mixed = sum(s * t * likely(*(top + np.array([s * a, t * b]))) for s in (-1, 1) for t in (-1, 1))
    found[0, 1] = found[1, 0] = -mixed / (4 * a * b)
    return found


def _noticeable(likely: Callable[[float, float], float], top: Floats, axis: Floats, step: float) -> float:
    """A step along an axis by which it falls by 0.1 to 2."""
    peak = likely(*top)
    for _ in range(40):
        lost = peak - likely(*(top + step * axis))
        if 0.1 <= lost <= 2:
            break
        step *= 2 if lost < 0.1 else 0.4
    return step


def _variance_of(direction: Floats, top: Floats, covariance: NDArray[Any]) -> Estimate:
    return normal(float(direction @ top), math.sqrt(max(float(direction @ covariance @ direction), 0.0)))


def _above(found: Estimate) -> Estimate:
    return Estimate(max(found.value, 0.0), max(found.low, 0.0), max(found.high, 0.0))
