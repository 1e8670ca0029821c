"""The first look at the answers of the pilot: scale, noise, how far the read-out goes; whether they follow at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hzo_hil.devices.errors import DeviceError
from hzo_hil.fit.lattice import lattice_of
from hzo_hil.fit.rows import Floats, Rows
from hzo_hil.fit.target import Target

ROUNDING = 2.0**-20
"""Of the largest answer: steps below it are floating point, not a converter."""
_FOLLOWS = 0.5  # part of the answers' energy that the simulator must explain


@dataclass(frozen=True)
class Look:
    """`gain` rough; `dark` standard deviation of dark answers over it; `step` of the read-out over it (0: none seen);
    `top` amplitude that most answers stay within the read-out's range at; `dim` one that moves them by two steps."""

    gain: float
    dark: float
    step: float
    top: float
    dim: float


def look(rows: Rows, target: Target, in_step: float) -> Look:
    """`in_step`: of the input, as declared or as CONFIG says; dim rows must pass it. DeviceError where the answers are
    not those of the simulator."""
    largest = float(np.abs(rows.answers).max())
    dark = rows.answers[rows.drive == 0]
    noise = float(np.sqrt(np.mean(dark**2)))
    expected = expected_of(rows.drive, rows.pull, target.degree)
    bright = rows.drive != 0
    _check(rows.answers[bright], expected[bright], noise, target)
    gain = rough_gain(rows.answers, expected, rows.drive)
    lattice = lattice_of(rows.answers, np.ones((len(rows), 1)), 0.1, ROUNDING * largest)
    step = lattice.step / gain if lattice else 0.0
    if lattice and np.abs(lattice.codes).max() < 3:
        raise DeviceError(
            f"{_at(target)}: answers take {2 * int(np.abs(lattice.codes).max()) + 1} values only: a read-out so coarse"
            " cannot be fitted; 5 bits or more can"
        )
    usual = float(np.quantile(np.abs(target.response.pull), 0.6))
    saturated = gain * np.abs(expected).max() > 1.15 * largest + 5 * noise
    top = (0.8 * largest / gain / usual) ** (1 / target.degree) if saturated else math.inf
    dim = max((2 * step / usual) ** (1 / target.degree), 0.75 * in_step) if step else 0.0
    top = min(top, target.reach)
    return Look(gain, noise / gain, step, top, min(dim, top))


def expected_of(drive: Floats, pull: Floats, degree: int) -> Floats:
    """Answers `[rows, out]` without defects."""
    return np.asarray((drive if degree == 1 else drive**2)[:, None] * pull)


def rough_gain(answers: Floats, expected: Floats, drive: Floats) -> float:
    """From what is far from the ends of input and read-out; from everything, where converters are too coarse."""
    low = (np.abs(drive) < 0.6 * np.abs(drive).max())[:, None] & (np.abs(answers) < 0.8 * np.abs(answers).max())
    inside = low if np.abs(answers[low]).max(initial=0) > 0 else np.ones_like(low)
    return float((answers * expected)[inside].sum() / (expected**2)[inside].sum())


def _check(answers: Floats, expected: Floats, noise: float, target: Target) -> None:
    """DeviceError where bright answers are no other than dark ones, or not those of the simulator."""
    both, ours = float((answers * expected).sum()), float((expected**2).sum())
    signal = float((answers**2).sum()) - answers.size * noise**2
    if both**2 < 25 * noise**2 * ours or not signal > 0:
        raise DeviceError(
            f"{_at(target)}: bright and dark answers do not differ (noise {noise:.3g}): is its light on, its range"
            " right, its output connected?"
        )
    followed = both * abs(both) / (ours * signal)
    if followed < _FOLLOWS:
        raise DeviceError(
            f"{_at(target)}: the simulator of CONFIG explains {max(followed, 0):.0%} of the answers: it is another chip"
            " (seed), another order of ports or sign, or something is not connected. Fitting needs a simulator that is"
            " right up to gain, noise, converters and drift"
        )


def _at(target: Target) -> str:
    return f"stage {target.stage} ({target.model.name!r})"
