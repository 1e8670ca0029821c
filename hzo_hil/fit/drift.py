"""How a gain changed while it was watched: an Ornstein-Uhlenbeck process under measurement noise. Pure.

The gain of block b is power * (1 + d(t)), averaged over the block's rows, plus noise of a known variance. d has the
standard deviation `std` and the autocorrelation exp(-|t| / tau). Beside it a laser may wander as a sum of two sines of
known periods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import f as f_law

from hzo_hil.fit.estimate import CARE, DROP_95, NORMAL_95, Estimate, grid_interval
from hzo_hil.fit.rows import Floats, Integers

SEEN = 4.0
"""By how much the log-likelihood must rise for a drift to count as seen (false alarms: see `benchmarks/fit.py`)."""
_TIMES, _SIZES = 56, 96
_GOLDEN = (1 + math.sqrt(5)) / 2
_SINES = (0.6, 0.4)  # as of `simulators.drift.LaserWander`


@dataclass(frozen=True)
class Watch:
    """Gains `[blocks]` with their `variance`, and the rows they come from: `seconds`, `weight`, `block` `[rows]`."""

    gain: Floats
    variance: Floats
    seconds: Floats
    weight: Floats
    block: Integers

    @property
    def span_s(self) -> float:
        return float(np.ptp(self.seconds))

    @cached_property
    def _share(self) -> Floats:
        return self.weight / np.bincount(self.block, self.weight)[self.block]

    @cached_property
    def _apart(self) -> list[tuple[Floats, Floats]]:
        """For each block, times between its rows `[rows, rows]` and their shares `[rows]`."""
        each = (self.block == b for b in range(len(self.gain)))
        return [(np.abs(self.seconds[r][:, None] - self.seconds[r]), self._share[r]) for r in each]

    def means(self, values: Floats) -> Floats:
        """Of numbers `[rows, n]`, in each block `[blocks, n]`, as its gain weighs them."""
        return np.stack([np.bincount(self.block, self._share * column) for column in values.T], axis=1)

    def variance_within(self, values: Floats) -> float:
        """Of a number a row `[rows]`, around its block's mean, averaged over the blocks."""
        mean, square = self.means(np.stack([values, values**2], axis=1)).T
        return float(np.mean(square - mean**2))

    def correlation(self, tau: float) -> tuple[Floats, float]:
        """Of the blocks' means `[blocks, blocks]`, and the part of the variance lost within a block, on average."""
        middle = np.bincount(self.block, self._share * self.seconds)
        away = np.clip((self.seconds - middle[self.block]) / tau, -30, 30)
        later = np.bincount(self.block, self._share * np.exp(away))
        sooner = np.bincount(self.block, self._share * np.exp(-away))
        gap = (middle[:, None] - middle[None, :]) / tau
        between = np.exp(-np.abs(gap)) * np.where(gap > 0, sooner[:, None] * later, later[:, None] * sooner)
        own = np.array([share @ np.exp(-apart / tau) @ share for apart, share in self._apart])
        np.fill_diagonal(between, own)
        between = np.minimum(between, np.sqrt(np.outer(own, own)))
        between[between < 1e-20] = 0  # numbers below the normal range make linear algebra ten times slower
        return between, float(1 - own.mean())


@dataclass(frozen=True)
class Drift:
    """`power` in the long run; `std` relative to it; `tau_s`; `wander` amplitude, where asked for. `within`: relative
    variance of the gain within a block. `seen`: whether it drifts; else `std` is only bounded from above."""

    power: Estimate
    std: Estimate
    tau_s: Estimate
    wander: Estimate | None
    within: float
    seen: bool


def follow(watch: Watch, wander_period_s: float | None = None) -> Drift:
    """Profile of the restricted likelihood (Patterson & Thompson 1971: a fitted mean hides some of the drift) over a
    grid of (std, tau); every regressor (power, sines) is solved for exactly."""
    regressors = _regressors(watch, wander_period_s)
    scale = float(watch.gain @ (1 / watch.variance) / (1 / watch.variance).sum())
    gap = max(watch.span_s / len(watch.gain), 1e-9)
    times = np.geomspace(gap / 4, 4 * max(watch.span_s, gap), _TIMES)
    finest = math.sqrt(float(np.median(watch.variance)) / len(watch.gain)) / 20
    sizes = np.concatenate([[0.0], np.geomspace(finest, 10 * max(float(np.std(watch.gain)), finest), _SIZES)])
    grids = [_over_sizes(watch, regressors, watch.correlation(tau)[0], sizes) for tau in times]
    likely, fitted, errors = (np.stack(part) for part in zip(*grids, strict=True))
    tau, size = (int(k) for k in np.unravel_index(np.argmax(likely), likely.shape))
    seen = bool(likely.max() - likely[0, 0] > SEEN)
    if not seen:
        size = 0
    drop = _drop(watch.span_s / (2 * times[tau])) if seen else DROP_95
    size_found = grid_interval(sizes, likely.max(axis=0), drop)
    log_time = grid_interval(np.log(times), likely.max(axis=1), drop)
    tau_s = Estimate(
        math.exp(log_time.value),
        0.0 if log_time.low <= math.log(times[0]) else math.exp(log_time.low),
        math.inf if log_time.high >= math.log(times[-1]) else math.exp(log_time.high),
    )
    high = math.inf if size_found.high >= sizes[-1] else size_found.high
    std = Estimate(size_found.value if seen else 0.0, size_found.low if seen else 0.0, high) * (1 / scale)
    within = (std.value**2) * watch.correlation(times[tau])[1] if seen else 0.0
    # A drift too small to be seen still moves the mean; one slower than the watch is part of it.
    kept = (
        likely
        if seen
        else np.where(
            (likely >= likely[0, 0] - 0.5) & (times < watch.span_s / 4)[:, None] | (sizes == 0), likely, -math.inf
        )
    )
    power = _mixed(kept, fitted[..., 0], errors[..., 0, 0], drop)
    wander = None
    if wander_period_s is not None:
        sines = fitted[tau, size, 1:] / scale
        wander = _amplitude(sines, errors[tau, size, 1:, 1:] / scale**2)
        within += watch.variance_within(_waves(watch, wander_period_s) @ sines)
    return Drift(power, std, tau_s, wander, within, seen)


def _regressors(watch: Watch, period_s: float | None) -> Floats:
    one = np.ones(len(watch.gain))
    if period_s is None:
        return one[:, None]
    return np.column_stack([one, watch.means(_waves(watch, period_s))])


def _waves(watch: Watch, period_s: float) -> Floats:
    """Sine and cosine of both periods at every row `[rows, 4]`."""
    turn = 2 * math.pi * watch.seconds / period_s
    return np.stack([wave(turn * speed) for speed in (1, _GOLDEN) for wave in (np.sin, np.cos)], axis=1)


def _over_sizes(watch: Watch, regressors: Floats, correlation: Floats, sizes: Floats) -> tuple[Floats, Floats, Floats]:
    """For one tau, at all sizes of the drift: log-likelihood, solved regressors, their covariance."""
    root = 1 / np.sqrt(watch.variance)
    spectrum, turn = np.linalg.eigh(root[:, None] * correlation * root)
    seen, known = turn.T @ (root * watch.gain), turn.T @ (root[:, None] * regressors)
    total = 1 + sizes[:, None] ** 2 * np.maximum(spectrum, 0)  # [sizes, blocks]
    inverse = np.linalg.inv(np.einsum("sb,bi,bj->sij", 1 / total, known, known))
    fitted = np.einsum("sij,sb,bj,b->si", inverse, 1 / total, known, seen)
    left = seen - fitted @ known.T
    likely = -0.5 * (np.log(total).sum(axis=1) + (left**2 / total).sum(axis=1)) + 0.5 * np.linalg.slogdet(inverse)[1]
    return likely, fitted, inverse


def _mixed(likely: Floats, value: Floats, variance: Floats, drop: float) -> Estimate:
    """The power's profile likelihood: at each power the best of all grid points."""
    best = np.unravel_index(np.argmax(likely), likely.shape)
    middle, wide = float(value[best]), math.sqrt(float(variance[best]))
    reach = 8 * max(wide, math.sqrt(float(variance[likely > likely.max() - 2].max())))
    grid = middle + np.linspace(-reach, reach, 801)
    near = likely > likely.max() - 40
    away = (grid[:, None] - value[near]) ** 2 / variance[near]
    return grid_interval(grid, (likely[near] - 0.5 * away).max(axis=1), drop)


def _drop(times: float) -> float:
    """By how much the log-likelihood falls at the ends, for so many independent looks at the drift: F instead of
    chi-square."""
    return CARE**2 * float(f_law.ppf(0.95, 1, max(times, 3.0))) / 2


def _amplitude(parts: Floats, covariance: Floats) -> Estimate:
    """Of a wander whose two sines have the sizes 0.6 and 0.4 of it, from their sine and cosine parts."""
    sizes = np.hypot(parts[0::2], parts[1::2])
    turned = parts.reshape(2, 2) / np.maximum(sizes, 1e-300)[:, None]
    direction = np.zeros((2, 4))
    direction[0, :2], direction[1, 2:] = turned
    error = direction @ covariance @ direction.T
    weight = np.linalg.solve(error, np.array(_SINES))
    norm = float(weight @ np.array(_SINES))
    value, std = float(weight @ sizes) / norm, 1 / math.sqrt(norm)
    return Estimate(value, max(0.0, value - NORMAL_95 * std), value + NORMAL_95 * std)
