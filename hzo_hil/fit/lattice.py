"""The step of an output converter from the grid that answers lie on, also where a slow gain stretches that grid. Pure.

Answers are whole numbers (codes) times a step. Rows taken at different times may have steps that differ a little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hzo_hil.fit.rows import Floats

FLOAT32 = 2.0**-23
GROUP = 5  # values looked at together
_GROUPS = 400  # such groups, spread over the rows
_AGREE = 0.3  # part of such groups that must give the same step
_MEMORY = 1 << 19  # numbers worked on at once
_ODD = 0.003  # part of the rows that may lie on no grid all the same
_WHOLE = 0.03  # a code may be off a whole number by so much


@dataclass(frozen=True)
class Lattice:
    """`step` as read at the output, the mean of the rows; `codes` `[rows, out]`."""

    step: float
    codes: Floats


def lattice_of(answers: Floats, gains: Floats, stretch: float, rounding: float) -> Lattice | None:
    """The grid of answers `[rows, out]`, in order of time; None where they lie on none.

    `gains` `[rows, 1]`: by what the step of a row is larger than the mean one, if it follows the gain, and within how
    much (`stretch`, relative). `rounding`: smallest step that counts.
    """
    found = _even(answers, rounding)
    if found is not None:
        return found
    step = _common(answers / gains, rounding)
    if step is None:
        return None
    for wide in (stretch, 4 * stretch):
        codes = _stretched(answers / gains, step, min(wide, 0.4))
        if codes is not None:
            return Lattice(float((answers * codes).sum() / (codes**2).sum()), codes)
    return None


def _even(answers: Floats, rounding: float) -> Lattice | None:
    """One step for all rows."""
    step = _common(answers, rounding)
    if step is None:
        return None
    codes = np.rint(answers / step)
    for limit in (8, 64, 512, math.inf):  # the more exactly the step is known, the higher codes can be told
        known = (codes != 0) & (np.abs(codes) <= limit)
        step = float((answers[known] * codes[known]).sum() / (codes[known] ** 2).sum())
        codes = np.rint(answers / step)
    return Lattice(step, codes) if _off(answers, codes, step).max() <= _WHOLE + _fuzz(answers, step) else None


def _common(answers: Floats, rounding: float) -> float | None:
    """Median over groups of rows of their common measure, if enough of them agree on it to a tenth."""
    rows = max(1, math.ceil(GROUP / answers.shape[1]))
    places = range(0, len(answers), rows * max(1, len(answers) // (rows * _GROUPS)))
    groups = (answers[k : k + rows].ravel() for k in places)
    steps = np.array([s for g in groups if (s := _measure(g, rounding)) is not None])
    if not len(steps):
        return _only_step(answers, rounding)
    if not steps.any():
        return None
    # A group whose codes happen to share a factor gives a multiple; one that fails gives a fraction.
    best = max(steps[steps > 0], key=lambda s: (np.abs(steps - s) <= 0.1 * s).sum())
    alike = np.abs(steps - best) <= 0.1 * best
    return float(np.median(steps[alike])) if alike.sum() >= _AGREE * len(steps) else None


def _only_step(answers: Floats, rounding: float) -> float | None:
    """Of a converter so coarse that it knows dark and one level."""
    sizes = np.abs(answers[np.abs(answers) > rounding])
    lone = 0 < len(sizes) < answers.size and np.ptp(sizes) <= 0.2 * np.median(sizes)
    return float(np.median(sizes)) if lone else None


def _measure(values: Floats, rounding: float) -> float | None:
    """The largest number that divides all of them, by Euclid from the smallest upwards: 0 if it is no more than
    rounding, None for less than two different values."""
    ordered = np.sort(np.abs(values))
    ordered = ordered[ordered > rounding]
    if not len(ordered) or np.ptp(ordered) <= rounding:
        return None
    step = float(ordered[0])
    weighted = squares = 0.0
    for value in ordered:
        step, known = _euclid(step, float(value), rounding)
        if step <= rounding:
            return 0.0
        if not known:
            weighted = squares = 0.0
        code = round(value / step)
        weighted, squares = weighted + value * code, squares + code * code
        step = weighted / squares
    return step


def _euclid(step: float, value: float, rounding: float) -> tuple[float, bool]:
    """Common measure of a step and a value, and whether the step was it already."""
    known = True
    for _ in range(40):
        rest = abs(value - round(value / step) * step)
        if rest <= _WHOLE * step + FLOAT32 * value:
            return step, known
        known = False
        if rest <= rounding:
            return rest, known
        step, value = rest, step
    return 0.0, False


def _stretched(answers: Floats, step: float, stretch: float) -> Floats | None:
    """Codes with a step for each row, within `stretch` of the mean one: the nearest to it of those that fit best."""
    largest = float(np.abs(answers).max()) / step
    tries = step * (1 + stretch * np.linspace(-1, 1, 2 * math.ceil(stretch * largest / 0.1) + 1))
    some = max(1, _MEMORY // (len(tries) * answers.shape[1]))
    parts = [_told(answers[k : k + some], tries, step) for k in range(0, len(answers), some)]
    codes, off = (np.concatenate(part) for part in zip(*parts, strict=True))
    return codes if np.mean(off > _WHOLE + _fuzz(answers, step)) <= _ODD else None


def _told(answers: Floats, tries: Floats, step: float) -> tuple[Floats, Floats]:
    """Codes of rows `[rows, out]`, and how far the worst of each row is off a whole number."""
    values = answers[:, None, :]
    guess = np.rint(values / tries[:, None])  # [rows, tries, out]
    squares = (guess**2).sum(axis=2)
    fitted = np.where(squares > 0, (guess * values).sum(axis=2) / np.maximum(squares, 1), step)
    off = np.abs(values / fitted[:, :, None] - guess).max(axis=2)
    good = off <= off.min(axis=1, keepdims=True) + 1e-3
    best = np.argmin(np.where(good, np.abs(fitted - step), np.inf), axis=1)
    rows = np.arange(len(answers))
    return np.asarray(guess[rows, best]), np.asarray(off[rows, best])


def _off(answers: Floats, codes: Floats, step: float) -> Floats:
    return np.asarray(np.abs(answers / step - codes))


def _fuzz(answers: Floats, step: float) -> float:
    """Rounding of float32, in steps."""
    return 4 * FLOAT32 * float(np.abs(answers).max()) / step
