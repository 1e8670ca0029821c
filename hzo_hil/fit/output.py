"""The read-out's converter and its end, from answers against what the simulator expects of them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hzo_hil.fit.estimate import NORMAL_95, Estimate, exactly, normal
from hzo_hil.fit.lattice import FLOAT32, Lattice, lattice_of
from hzo_hil.fit.look import ROUNDING
from hzo_hil.fit.picture import Picture
from hzo_hil.fit.rows import Floats, Integers
from hzo_hil.fit.spread import Readings, log_likelihood
from hzo_hil.fit.stairs import quantised

_STEADY = 0.005  # relative change of the gain
_WASHED = 0.5  # steps of noise that leave nothing of the stairs
_SHARPENING = (3_000, 12_000)  # answers that sharpen a step: fewer while it is looked for
_LESS = 3.0  # by how much a likelihood falls at the ends: more than for a smooth one, as in `stairs`
_FEWEST = 4  # answers beyond an end that show it


@dataclass(frozen=True)
class Output:
    """In the simulator's units. `step` 0: no converter seen, and `hidden` says whether one could be there all the same;
    `end` None: answers do not reach one; `top`: the code there.

    `values` `[rows, out]`: answers as the converter gave them (codes times step), or over their gain. `bias`: factor by
    which a straight line through rounded answers is off.
    """

    step: Estimate
    end: Estimate | None
    top: int | None
    values: Floats
    hidden: bool = False
    bias: float = 1.0

    @property
    def slope_error(self) -> float:
        """Relative standard deviation of the step."""
        return (self.step.high - self.step.low) / (2 * NORMAL_95 * self.step.value) if self.step.value else 0.0


def output_of(now: Picture) -> Output:
    rows = now.rows
    gains = now.gain / float(np.mean(now.gains))
    stretch = 0.01 + 4 * math.sqrt(now.flutter + float(np.max(now.gain_error)))
    lattice = lattice_of(rows.answers, gains, stretch, ROUNDING * float(np.abs(rows.answers).max()))
    if lattice is not None:
        return _stepped(now, lattice)
    # Where gains change, the grid shows within a row only, and a row of few answers shows none.
    unsteady = (
        max(float(np.std(gains)) - math.sqrt(float(np.mean(now.gain_error))), 0) + math.sqrt(now.flutter) > _STEADY
    )
    return replace(_smooth(now), hidden=unsteady)


def _stepped(now: Picture, lattice: Lattice) -> Output:
    """Codes against expected answers: their slope is one over the step, whatever the gain did meanwhile."""
    expected, codes = now.expected, lattice.codes
    bright = np.where(now.usable(expected), expected, 0)
    norm = float((bright**2).sum())
    straight = slope = float((codes * bright).sum()) / norm
    for _ in range(4):
        noise = math.sqrt(max(now.dark * slope**2 - 1 / 12, 0.0))
        slope = straight - float((_rounding(bright * slope, noise) * bright).sum()) / norm
    score = (bright * (codes - straight * expected)).sum(axis=1)
    error = math.sqrt(float((np.bincount(_alike(now), score) ** 2).sum())) / norm / slope
    step = _sharpened(now, codes, 1 / slope, error)
    bias = straight * step.value
    top = _top_code(np.abs(codes), np.where(now.censored, expected, np.abs(expected)) * slope, now.dark * slope**2)
    end = None if top is None else step * top
    return Output(step, end, top, codes * step.value, bias=bias)


def _top_code(codes: Floats, wanted: Floats, variance: float) -> int | None:
    """The code at which nearly all answers stop that should go further; None where none should."""
    highest = np.argsort(wanted, axis=None)[-max(2 * _FEWEST, wanted.size // 500) :]
    top = int(np.median(codes.ravel()[highest]))
    beyond = wanted > top + 1 + 5 * math.sqrt(variance)
    if beyond.sum() < _FEWEST or np.mean(codes[beyond] == top) < 0.9:
        return None
    return top


def _sharpened(now: Picture, codes: Floats, step: float, error: float) -> Estimate:
    """The most likely step near one known to a relative `error`.

    Where noise is small, what a code says is exact: the answer lay within half a step of it. A straight line through
    codes takes that for noise of a twelfth of a step squared.
    """
    std = math.sqrt(max(now.dark - step**2 / 12, (0.05 * step) ** 2))
    if std > _WASHED * step:  # rounding is noise like any other
        return normal(step, step * (error + FLOAT32))
    used = now.usable(now.expected)
    whole = Readings(*(a[used] for a in (now.expected, codes, codes, now.rows.scatter, np.ones_like(codes))))
    for most in _SHARPENING:
        some = whole.where(slice(None, None, max(1, len(whole) // most)))
        finest = 0.25 * std / max(float(np.abs(some.mean).max()), step)
        grid = step * (1 + error * np.linspace(-5, 5, int(np.clip(10 * error / finest, 24, 200))))
        found = np.array([_likely(some, now.rise, s, std) for s in grid])
        step = float(grid[np.argmax(found)])
        tries = std * np.geomspace(0.4, 2.5, 16)
        std = float(tries[np.argmax([_likely(some, now.rise, step, t) for t in tries])])
        near = grid[found > found.max() - _LESS]
        wide = float(grid[1] - grid[0])
        error = max(float(np.ptp(near)) / 4, wide) / step
    rounding = FLOAT32 * step
    return Estimate(step, float(near[0]) - wide - rounding, float(near[-1]) + wide + rounding)


def _likely(codes: Readings, rise: float, step: float, std: float) -> float:
    """`codes`: readings in whole numbers, to be taken as that many steps."""
    seen = replace(codes, low=(codes.low - 0.5) * step, high=(codes.high + 0.5) * step)
    return log_likelihood(seen, std**2 + rise * np.maximum(codes.mean, 0))


def _rounding(values: Floats, noise: float) -> Floats:
    """Mean of round(x + noise z) - x over normal z: a sawtooth, smoothed."""
    if noise < 0.03:
        return np.asarray(np.rint(values) - values)
    order = range(1, 2 + int(0.6 / noise))
    waves = (
        (-1) ** n / (math.pi * n) * math.exp(-2 * (math.pi * n * noise) ** 2) * np.sin(2 * math.pi * n * values)
        for n in order
    )
    return np.asarray(sum(waves, np.zeros_like(values)))


def _alike(now: Picture) -> Integers:
    """Numbers `[rows]` of questions that are one behind the input converter (but for a sign).

    A converter of the output that sees little noise rounds all of them in the same way: their errors do not average.
    """
    if not now.step:
        return np.arange(len(now.rows))
    codes = np.abs(np.rint(quantised(now.rows.drive, now.step, now.bound) / now.step))
    same = np.column_stack([codes, np.abs(np.round(now.rows.pull / np.abs(now.rows.pull).max(), 9))])
    return np.unique(same, axis=0, return_inverse=True)[1].ravel()


def _smooth(now: Picture) -> Output:
    rows, expected = now.rows, now.expected
    values = rows.answers / now.gain
    none = exactly(0.0)
    slack = 1.05 + 4 * math.sqrt(now.flutter)
    beyond = (np.abs(expected) > slack * now.largest + 5 * math.sqrt(now.dark)) & ~rows.held[:, None]
    if beyond.sum() < _FEWEST:
        return Output(none, None, None, values)
    reached, wanted = np.abs(values[beyond]), np.abs(expected[beyond])
    if reached.std() > 0.05 * reached.mean() or reached.mean() > 0.97 * wanted.mean():
        return Output(none, None, None, values)  # it goes on, or bends without an end
    block = np.broadcast_to(rows.block[:, None], values.shape)[beyond]
    count = np.bincount(block, minlength=len(now.gains))
    means = np.bincount(block, reached, len(now.gains))[count > 0] / count[count > 0]
    end = float(means.mean())
    error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else float(reached.std())
    return Output(none, normal(end, error + FLOAT32 * end), None, values)
