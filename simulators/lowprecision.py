"""Casts to small number formats, with the result kept in the wider type it came in.

Nearest rounding (ties to even) gives the bits of torch's casts from float32, subnormals included, and of ml_dtypes'.
float64 is rounded once, as numpy and IEEE 754 do it; torch goes by way of float32 and so at times rounds twice. NaN
stays NaN. Overflow: fp16, bf16 and fp8 e5m2 go to infinity, and fp8 e4m3fn, which has none, to NaN (torch before
2.12, ml_dtypes); `saturate` stops at the largest finite value instead, infinities too (e4m3fn in torch from 2.12).
Knows nothing of what is cast.
"""

from __future__ import annotations

import ctypes
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import native, noise
from hzo_hil.simulators.arrays import is_numpy, namespace, precision
from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.model import Port

Array = NDArray[Any]
Rounding = Literal["nearest", "stochastic"]
_BLOCK = 1 << 14  # values that numpy handles at once: its intermediate arrays stay in the cache
_LEAST = 1 << 17  # values that are worth a thread of their own


@dataclass(frozen=True)
class Format:
    """Floating point: stored mantissa bits, exponent of the smallest normal, largest finite value, what is beyond."""

    mantissa: int
    low_exponent: int
    largest: float
    beyond: float
    high_exponent: int = 1023


FORMATS = {
    "fp16": Format(10, -14, 65504.0, math.inf),
    "bf16": Format(7, -126, (2 - 2.0**-7) * 2.0**127, math.inf),
    "fp8_e4m3": Format(3, -6, 448.0, math.nan),
    "fp8_e5m2": Format(2, -14, 57344.0, math.inf),
}
"""By name; "fp8_e4m3" is e4m3fn (Micikevicius et al., arXiv 2209.05433): one NaN, no infinity."""


def cast(
    values: Any,
    format: str,
    rounding: Rounding = "nearest",
    keys: Any = None,
    saturate: bool = False,
    stream: int = noise.STREAM_ROUNDING,
    own: bool = False,
) -> Any:
    """Values rounded to `format`, in their own dtype (float32 or float64); numpy arrays or torch tensors.

    Formats: "float" (nothing is done), "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", or "fixed<i>.<f>": a sign, i integer
    and f fractional bits, saturating. Stochastic rounding goes up with the probability of the part cut off, so it is
    unbiased inside the range; `keys` is one integer, or one for each row of a 2-d array (an int64 tensor for tensors).
    `own`: the caller gives a numpy array away, and gets it back changed.
    """
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"unknown rounding {rounding!r}: known are 'nearest' and 'stochastic'")
    if rounding == "stochastic" and keys is None:
        raise ValueError("stochastic rounding needs keys: they name its random numbers")
    if format == "float":
        return values
    if precision(values) not in native.REALS:
        raise ValueError(f"casts take float32 or float64, not {values.dtype}")
    port, kind = fixed_port(format), _resolved(format, saturate)
    if rounding == "stochastic":
        return _stochastic(values, kind, keys, stream, own)
    if port is not None:
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            return convert(values, port, own)
    if not is_numpy(values):
        return _nearest_torch(values, format, kind)
    if native.library() is not None:
        return _nearest_native(values, kind, own)
    return _nearest_numpy(values, kind)


def check_format(format: str) -> None:
    """Raise ValueError for a format `cast` does not know."""
    if format != "float":
        _resolved(format, True)


def fixed_port(format: str) -> Port | None:
    """Range and step of "fixed<i>.<f>", symmetric; None if the name is not of that form."""
    match = re.fullmatch(r"fixed(\d{1,2})\.(\d{1,2})", format)
    if match is None:
        return None
    step, top = 2.0 ** -int(match[2]), 2.0 ** int(match[1])
    if top - step <= 0:
        raise ValueError(f"{format!r} has no bits left: give it an integer or a fractional bit")
    return Port(-(top - step), top - step, step)


@cache
def _resolved(name: str, saturate: bool) -> Format:
    """What a name stands for. Fixed point has one spacing at all exponents, and always saturates."""
    port = fixed_port(name)
    if port is not None:
        exponent = round(math.log2(port.step))
        return Format(0, exponent, port.high, port.high, exponent)
    if name not in FORMATS:
        raise ValueError(f"unknown number format {name!r}: known are float, {', '.join(FORMATS)}, fixed<i>.<f>")
    found = FORMATS[name]
    return Format(found.mantissa, found.low_exponent, found.largest, found.largest if saturate else found.beyond)


# --- nearest ------------------------------------------------------------------------------------------------------


class _CFormat(ctypes.Structure):
    _fields_ = (
        ("mantissa", ctypes.c_int64),
        ("low_exponent", ctypes.c_int64),
        ("high_exponent", ctypes.c_int64),
        ("largest", ctypes.c_double),
        ("beyond", ctypes.c_double),
    )


@cache
def _c_format(kind: Format) -> Any:
    return ctypes.byref(_CFormat(kind.mantissa, kind.low_exponent, kind.high_exponent, kind.largest, kind.beyond))


@cache
def _kernel(name: str, kind: str, *types: Any) -> Any:
    library = native.library()
    assert library is not None
    return library.kernel(f"{name}_{native.SUFFIXES[kind]}", *types, ctypes.c_void_p)


def _nearest_native(values: Array, kind: Format, own: bool) -> Array:
    values = np.ascontiguousarray(values)
    out = values if own else np.empty_like(values)
    pointer, form = ctypes.c_void_p, _c_format(kind)
    kernel = _kernel("nearest", values.dtype.name, pointer, ctypes.c_int64, pointer)
    start, into, width = values.ctypes.data, out.ctypes.data, values.itemsize

    def work(part: slice) -> None:
        kernel(start + part.start * width, part.stop - part.start, form, into + part.start * width)

    native.over_rows(work, values.size, _LEAST)
    return out


def _nearest_numpy(values: Array, kind: Format) -> Array:
    flat, out = values.ravel(), np.empty(values.size, values.dtype)
    way = _wide_block if values.dtype == np.float64 else _brain_block if kind.low_exponent == -126 else _small_block
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, values.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            out[part] = way(flat[part], kind)
    return out.reshape(values.shape)


def _wide_block(x: Array, kind: Format) -> Array:
    return np.asarray(_rounded(x, kind, None))


def _small_block(x: Array, kind: Format) -> Array:
    """float32: adding a number whose last place is the spacing, and taking it away again, does the rounding."""
    size = np.minimum(np.abs(x), np.float32(kind.largest if kind.beyond == kind.largest else 2 * kind.largest))
    magic = size.view(np.uint32) & np.uint32(0x7F800000)
    np.maximum(magic, np.uint32((127 + kind.low_exponent) << 23), out=magic)
    magic += np.uint32((23 - kind.mantissa) << 23)
    magic |= np.uint32(0x00400000)
    size += magic.view(np.float32)
    size -= magic.view(np.float32)
    if kind.beyond != kind.largest:
        size[size > kind.largest] = kind.beyond
    signs = size.view(np.uint32)  # of positive numbers and NaN
    signs |= x.view(np.uint32) & np.uint32(0x80000000)
    return size


def _brain_block(x: Array, kind: Format) -> Array:
    """bf16 is the upper half of a float32."""
    bits = x.view(np.uint32)
    found = bits >> np.uint32(16)
    found &= np.uint32(1)
    found += np.uint32(0x7FFF)
    found += bits
    found &= np.uint32(0xFFFF0000)
    size = found.view(np.float32)
    if kind.beyond == kind.largest:
        np.clip(size, -kind.largest, kind.largest, out=size)
    size[np.isnan(x)] = math.nan
    return size


def _nearest_torch(values: Any, name: str, kind: Format) -> Any:
    """torch's own cast from float32; e4m3fn, whose overflow depends on torch's version, is given its NaN before it."""
    torch = namespace(values)
    if values.dtype != torch.float32:
        return _rounded(values, kind, None)
    if kind.beyond == kind.largest:
        values = values.clamp(-kind.largest, kind.largest)
    elif math.isnan(kind.beyond):
        half_step = 2.0 ** (math.frexp(kind.largest)[1] - 2 - kind.mantissa)
        values = values.masked_fill(values.abs() > kind.largest + half_step, math.nan)
    names = {"fp16": "float16", "bf16": "bfloat16", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    return values.to(getattr(torch, names[name])).to(torch.float32)


# --- stochastic ---------------------------------------------------------------------------------------------------


def _stochastic(values: Any, kind: Format, keys: Any, stream: int, own: bool) -> Any:
    """A key for each row, or one key for all values, whose numbers are then drawn as those of one long row."""
    one = keys if isinstance(keys, int) else None if keys.shape not in ((), (1,)) else keys.reshape(1)
    if one is None and (values.ndim != 2 or len(keys) != len(values)):
        raise ValueError(
            f"{len(keys)} keys for values of shape {tuple(values.shape)}: give one key, or one for each row"
        )
    rows = values if one is None else values.reshape(1, -1)
    keys = keys if one is None else one
    if not is_numpy(values):
        draw = noise.uniforms(_tensor_key(keys, values), stream, rows.shape[1], namespace(values).float64)
        return _rounded(rows.double(), kind, draw).to(values.dtype).reshape(values.shape)
    keys = np.atleast_1d(np.asarray(keys, dtype=np.uint64))
    found = (_stochastic_numpy if native.library() is None else _stochastic_native)(rows, kind, keys, stream, own)
    return found.reshape(values.shape)


def _tensor_key(keys: Any, values: Any) -> Any:
    if not isinstance(keys, int):
        return keys
    return noise.keys_like(np.array([keys % 2**64], np.uint64), values)


def _stochastic_native(rows: Array, kind: Format, keys: Array, stream: int, own: bool) -> Array:
    out = np.ascontiguousarray(rows) if own else rows.copy(order="C")
    keys = np.ascontiguousarray(keys)
    pointer, long, form = ctypes.c_void_p, ctypes.c_int64, _c_format(kind)
    kernel = _kernel("stochastic", rows.dtype.name, pointer, pointer, long, long, ctypes.c_uint64)
    width = rows.shape[1]
    start, first = out.ctypes.data, keys.ctypes.data

    def work(part: slice) -> None:
        row = start + part.start * width * out.itemsize
        kernel(row, first + 8 * part.start, part.stop - part.start, width, stream, form)

    native.over_rows(work, len(rows), _LEAST // max(width, 1) + 1)
    return out


def _stochastic_numpy(rows: Array, kind: Format, keys: Array, stream: int, own: bool) -> Array:
    out = np.empty_like(rows)
    some = max(1, _BLOCK // max(rows.shape[1], 1))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(rows), some):
            part = slice(start, start + some)
            draw = noise.uniforms(keys[part], stream, rows.shape[1], np.float64)
            out[part] = _rounded(rows[part].astype(np.float64), kind, draw)
    return out


# --- both, for numpy and torch ------------------------------------------------------------------------------------


def _rounded(wide: Any, kind: Format, draw: Any) -> Any:
    """float64 `wide` rounded to the spacing of the format at each value, which is a power of two: scaling is exact."""
    xp = namespace(wide)
    low, high = ((1023 + e) << 52 for e in (kind.low_exponent, kind.high_exponent))
    exponent = xp.clip(wide.view(xp.int64) & 0x7FF0000000000000, low, high) - (kind.mantissa << 52)
    step, inverse = exponent.view(xp.float64), (0x7FE0000000000000 - exponent).view(xp.float64)
    scaled = wide * inverse
    out = (xp.round(scaled) if draw is None else xp.floor(scaled + draw)) * step
    beyond = xp.copysign(xp.full_like(out, kind.beyond), wide)
    return xp.where(xp.abs(out) > kind.largest, beyond, out)
