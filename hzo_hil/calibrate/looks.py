"""One look at a segment: a few samples pushed both ways by two steps, all of it asked twice; and what that shows.

From 4 samples x 4 moves x 2: noise from the two askings, the Jacobian's gain from the smaller and larger difference
extrapolated, curvature from how the two differ. Pure arithmetic; sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from hzo_hil.calibration import Measured
from hzo_hil.differences import snap
from hzo_hil.network import Network

Array = NDArray[Any]
_MOVES = (1.0, -1.0, -2.0, 2.0)
_COPIES = 2
_DRAWS = 400


@dataclass(frozen=True)
class Design:
    """Rows [copies * samples * moves, width] at a boundary, for steps h and 2h along signs; samples come in pairs that
    share theirs.
    """

    rows: Array
    samples: int
    step: float


def design(network: Network, at: int, base: Array, signs: Array, times: float = 1.0) -> Design:
    """A look at samples `base` [samples, width] along `signs` [samples, width]. The larger step is the activations'
    root mean square (`times` it), or what the range leaves of it, in whole converter steps.
    """
    low, high = network.limits(at)
    amplitude = float(np.sqrt(np.mean(base.astype(np.float64) ** 2)))
    wanted = min(times * (amplitude or 1.0) / 2, (high - low) / 8)
    step = snap(wanted, network.converter_step(at))
    if 4 * step > high - low:  # a coarse converter on a narrow range
        step = network.converter_step(at) or wanted
    inside = np.clip(base, low + 2 * step, high - 2 * step) if np.isfinite(low + high) else base
    moves = np.array(_MOVES)[None, :, None] * step * signs[:, None, :]
    rows = (inside[:, None, :] + moves).reshape(-1, base.shape[1])
    return Design(np.tile(rows, (_COPIES, 1)), len(base), step)


@dataclass(frozen=True)
class Look:
    """What a segment answered: `slopes` [samples, out] is J u, `bends` its third-order error per step^2; the variances
    are those that noise leaves in an element of each. `noise` is of one element of one answer.
    """

    outputs: Array
    noise: Measured
    slopes: Array
    bends: Array
    slope_noise: float
    bend_noise: float
    step: float

    @property
    def gain(self) -> float:
        """||J||_F^2 / outputs, noise taken off."""
        return max(float(np.mean(self.slopes**2)) - self.slope_noise, 0.0)

    @property
    def bend(self) -> tuple[float, float]:
        """Mean square of the truncation per step^2, noise taken off, and the standard error that noise leaves in it."""
        found = float(np.mean(self.bends**2)) - self.bend_noise
        return found, self.bend_noise * float(np.sqrt(2 / self.bends.size))

    @property
    def bend_spread(self) -> float:
        """Standard error of the mean square by the few directions that were tried: samples of a pair count once."""
        squares = self.bends**2
        return float(np.std(squares) / np.sqrt(max(squares.size / 2, 1)))

    @property
    def hidden(self) -> bool:
        """Whether noise hides the curvature."""
        found, error = self.bend
        return error > 0 and found < 4 * error

    @property
    def likeness(self) -> float:
        """Mean cosine of two samples' slopes: how alike their Jacobians are."""
        pairs = len(self.slopes) // 2
        alone = self.gain * self.slopes.shape[1]
        if not pairs or alone <= 0:
            return 1.0
        together = float(np.sum(self.slopes[: 2 * pairs : 2] * self.slopes[1 : 2 * pairs : 2])) / pairs
        return float(np.clip(together / alone, 0.0, 1.0))

    def gain_interval(self, key: int) -> Measured:
        return Measured(self.gain, *_bootstrap(self.slopes**2 - self.slope_noise, key))

    @property
    def deaf(self) -> bool:
        """Whether nothing moved: the answers do not depend on the input as far as can be seen."""
        moved = self.outputs.reshape(-1, len(_MOVES), self.outputs.shape[-1])
        return bool(np.ptp(moved, axis=1).max() == 0)


def look(asked: Design, outputs: Array) -> Look:
    """From answers [copies * samples * moves, out] to the rows of a design."""
    shaped = outputs.astype(np.float64).reshape(_COPIES, asked.samples, len(_MOVES), -1)
    pairs = shaped[0] - shaped[1]
    variance = float(np.mean(pairs**2)) / 2
    mean, h = shaped.mean(axis=0), asked.step
    small = (mean[:, 0] - mean[:, 1]) / (2 * h)
    large = (mean[:, 3] - mean[:, 2]) / (4 * h)
    # Each mean of two answers has half the variance; a difference of two of them the whole.
    one = variance / (4 * h**2)
    freedom = pairs.size
    bounds = [variance * freedom / q for q in (chi2.ppf(0.975, freedom), chi2.ppf(0.025, freedom))]
    return Look(
        outputs,
        Measured(variance**0.5, *(b**0.5 for b in bounds)),
        (4 * small - large) / 3,
        (large - small) / (3 * h**2),
        one * (16 + 1 / 4) / 9,
        one * (1 + 1 / 4) / (9 * h**4),
        h,
    )


def _bootstrap(values: Array, key: int) -> tuple[float, float]:
    """95 % interval of the mean of `values` [samples, out], samples and outputs drawn anew."""
    rng = np.random.Generator(np.random.Philox(key=key))
    flat = values.reshape(-1)
    means = flat[rng.integers(0, flat.size, (_DRAWS, flat.size))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return max(float(low), 0.0), float(high)


def curvatures(looks: list[Look]) -> list[Measured]:
    """Relative truncation per eps^2 of each segment: its own estimate, drawn towards the mean of all where noise makes
    it worse than the segments differ (empirical Bayes; Efron and Morris 1975). Picking out those that noise hides and
    pooling them alone would find too little: they are hidden because they came out low.
    """
    bends = np.array([x.bend for x in looks])
    gains = np.array([max(x.gain, 1e-300) for x in looks])
    ratios = bends[:, 0] / gains
    errors = bends[:, 1] / gains
    noisy = errors > 0
    if noisy.any():
        spread = max(float(np.var(ratios[noisy]) - np.mean(errors[noisy] ** 2)), 0.0)
        weights = 1 / (errors[noisy] ** 2 + spread)
        mean = max(float((ratios[noisy] * weights).sum() / weights.sum()), 0.0)
        trust = spread / (spread + errors**2) if spread > 0 else np.zeros(len(looks))
        trust = np.where(noisy, trust, 1.0)
        ratios = np.maximum(trust * ratios + (1 - trust) * mean, 0.0)
        errors = errors * np.sqrt(trust) + (1 - trust) * float(weights.sum() ** -0.5)
    errors = np.hypot(errors, np.array([x.bend_spread for x in looks]) / gains)
    root = np.sqrt
    return [
        Measured(float(root(r)), float(root(max(r - 2 * e, 0.0))), float(root(r + 2 * e)))
        for r, e in zip(np.maximum(ratios, 0.0), errors, strict=True)
    ]


def slope_through_zero(x: Array, y: Array, weights: Array, low: float, high: float, unknown: float) -> Measured:
    """Least squares of y = a x with the 95 % interval of a, kept within low..high; `unknown` where x says nothing."""
    power = float((weights * x * x).sum())
    if power <= 0:
        return Measured(unknown, low, high)
    a = float((weights * x * y).sum()) / power
    rest = float((weights * (y - a * x) ** 2).sum()) / max(len(x) - 1, 1)
    error = 2 * (rest / power) ** 0.5
    return Measured(*(float(np.clip(v, low, high)) for v in (a, a - error, a + error)))
