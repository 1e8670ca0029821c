"""One look at a segment: a few samples pushed both ways by two steps, and what that shows.

The Jacobian's gain is found from the smaller and larger difference extrapolated, curvature from how the two differ, and
how the Jacobian turns from one place to another from how their middles do. Asked twice, a look shows its noise; a look
asked once is told it. Pure arithmetic; sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_DRAWS = 400


@dataclass(frozen=True)
class Design:
    """Rows [copies * samples * moves, width] at a boundary, for steps h and 2h along signs."""

    rows: Array
    samples: int
    step: float
    copies: int = 2


def design(network: Network, at: int, base: Array, signs: Array, times: float = 1.0, copies: int = 2) -> Design:
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
    return Design(np.tile(rows, (copies, 1)), len(base), step, copies)


@dataclass(frozen=True)
class Look:
    """What a segment answered: `slopes` [samples, out] is J u, `bends` its third-order error per step^2, `turns` how J
    u changes per step along u; the variances are those that noise leaves in an element of each, `together` the
    covariance of the first two. `noise` is of one element of one answer.
    """

    outputs: Array
    noise: Measured
    slopes: Array
    bends: Array
    turns: Array
    slope_noise: float
    bend_noise: float
    turn_noise: float
    together: float
    step: float

    @property
    def gain(self) -> float:
        """||J||_F^2 / outputs, noise taken off; where noise hides it, the error that noise leaves: no more is known."""
        return max(*_square(self.slopes, self.slope_noise))

    @property
    def faint(self) -> bool:
        """Whether noise hides the gain."""
        found, error = _square(self.slopes, self.slope_noise)
        return found <= error

    @property
    def bend(self) -> tuple[float, float]:
        """Mean square of the truncation per step^2, noise taken off, and the standard error that noise leaves in it."""
        return _square(self.bends, self.bend_noise)

    @property
    def along(self) -> float:
        """Mean product of a difference and its truncation per step^2, noise taken off."""
        return float(np.mean(self.slopes * self.bends)) - self.together

    @property
    def hidden(self) -> bool:
        """Whether noise hides the curvature."""
        found, error = self.bend
        return error > 0 and found < 4 * error

    @property
    def likeness(self) -> float:
        """Mean cosine of two samples' slopes where pairs share their signs: how alike their Jacobians are."""
        pairs = len(self.slopes) // 2
        alone = self.gain * self.slopes.shape[1]
        if not pairs or alone <= 0:
            return 1.0
        together = float(np.sum(self.slopes[: 2 * pairs : 2] * self.slopes[1 : 2 * pairs : 2])) / pairs
        return float(np.clip(together / alone, 0.0, 1.0))

    def gain_interval(self, key: int) -> Measured:
        low, high = _bootstrap(self.slopes**2 - self.slope_noise, key)
        return Measured(self.gain, low, max(high, self.gain))

    @property
    def deaf(self) -> bool:
        """Whether nothing moved: the answers do not depend on the input as far as can be seen."""
        moved = self.outputs.reshape(-1, len(_MOVES), self.outputs.shape[-1])
        return bool(np.ptp(moved, axis=1).max() == 0)


def look(asked: Design, outputs: Array, noise: Measured | None = None) -> Look:
    """From answers [copies * samples * moves, out] to the rows of a design; `noise` where they were asked once."""
    shaped = outputs.astype(np.float64).reshape(asked.copies, asked.samples, len(_MOVES), -1)
    noise = noise or _scatter(shaped)
    mean, h = shaped.mean(axis=0), asked.step
    small = (mean[:, 0] - mean[:, 1]) / (2 * h)
    large = (mean[:, 3] - mean[:, 2]) / (4 * h)
    turned = ((mean[:, 3] + mean[:, 2]) - (mean[:, 0] + mean[:, 1])) / 2
    # Of a difference over 2h; over 4h it is a quarter of it.
    one = noise.value**2 / asked.copies / (2 * h**2)
    return Look(
        outputs,
        noise,
        (4 * small - large) / 3,
        (large - small) / (3 * h**2),
        turned / (1.5 * h**2),
        one * (16 + 1 / 4) / 9,
        one * (1 + 1 / 4) / (9 * h**4),
        one * (2 / 1.5**2) / h**2,
        -one * (4 + 1 / 4) / (9 * h**2),
        h,
    )


def _scatter(shaped: Array) -> Measured:
    """Standard deviation of an answer [2, ...] that was asked twice."""
    pairs = shaped[0] - shaped[1]
    return deviation(float(np.mean(pairs**2)) / 2, pairs.size)


def deviation(variance: float, freedom: int) -> Measured:
    """A standard deviation with its interval, from a variance of so many degrees of freedom."""
    bounds = [variance * freedom / q for q in (chi2.ppf(0.975, freedom), chi2.ppf(0.025, freedom))]
    return Measured(variance**0.5, *(b**0.5 for b in bounds))


def _square(values: Array, noise: float) -> tuple[float, float]:
    """Mean square of `values`, noise taken off, and the standard error that noise leaves in it."""
    return float(np.mean(values**2)) - noise, noise * float(np.sqrt(2 / values.size))


def _bootstrap(values: Array, key: int) -> tuple[float, float]:
    """95 % interval of the mean of `values` [samples, out], samples and outputs drawn anew."""
    rng = np.random.Generator(np.random.Philox(key=key))
    flat = values.reshape(-1)
    means = flat[rng.integers(0, flat.size, (_DRAWS, flat.size))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return max(float(low), 0.0), float(high)


def curvatures(looks: list[Look]) -> list[Measured]:
    """Relative truncation per eps^2 of each segment."""
    return _relative(looks, [x.bends for x in looks], [x.bend_noise for x in looks])


def turnings(looks: list[Look], part: Sequence[float]) -> list[Measured]:
    """How much each segment's Jacobian changes, relative to it, per unit of noise in every input. `part`: of the change
    along the very direction of a difference, squared, what the mean over all directions is.
    """
    found = _relative(looks, [x.turns for x in looks], [x.turn_noise for x in looks])
    return [Measured(*(v * p**0.5 for v in (m.value, m.low, m.high))) for m, p in zip(found, part, strict=True)]


def alignment(looks: list[Look], bent: list[Measured]) -> Measured:
    """Cosine between truncation and the difference that it is part of, all looks together; -1, in phase at every cut,
    where there is no truncation to see.
    """
    along = np.array([x.along / max(x.gain, 1e-300) for x in looks])
    sizes = np.array([b.value for b in bent])
    power = float(sizes.sum())
    if power <= 0 or len(looks) < 2:
        return Measured(-1.0, -1.0, 1.0)
    found = float(along.sum()) / power
    error = 2 * float(np.sum((along - found * sizes) ** 2) * len(looks) / (len(looks) - 1)) ** 0.5 / power
    value = found if error < 1 else -1.0
    return Measured(*(float(np.clip(v, -1, 1)) for v in (value, found - error, found + error)))


def _relative(looks: list[Look], values: list[Array], noises: list[float]) -> list[Measured]:
    """Roots of mean squares relative to the gains: each segment's own estimate, drawn towards the mean of all where
    noise makes it worse than the segments differ (empirical Bayes; Efron and Morris 1975). Picking out those that noise
    hides and pooling them alone would find too little: they are hidden because they came out low.
    """
    squares = np.array([_square(v, n) for v, n in zip(values, noises, strict=True)])
    gains = np.array([max(x.gain, 1e-300) for x in looks])
    ratios = squares[:, 0] / gains
    errors = squares[:, 1] / gains
    noisy = errors > 0
    if noisy.any():
        spread = max(float(np.var(ratios[noisy]) - np.mean(errors[noisy] ** 2)), 0.0)
        weights = 1 / (errors[noisy] ** 2 + spread)
        mean = max(float((ratios[noisy] * weights).sum() / weights.sum()), 0.0)
        trust = spread / (spread + errors**2) if spread > 0 else np.zeros(len(looks))
        trust = np.where(noisy, trust, 1.0)
        ratios = np.maximum(trust * ratios + (1 - trust) * mean, 0.0)
        errors = errors * np.sqrt(trust) + (1 - trust) * float(weights.sum() ** -0.5)
    errors = np.hypot(errors, np.array([_by_direction(v) for v in values]) / gains)
    root = np.sqrt
    return [
        Measured(float(root(r)), float(root(max(r - 2 * e, 0.0))), float(root(r + 2 * e)))
        for r, e in zip(np.maximum(ratios, 0.0), errors, strict=True)
    ]


def _by_direction(values: Array) -> float:
    """Standard error of the mean square by the few directions that were tried: samples of a pair count once."""
    squares = values**2
    return float(np.std(squares) / np.sqrt(max(squares.size / 2, 1)))


def slope_through_zero(x: Array, y: Array, weights: Array, low: float, high: float, unknown: float) -> Measured:
    """Least squares of y = a x with the 95 % interval of a, kept within low..high; `unknown` where x says nothing."""
    power = float((weights * x * x).sum())
    if power <= 0:
        return Measured(unknown, low, high)
    a = float((weights * x * y).sum()) / power
    rest = float((weights * (y - a * x) ** 2).sum()) / max(len(x) - 1, 1)
    error = 2 * (rest / power) ** 0.5
    return Measured(*(float(np.clip(v, low, high)) for v in (a, a - error, a + error)))
