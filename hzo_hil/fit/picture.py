"""What is known of the answers while the fit goes on: input converter, gain of every block, variance. Pure.

Everything but the gains is in the simulator's own units: answers over the gain of their block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hzo_hil.fit.lattice import FLOAT32
from hzo_hil.fit.look import expected_of
from hzo_hil.fit.rows import Flags, Floats, Rows
from hzo_hil.fit.stairs import Ramp, quantised

_INSIDE = 0.85  # of the largest answer: expected answers below it are not touched by the read-out's end


@dataclass(frozen=True)
class Picture:
    """`raw` gains of the blocks as measured, with their variance `chance`, and `gains` drawn towards their mean as far
    as they scatter no more than that; `dark` variance of a dark answer, `rise` what an answer of 1 adds to it;
    `flutter` relative variance of the gain within a block; `step`, `bound` of the input (0, infinite: none);
    `largest` answer; `sure` `[rows]`: no doubt which input code a row had."""

    rows: Rows
    degree: int
    censored: bool
    gains: Floats
    dark: float
    largest: float
    rise: float = 0.0
    flutter: float = 0.0
    raw: Floats | None = None
    chance: Floats | None = None
    step: float = 0.0
    bound: float = math.inf
    sure: Flags | None = None

    @property
    def expected(self) -> Floats:
        return expected_of(quantised(self.rows.drive, self.step, self.bound), self.rows.pull, self.degree)

    @property
    def gain(self) -> Floats:
        """`[rows, 1]`"""
        return np.asarray(self.gains[self.rows.block][:, None])

    def variance(self, expected: Floats) -> Floats:
        """Of answers `[rows, out]`, without what is common to a row."""
        return np.asarray(self.dark + self.rise * np.maximum(expected, 0) + self.rows.scatter)

    def inside(self, expected: Floats) -> Flags:
        """Answers that neither end of the read-out touches."""
        low = 5 * math.sqrt(self.dark) if self.censored else 0.0
        found = np.abs(expected) < _INSIDE * self.largest
        if self.censored:
            found &= expected > low
        return np.asarray(found)

    def usable(self, expected: Floats) -> Flags:
        """Answers that tell of the gain: bright, untouched by the ends, of a known input, not held back."""
        used = self.inside(expected) & ((self.rows.drive != 0) & ~self.rows.held)[:, None]
        return used if self.sure is None else used & self.sure[:, None]

    @property
    def kept(self) -> Floats:
        """How much of each block's gain `[blocks]` is its own, the rest being the mean of all."""
        assert self.raw is not None and self.chance is not None
        middle = float(np.average(self.raw, weights=1 / self.chance))
        excess = max(float(np.mean((self.raw - middle) ** 2 - self.chance)), 0.0)
        return np.asarray(excess / (excess + self.chance))

    @property
    def gain_error(self) -> Floats:
        """Relative variance of the gains used `[blocks]`."""
        assert self.chance is not None
        return np.asarray((self.kept * self.chance + (1 - self.kept) ** 2 / (1 / self.chance).sum()) / self.gains**2)

    def leverage(self, expected: Floats) -> Floats:
        """The part of an answer's own noise `[rows, out]` that the gain of its block took on."""
        power = np.where(self.usable(expected), expected**2, 0)
        total = np.bincount(self.rows.block, power.sum(axis=1), len(self.gains))
        return np.asarray(power * (self.kept / np.maximum(total, 1e-300))[self.rows.block][:, None])


def ramp_of(now: Picture) -> Ramp:
    """One number for each bright row that is not held back: the whole answer along its pattern."""
    rows = now.rows
    expected = expected_of(rows.drive, rows.pull, now.degree)
    used = now.inside(expected)
    pull = np.where(used, rows.pull, 0)
    norm = (pull**2).sum(axis=1)
    chosen = (rows.drive != 0) & ~rows.held & (norm > 0)
    norm = np.where(chosen, norm, 1)
    seen = (pull * rows.answers / now.gain).sum(axis=1) / norm
    variance = (pull**2 * now.variance(expected)).sum(axis=1) / norm**2
    curve = rows.drive**now.degree
    variance = variance + now.flutter * curve**2 + 1e-13 * curve**2 + 1e-30
    return Ramp(rows.drive[chosen], seen[chosen], variance[chosen], now.degree)


def regained(now: Picture) -> Picture:
    """With gains, variances and flutter taken anew from what is known of the input."""
    rows, expected, blocks = now.rows, now.expected, len(now.gains)
    now = replace(now, largest=float(np.quantile(np.abs(rows.answers / now.gain), 0.9995)))
    used = now.usable(expected)
    power = np.where(used, expected**2, 0)
    total = np.bincount(rows.block, power.sum(axis=1), blocks)
    some = np.where(total > 0, total, 1)
    raw = np.bincount(rows.block, np.where(used, expected * rows.answers, 0).sum(axis=1), blocks) / some
    scale = float(np.median(raw[total > 0]))
    noise = np.bincount(rows.block, (power * now.variance(expected)).sum(axis=1), blocks)
    chance = np.where(total > 0, scale**2 * (noise / some**2 + FLOAT32**2), 1e6 * scale**2)
    now = replace(now, raw=np.where(total > 0, raw, scale), chance=chance)
    assert now.raw is not None
    middle = float(np.average(now.raw, weights=1 / chance))
    now = replace(now, gains=middle + now.kept * (now.raw - middle))
    missed = np.where(used, rows.answers / now.gain - expected, 0)
    return _excess(now, np.where(used, expected, 0), missed, used)


def _excess(now: Picture, expected: Floats, missed: Floats, used: Flags) -> Picture:
    """Noise from what the answers of a row miss in different ways; flutter from what they miss alike."""
    norm = (expected**2).sum(axis=1)
    some = np.where(norm > 0, norm, 1)
    alike = (missed * expected).sum(axis=1) / some
    apart = np.where(used, missed - alike[:, None] * expected, 0)
    free = used & (used.sum(axis=1) > 1)[:, None] & (norm > 0)[:, None]
    share = np.where(free, 1 - expected**2 / some[:, None], 0)
    left = apart**2 - now.rows.scatter * share
    if now.censored:
        rise = (left - now.dark * share)[free].sum() / max((np.abs(expected) * share)[free].sum(), 1e-300)
        now = replace(now, rise=max(float(rise), 0.0))
    elif share.sum() > 0:
        now = replace(now, dark=max(float(left[free].sum() / share.sum()), 0.0))
    chance = (np.where(used, now.variance(expected), 0) * expected**2).sum(axis=1) / some**2
    weigh = norm**2
    flutter = float((weigh * (alike**2 - chance)).sum() / max(weigh.sum(), 1e-300))
    return replace(now, flutter=max(flutter, 0.0))
