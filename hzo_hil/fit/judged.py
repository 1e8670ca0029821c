"""The test of a fit: queries that no estimate has seen, against what the fitted simulator expects of them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from hzo_hil.fit.output import Output
from hzo_hil.fit.picture import Picture
from hzo_hil.fit.rows import Flags, Floats
from hzo_hil.fit.spread import normal_scores, readings

FALSE_ALARM = 1e-3
"""The chance that a device which is what the simulator says fails the test."""


@dataclass(frozen=True)
class Verdict:
    """Of one kind of answers: chi-square, its degrees of freedom and probability; rms missed, and expected."""

    name: str
    chi_square: float
    freedom: int
    probability: float
    missed: float
    expected: float

    @property
    def ok(self) -> bool:
        return self.probability >= FALSE_ALARM / 4  # three of them, and the error of the variance is itself rough

    def text(self) -> str:
        sign = "as it should" if self.ok else "NOT AS IT SHOULD"
        return (
            f"{self.name}: off by {self.missed:.3g} (rms; expected {self.expected:.3g}), {sign}: chi-square"
            f" {self.chi_square:.0f} for {self.freedom}, p = {self.probability:.2g}"
        )


def judge(
    now: Picture, seen: Output, noise: Floats, error: float, flutter: float, rng: np.random.Generator
) -> list[Verdict]:
    """`noise`: variance `[rows, out]` by the fit, without converters, known to the relative
    `error`; `flutter`: relative variance of the gain within a block."""
    rows, expected = now.rows, now.expected
    held = rows.held if now.sure is None else rows.held & now.sure
    dark = np.broadcast_to((rows.drive == 0)[:, None], expected.shape) & held[:, None]
    bright = now.inside(expected) & (rows.drive != 0)[:, None] & held[:, None]
    extra = rows.scatter
    alike = np.full(len(rows), seen.slope_error**2)
    if not seen.step.value:
        alike = flutter + now.gain_error[rows.block]
    found = []
    for name, which in (("dark answers", dark), ("bright answers", bright)):
        if which.any():
            scores = _scores(which, now, seen, expected, noise + extra, rng)
            found.append(_verdict(name, which, scores, seen, expected, noise, error, extra, alike))
            if which is dark:
                found.append(_level(which, scores, noise, seen))
    return found


def _scores(
    which: Flags, now: Picture, seen: Output, expected: Floats, variance: Floats, rng: np.random.Generator
) -> Floats:
    """Standard normal numbers `[rows, out]` where the fit holds; 0 for answers that are not asked about."""
    step = seen.step.value
    end = seen.end.value if seen.end is not None and step else math.inf
    low = 0.0 if now.censored else -end
    rounding = (1e-6 * float(np.abs(seen.values).max())) ** 2
    none = np.zeros(int(which.sum()))
    those = readings(seen.values[which], expected[which], none, step, low, end)
    scores = np.zeros_like(expected)
    scores[which] = normal_scores(those, variance[which] + rounding, rng)
    return scores


def _verdict(
    name: str, which: Flags, scores: Floats, seen: Output, expected: Floats, noise: Floats, error: float, extra: Floats,
    alike: Floats,
) -> Verdict:  # fmt: skip
    """`alike` `[rows]`: relative variance of what scales all answers of a row."""
    step = seen.step.value
    rounding = (1e-6 * float(np.abs(seen.values).max())) ** 2
    signal = np.where(which, expected, 0) / np.sqrt(noise + extra + rounding + step**2 / 12)
    along, power = (scores * signal).sum(axis=1), (signal**2).sum(axis=1)
    # A scale common to a row: the inverse of 1 + alike signal signal^T (Sherman & Morrison 1950).
    chi_square = float((scores**2).sum() - (alike * along**2 / (1 + alike * power)).sum())
    freedom = int(which.sum())
    # The variance was estimated, too: as a chi-square of fewer degrees with the variance this adds (Satterthwaite).
    counted = 2 * freedom**2 / (2 * freedom + (freedom * error) ** 2)
    scaled = chi_square * counted / freedom
    probability = float(chi2.sf(scaled, counted))
    if float(np.mean(noise[which])) > rounding:  # else what scatters is floating point, and less than that is no fault
        probability = 2 * min(probability, float(chi2.cdf(scaled, counted)))
    missed = np.sqrt(np.mean((seen.values[which] - expected[which]) ** 2))
    due = np.sqrt(np.mean((noise + extra + expected**2 * alike[:, None])[which] + step**2 / 12))
    return Verdict(name, chi_square, freedom, probability, float(missed), float(due))


def _level(which: Flags, scores: Floats, noise: Floats, seen: Output) -> Verdict:
    """Whether dark answers lie around 0: the mean of each output."""
    count = which.sum(axis=0)
    means = scores.sum(axis=0) / count
    chi_square, freedom = float((count * means**2).sum()), len(count)
    unit = math.sqrt(float(noise.mean()) + seen.step.value**2 / 12)
    missed, due = unit * float(np.sqrt(np.mean(means**2))), unit * float(np.sqrt(np.mean(1 / count)))
    return Verdict("mean of dark answers", chi_square, freedom, float(chi2.sf(chi_square, freedom)), missed, due)
