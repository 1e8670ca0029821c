"""Random numbers that depend on a key and a column, never on batch size, order or threads.

Shot, programming and rounding noise are counter-based: the value in row i and column j is a hash of (keys[i],
stream, j). Fabrication draws, made once for each chip, come from numpy's generator under named tags. Knows
nothing of what the noise is used for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Keys = NDArray[np.uint64]
Array = NDArray[Any]

# Streams of one key: what is drawn under the same key never shares a number.
STREAM_DETECTOR = 1
STREAM_SHOT_PHASE = 2
STREAM_SHOT_PHASE_2 = 3
STREAM_PROGRAM = 4
STREAM_PROGRAM_2 = 5
STREAM_ROUNDING = 6
STREAM_WRITE = 7

# Tags of one chip's fabrication draws.
CHIP_COUPLERS = 101
CHIP_PHASE_BIAS = 102
CHIP_GAMMA = 103
CHIP_LOSS = 104

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BLOCK = 1 << 14  # hashes handled at once: a few arrays of this length stay in the cache of a core


def _mix(x: Keys, scratch: Keys) -> None:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014; constants of Stafford's variant 13), in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(x, np.uint64(shift), out=scratch)
        np.bitwise_xor(x, scratch, out=x)
        np.multiply(x, np.uint64(factor), out=x)
    np.right_shift(x, np.uint64(31), out=scratch)
    np.bitwise_xor(x, scratch, out=x)


def _mix_int(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def derive(keys: Array | int, *path: int) -> Keys:
    """New keys `[batch]` for a sub-purpose (a stage index, a repeat): distinct paths give unrelated keys."""
    out = np.atleast_1d(np.asarray(keys, dtype=np.uint64)).copy()
    scratch = np.empty_like(out)
    for step in (0, *path):
        out += np.uint64(_mix_int((step + 1) * _GOLDEN))
        _mix(out, scratch)
    return out


def chip_rng(seed: int, index: int, tag: int) -> np.random.Generator:
    """Generator of one fabrication draw: chip `seed`, stage `index`, a named `CHIP_` tag."""
    if seed < 0 or index < 0:
        raise ValueError(f"chip seed {seed} and stage index {index} must not be negative")
    return np.random.default_rng([seed, index, tag])


def _blocks(keys: Array | int, stream: int, count: int) -> Any:
    """Yield (row slice, hashes `[rows, count]`) over cache-sized blocks of rows; the hashes are scratch."""
    seeds = derive(keys, stream)
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    rows = max(1, _BLOCK // max(count, 1))
    work = np.empty((min(rows, len(seeds)), count), np.uint64)
    scratch = np.empty_like(work)
    for start in range(0, len(seeds), rows):
        part = seeds[start : start + rows]
        hashes = np.add(part[:, None], steps, out=work[: len(part)])
        _mix(hashes, scratch[: len(part)])
        yield slice(start, start + len(part)), hashes


def uniforms(keys: Array | int, stream: int, count: int, dtype: DTypeLike = np.float32) -> Array:
    """Uniform numbers `[batch, count]` in [0, 1): 24 random bits in float32, 53 in float64."""
    kind = _checked(stream, count, dtype)
    bits = 24 if kind == np.float32 else 53
    out = np.empty((np.size(keys), count), kind)
    for rows, hashes in _blocks(keys, stream, count):
        np.right_shift(hashes, np.uint64(64 - bits), out=hashes)
        np.multiply(hashes.view(np.int64), kind.type(2.0**-bits), out=out[rows], dtype=kind, casting="unsafe")
    return out


def normals(keys: Array | int, stream: int, count: int, dtype: DTypeLike = np.float32) -> Array:
    """Standard normal numbers `[batch, count]`, by Box and Muller (1958) from one hash a pair.

    Both dtypes read the same 31-bit uniforms, so a float32 and a float64 device see the same noise to
    rounding. The tail ends at 6.7 standard deviations.
    """
    kind = _checked(stream, count, dtype)
    pairs = (count + 1) // 2
    out = np.empty((np.size(keys), count), kind)
    radius: Array = np.empty((0, 0), kind)
    for rows, hashes in _blocks(keys, stream, pairs):
        n = len(hashes)
        if len(radius) < n:
            radius, angle, wave = (np.empty((n, pairs), kind) for _ in range(3))
        _box_muller(hashes, radius[:n], angle[:n])
        target = out[rows]
        np.cos(angle[:n], out=wave[:n])
        np.multiply(wave[:n], radius[:n], out=target[:, :pairs])
        np.sin(angle[:n], out=wave[:n])
        np.multiply(wave[:n, : count - pairs], radius[:n, : count - pairs], out=target[:, pairs:])
    return out


def _box_muller(hashes: Keys, radius: Array, angle: Array) -> None:
    """Fill radius sqrt(-2 ln u) and angle 2 pi v from the two halves of each hash; the hashes are used up."""
    # Signed 32-bit halves convert to floating point much faster than unsigned 64-bit integers do.
    halves = hashes.view(np.int32).reshape(*hashes.shape, 2)
    one = radius.dtype.type
    np.copyto(angle, halves[..., 0], casting="unsafe")
    angle *= one(np.pi * 2.0**-31)
    np.copyto(radius, halves[..., 1] & np.int32(0x7FFFFFFF), casting="unsafe")
    radius += one(0.5)
    radius *= one(2.0**-31)
    np.log(radius, out=radius)
    radius *= one(-2.0)
    np.sqrt(radius, out=radius)


def _checked(stream: int, count: int, dtype: DTypeLike) -> np.dtype[Any]:
    if count < 0 or stream < 0:
        raise ValueError(f"stream {stream} and count {count} must not be negative")
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"noise is drawn in float32 or float64, not in {kind}")
    return kind
