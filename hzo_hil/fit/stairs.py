"""The step of an input converter from how answers depart from a smooth curve of the amplitude driven. Pure.

Every row gives one number: how large its whole answer is, measured along its pattern's. Against the amplitude these
numbers follow gain * Q(v)^degree, with Q the converter: a staircase under noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hzo_hil.fit.estimate import NORMAL_95, Estimate
from hzo_hil.fit.rows import Floats

_ODDS = 1e-4  # chance that noise alone shows a step
_MOST = 1 << 13  # codes on a side that are looked for
_LESS = 3.0  # more than the 1.9 of a smooth likelihood: see above, and `benchmarks/fit.py` for the coverage


@dataclass(frozen=True)
class Ramp:
    """`drive` `[rows]`, what the rows answered over their gain `seen` `[rows]`, and its variance `[rows]`."""

    drive: Floats
    seen: Floats
    variance: Floats
    degree: int

    def curve(self, drive: Floats) -> Floats:
        return drive if self.degree == 1 else drive**2

    @property
    def slope(self) -> Floats:
        return np.ones_like(self.drive) if self.degree == 1 else 2 * self.drive


def quantised(drive: Floats, step: float, bound: float = math.inf) -> Floats:
    """What an input converter makes of amplitudes; a step of 0 leaves them."""
    held = np.clip(drive, -bound, bound) if math.isfinite(bound) else drive
    return np.asarray(np.rint(held / step) * step if step else held)


def smallest_step(ramp: Ramp, sure: float = 3.0) -> float:
    """The smallest step that would show, all but surely: by so many standard deviations above what is asked for."""
    power = float((ramp.slope**2 / ramp.variance).sum())
    needed = math.sqrt(2 * math.log(2 * _MOST / _ODDS)) + sure
    finest = np.abs(ramp.drive).max() / _MOST
    return max(needed * math.pi * math.sqrt(2 / power), float(finest))


def find_step(ramp: Ramp) -> Estimate | None:
    """None where no step is seen: one above `smallest_step` is."""
    least, reach = smallest_step(ramp, 0.0), float(np.abs(ramp.drive).max())
    if least > reach:
        return None
    turns, found = _sawtooth(ramp, reach, least)
    best = int(np.argmax(found))
    if found[best] < math.log(len(turns) / _ODDS):
        return None
    low, high = turns[best] - 1 / (4 * reach), turns[best] + 1 / (4 * reach)
    return _zoomed(ramp, 1 / high, 1 / max(low, 0.4 / reach))


def _sawtooth(ramp: Ramp, reach: float, least: float) -> tuple[Floats, Floats]:
    """Numbers of steps in an amplitude of 1, and for each the log-likelihood, over nothing, that the fundamental of
    Q(v) - v is there.

    v - Q(v) = step / pi (sin(2 pi v / step) - ...), so what rows miss is matched to one sine each. All sines at once by
    a Fourier transform of the rows sorted into bins, a sixteenth of the finest step wide.
    """
    missed = (ramp.curve(ramp.drive) - ramp.seen) * ramp.slope / ramp.variance
    power = ramp.slope**2 / ramp.variance
    span = 8 * reach  # longer than the drive: frequencies lie close enough to miss no peak
    k = np.arange(4, int(span / least) + 1)
    bins = 1 << math.ceil(math.log2(16 * max(k[-1], 16)))
    place = np.rint(ramp.drive / span * bins).astype(np.int64) % bins
    height = -np.fft.rfft(np.bincount(place, missed, bins)).imag
    norm = np.fft.rfft(np.bincount(place, power, bins)).real
    squares = np.maximum(0.5 * (norm[0] - norm[2 * k]), 1e-3 * norm[0])
    return k / span, np.where(height[k] > 0, height[k] ** 2 / (2 * squares), 0)


def _zoomed(ramp: Ramp, low: float, high: float) -> Estimate:
    """Median of the posterior of the step under an even prior between `low` and `high`, and where the likelihood is
    within a factor exp(`_LESS`) of the highest.

    The likelihood is flat between jumps, where a row changes its code: no curvature can be taken. The grid is made
    finer around the top until it no longer matters.
    """
    points = 400
    while True:
        grid = np.linspace(low, high, points)
        likely = np.array([_fit(ramp, step) for step in grid])
        kept = grid[likely > likely.max() - 14]
        wide = (high - low) / (points - 1)
        # A peak may hide between two points of a coarse grid: come closer by less than the points would allow.
        new_low, new_high = max(low, kept[0] - 2 * wide), min(high, kept[-1] + 2 * wide)
        if new_high - new_low > 0.5 * (high - low):
            break
        low, high = new_low, new_high
    share = np.exp(likely - likely.max())
    below = np.cumsum(share) - share / 2
    middle = float(np.interp(0.5 * share.sum(), below, grid))
    near = grid[likely > likely.max() - _LESS]
    return Estimate(middle, float(near[0] - wide), float(near[-1] + wide))


def _fit(ramp: Ramp, step: float) -> float:
    """Log-likelihood of a step; the gain, known before only as well as steps allow, is free."""
    curve = ramp.curve(quantised(ramp.drive, step))
    weight = 1 / ramp.variance
    norm = float((weight * curve**2).sum())
    if norm == 0:
        return -math.inf
    gain = float((weight * curve * ramp.seen).sum()) / norm
    return -0.5 * float((weight * (ramp.seen - gain * curve) ** 2).sum())


# --- the end of the range ------------------------------------------------------------------------------------------


def find_bound(ramp: Ramp) -> Estimate | None:
    """The amplitude beyond which answers no longer grow; None where they grow to the end of what was driven."""
    size = np.abs(ramp.drive)
    reach = float(size.max())
    tries = reach * np.linspace(0.2, 1, 161)
    left = np.array([_left(ramp, end) for end in tries])
    best = int(np.argmin(left))
    scale = max(left[best] / len(size), 1.0)  # where steps scatter more than noise does
    beyond = size > 1.02 * tries[best]
    if tries[best] > 0.97 * reach or beyond.sum() < 4 or left[-1] - left[best] < 30 * scale:
        return None
    weight = 1 / ramp.variance[beyond]
    power = float((weight * np.abs(ramp.seen[beyond])).sum() / weight.sum())
    error = math.sqrt(scale / weight.sum())
    ends = [max(power + shift * error, 0.0) ** (1 / ramp.degree) for shift in (0, -NORMAL_95, NORMAL_95)]
    return Estimate(*ends)


def _left(ramp: Ramp, end: float) -> float:
    curve = ramp.curve(np.clip(ramp.drive, -end, end))
    weight = 1 / ramp.variance
    gain = (weight * curve * ramp.seen).sum() / (weight * curve**2).sum()
    return float((weight * (ramp.seen - gain * curve) ** 2).sum())
