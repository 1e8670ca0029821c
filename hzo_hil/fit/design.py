"""Which queries are asked. Pure: draws from the generator it is given.

A pilot finds scale, read-out range and steps. Then blocks, each holding bright rows (gain, input steps), dim rows
(noise, with the signal as dither for a converter) and dark rows, mixed, so that a drift moves all of a block alike.
"""

from __future__ import annotations

import math

import numpy as np

from hzo_hil.devices.errors import BadInput
from hzo_hil.fit.rows import Questions
from hzo_hil.fit.target import Target

PILOT_BRIGHT, PILOT_DARK = 40, 24
LEAST_BLOCKS, MOST_BLOCKS = 12, 128
LEAST_ROWS = 16
LEAST_QUERIES = PILOT_BRIGHT + PILOT_DARK + LEAST_BLOCKS * LEAST_ROWS
DEFAULT_QUERIES = 4096
_HELD = 0.125  # part of the rows that is kept for the test


def check_budget(queries: int) -> None:
    if queries < LEAST_QUERIES:
        raise BadInput(
            f"a budget of {queries:,} queries is too small: fitting needs at least {LEAST_QUERIES}"
            f" ({PILOT_BRIGHT + PILOT_DARK} to look and {LEAST_BLOCKS} blocks of {LEAST_ROWS}), and"
            f" {DEFAULT_QUERIES:,} for what the documentation promises"
        )


def pilot(target: Target, rng: np.random.Generator) -> Questions:
    """Loud patterns from faint to the end of the range, and dark ones in between."""
    # Never in even steps: they could all fall on the edges between the codes of a converter.
    drive = np.concatenate([rng.uniform(0.05, 1, PILOT_BRIGHT - 8), rng.uniform(0.97, 1, 8)]) * target.reach
    loud = rng.choice(target.loud, PILOT_BRIGHT)
    drive = np.concatenate([_signs(target, rng, drive), np.zeros(PILOT_DARK)])
    pattern = np.concatenate([loud, rng.integers(0, len(target.patterns), PILOT_DARK)])
    order = rng.permutation(len(drive))
    none = np.zeros(len(drive))
    return Questions(drive[order], pattern[order], none.astype(np.int64) - 1, none.astype(bool))


def blocks(target: Target, queries: int, top: float, dim: float, rng: np.random.Generator) -> Questions:
    """All rows after the pilot. `top`: largest amplitude of bright rows; `dim`: one that moves a converter by some
    steps (0: there is none, and dim rows are dark)."""
    left = queries - PILOT_BRIGHT - PILOT_DARK
    count = min(MOST_BLOCKS, left // LEAST_ROWS)
    sizes = np.full(count, left // count) + (np.arange(count) < left % count)
    drive, pattern, held = [], [], []
    for size in sizes:
        v = _block(target, int(size), top, dim, rng)
        order = rng.permutation(int(size))
        which = rng.integers(0, len(target.patterns), int(size))
        loud = np.abs(v) > top  # the rows that look for the end of the read-out
        which[loud] = rng.choice(target.loud, int(loud.sum()))
        drive.append(v[order])
        pattern.append(which[order])
        held.append(rng.random(int(size)) < _HELD)
    return Questions(
        np.concatenate(drive), np.concatenate(pattern), np.repeat(np.arange(count), sizes), np.concatenate(held)
    )


def _block(target: Target, size: int, top: float, dim: float, rng: np.random.Generator) -> np.ndarray:
    bright, full = math.ceil(size / 2), max(1, size // 16)
    faint = size - bright - full
    ladder = dim * 4.0 ** rng.uniform(-1, 1, faint) if dim else np.zeros(faint)
    ladder[: faint // 4] = 0  # dark
    drive = np.concatenate(
        [top * rng.uniform(0.1, 1, bright), target.reach * rng.uniform(0.9, 1, full), np.minimum(ladder, top)]
    )
    return _signs(target, rng, drive)


def _signs(target: Target, rng: np.random.Generator, drive: np.ndarray) -> np.ndarray:
    """Drawn signs, and the amplitude that the device's precision holds."""
    signed = drive * rng.choice([-1.0, 1.0], len(drive)) if target.signed else drive
    return np.asarray(signed.astype(target.patterns.dtype), dtype=np.float64)
