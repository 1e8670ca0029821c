"""The arithmetic of keyed draws on the CPU: the kernels in C where they are built, else numpy in cache-sized blocks.

Knows no streams by name.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import native

Keys = NDArray[np.uint64]
Array = NDArray[Any]

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BLOCK = 1 << 14  # hashes handled at once: a few arrays of this length stay in the cache of a core
_LEAST = 1 << 16  # numbers that are worth a thread of their own


def mix_int(value: int) -> int:
    """The finaliser of SplitMix64 on one integer."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def steps(path: tuple[int, ...]) -> list[int]:
    """What `derive` adds to a key before each mixing."""
    return [mix_int((step + 1) * GOLDEN) for step in (0, *path)]


def _mix(x: Keys, scratch: Keys) -> None:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014; constants of Stafford's variant 13), in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(x, np.uint64(shift), out=scratch)
        np.bitwise_xor(x, scratch, out=x)
        np.multiply(x, np.uint64(factor), out=x)
    np.right_shift(x, np.uint64(31), out=scratch)
    np.bitwise_xor(x, scratch, out=x)


def derive(keys: Array | int, *path: int) -> Keys:
    out = np.atleast_1d(np.asarray(keys, dtype=np.uint64)).copy()
    scratch = np.empty_like(out)
    for step in steps(path):
        out += np.uint64(step)
        _mix(out, scratch)
    return out


def uniforms(keys: Array | int, stream: int, count: int, kind: str) -> Array:
    if native.library() is not None:
        return _drawn("uniforms", keys, stream, count, kind)
    return uniforms_numpy(keys, stream, count, kind)


def normals(keys: Array | int, stream: int, count: int, kind: str) -> Array:
    if native.library() is not None:
        return _drawn("normals", keys, stream, count, kind)
    return normals_numpy(keys, stream, count, kind)


@cache
def _kernel(name: str, kind: str) -> Any:
    real, long, pointer = native.REALS[kind], ctypes.c_int64, ctypes.c_void_p
    scale = (real,) if name == "normals" else ()
    library = native.library()
    assert library is not None
    return library.kernel(f"{name}_{native.SUFFIXES[kind]}", pointer, long, ctypes.c_uint64, long, *scale, pointer)


def _drawn(name: str, keys: Array | int, stream: int, count: int, kind: str) -> Array:
    kernel = _kernel(name, kind)
    source = np.ascontiguousarray(np.atleast_1d(np.asarray(keys, dtype=np.uint64)))
    out = np.empty((len(source), count), kind)
    scale = (1.0,) if name == "normals" else ()

    def work(rows: slice) -> None:
        part, into = source[rows], out[rows]
        kernel(part.ctypes.data, len(part), stream, count, *scale, into.ctypes.data)

    native.over_rows(work, len(source), _LEAST // max(count, 1) + 1)
    return out


def _blocks(keys: Array | int, stream: int, count: int) -> Any:
    """Yield (row slice, hashes `[rows, count]`) over cache-sized blocks of rows; the hashes are scratch."""
    seeds = derive(keys, stream)
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    rows = max(1, _BLOCK // max(count, 1))
    work = np.empty((min(rows, len(seeds)), count), np.uint64)
    scratch = np.empty_like(work)
    for start in range(0, len(seeds), rows):
        part = seeds[start : start + rows]
        hashes = np.add(part[:, None], steps, out=work[: len(part)])
        _mix(hashes, scratch[: len(part)])
        yield slice(start, start + len(part)), hashes


def uniforms_numpy(keys: Array | int, stream: int, count: int, dtype: str) -> Array:
    kind = np.dtype(dtype)
    bits = 24 if kind == np.float32 else 53
    out = np.empty((np.size(keys), count), kind)
    for rows, hashes in _blocks(keys, stream, count):
        np.right_shift(hashes, np.uint64(64 - bits), out=hashes)
        np.multiply(hashes.view(np.int64), kind.type(2.0**-bits), out=out[rows], dtype=kind, casting="unsafe")
    return out


def normals_numpy(keys: Array | int, stream: int, count: int, dtype: str) -> Array:
    kind = np.dtype(dtype)
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
