"""Random numbers that depend on a key and a column, never on batch size, order or threads.

Shot, programming and rounding noise are counter-based: the value in row i and column j is a hash of (keys[i],
stream, j). Keys are numpy arrays of uint64, or torch tensors of int64 that hold the same bits; draws come as their
keys do, the same numbers to rounding. Fabrication draws, made once for each chip, come from numpy's generator under
named tags. Knows nothing of what the noise is used for.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import draws

Keys = NDArray[np.uint64]

# Streams of one key: what is drawn under the same key never shares a number.
STREAM_DETECTOR = 1
STREAM_SHOT_PHASE = 2
STREAM_SHOT_PHASE_2 = 3
STREAM_PROGRAM = 4
STREAM_PROGRAM_2 = 5
STREAM_ROUNDING = 6
STREAM_WRITE = 7
STREAM_SHOT_OUT = 30
STREAM_SHOT_OUT_2 = 31
STREAM_DRIFT = 40
STREAM_COUNTS = 20
STREAM_COUNTS_2 = 21
STREAM_ROUNDING_INPUT = 22
STREAM_INPUT = 23
STREAM_ADDED = 1000
"""Of noise that the host adds to answers, and so on by boundary."""

# Tags of one chip's fabrication draws.
CHIP_COUPLERS = 101
CHIP_PHASE_BIAS = 102
CHIP_GAMMA = 103
CHIP_LOSS = 104
CHIP_PHASE_DRIFT = 110
CHIP_RESONANCE = 120
CHIP_RESONANCE_DRIFT = 121
CHIP_SHIFT = 122
CHIP_SHIFT_DRIFT = 123
CHIP_DISTANCE = 124
CHIP_MASK = 125
CHIP_STUCK = 126
CHIP_CELL_DRIFT = 127
CHIP_POWER = 140
CHIP_WEIGHTS = 141
CHIP_SLOPES = 142


def derive(keys: Any, *path: int) -> Any:
    """New keys `[batch]` for a sub-purpose (a stage index, a repeat): distinct paths give unrelated keys."""
    return _engine(keys).derive(keys, *path)


def chip_rng(seed: int, index: int, tag: int) -> np.random.Generator:
    """Generator of one fabrication draw: chip `seed`, stage `index`, a named `CHIP_` tag."""
    if seed < 0 or index < 0:
        raise ValueError(f"chip seed {seed} and stage index {index} must not be negative")
    return np.random.default_rng([seed, index, tag])


def uniforms(keys: Any, stream: int, count: int, dtype: Any = np.float32) -> Any:
    """Uniform numbers `[batch, count]` in [0, 1): 24 random bits in float32, 53 in float64."""
    return _engine(keys).uniforms(keys, stream, count, _checked(stream, count, dtype))


def normals(keys: Any, stream: int, count: int, dtype: Any = np.float32) -> Any:
    """Standard normal numbers `[batch, count]`, by Box and Muller (1958) from one hash a pair.

    Columns j and j + (count + 1) // 2 share a hash. Both dtypes read the same 31-bit uniforms, so a float32 and a
    float64 device see the same noise to rounding. The tail ends at 6.7 standard deviations.
    """
    return _engine(keys).normals(keys, stream, count, _checked(stream, count, dtype))


def keys_like(keys: Keys, x: Any) -> Any:
    """The same keys where `x` lives: as they are for numpy, int64 on its device for torch."""
    if isinstance(x, np.ndarray):
        return keys
    return sys.modules["torch"].as_tensor(np.ascontiguousarray(keys).view(np.int64), device=x.device)


def _engine(keys: Any) -> Any:
    if isinstance(keys, int | np.ndarray | np.generic):
        return draws
    from hzo_hil.simulators import draws_torch

    return draws_torch


def _checked(stream: int, count: int, dtype: Any) -> str:
    if count < 0 or stream < 0:
        raise ValueError(f"stream {stream} and count {count} must not be negative")
    name = str(dtype).removeprefix("torch.") if "torch" in str(dtype) else np.dtype(dtype).name
    if name not in ("float32", "float64"):
        raise ValueError(f"noise is drawn in float32 or float64, not in {name}")
    return name
