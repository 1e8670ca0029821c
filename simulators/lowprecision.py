"""Casts to small number formats, with the result kept in the wider type it came in.

Nearest-even rounding agrees bit for bit with torch's casts, subnormals included. NaN stays NaN. Overflow: fp16, bf16
and fp8 e5m2 go to infinity, and fp8 e4m3fn, which has none, to NaN (torch before 2.12, ml_dtypes); `saturate` stops
at the largest finite value instead, infinities too (e4m3fn in torch from 2.12). Knows nothing of what is cast.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import noise
from hzo_hil.simulators.model import Port

Array = NDArray[Any]
Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Format:
    """Floating point: stored mantissa bits, exponent of the smallest normal, largest finite value, what is beyond."""

    mantissa: int
    low_exponent: int
    largest: float
    beyond: float


FORMATS = {
    "fp16": Format(10, -14, 65504.0, math.inf),
    "bf16": Format(7, -126, (2 - 2.0**-7) * 2.0**127, math.inf),
    "fp8_e4m3": Format(3, -6, 448.0, math.nan),
    "fp8_e5m2": Format(2, -14, 57344.0, math.inf),
}


def cast(
    values: Array,
    format: str,
    rounding: Rounding = "nearest",
    keys: Array | int | None = None,
    saturate: bool = False,
    stream: int = noise.STREAM_ROUNDING,
) -> Array:
    """Values rounded to `format`, in their own dtype (float32 or float64).

    Formats: "float" (nothing is done), "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", or "fixed<i>.<f>": a sign, i integer
    and f fractional bits, saturating. Stochastic rounding goes up with the probability of the part cut off, so it is
    unbiased inside the range; `keys` is one integer, or one for each row of a 2-d array.
    """
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"unknown rounding {rounding!r}: known are 'nearest' and 'stochastic'")
    if rounding == "stochastic" and keys is None:
        raise ValueError("stochastic rounding needs keys: they name its random numbers")
    if format == "float":
        return values
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        wide = np.asarray(values, dtype=np.float64)
    draw = None if rounding == "nearest" or keys is None else _draws(wide, keys, stream)
    port = fixed_port(format)
    with np.errstate(invalid="ignore", over="ignore"):
        out = _round(wide, port.step, draw) if port else _float_round(wide, _format(format), draw, saturate)
        if port:
            out = np.clip(out, port.low, port.high)
        return np.asarray(out.astype(values.dtype))


def check_format(format: str) -> None:
    """Raise ValueError for a format `cast` does not know."""
    if format != "float" and fixed_port(format) is None:
        _format(format)


def fixed_port(format: str) -> Port | None:
    """Range and step of "fixed<i>.<f>", symmetric; None if the name is not of that form."""
    match = re.fullmatch(r"fixed(\d{1,2})\.(\d{1,2})", format)
    if match is None:
        return None
    step, top = 2.0 ** -int(match[2]), 2.0 ** int(match[1])
    if top - step <= 0:
        raise ValueError(f"{format!r} has no bits left: give it an integer or a fractional bit")
    return Port(-(top - step), top - step, step)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"unknown number format {name!r}: known are float, {', '.join(FORMATS)}, fixed<i>.<f>")
    return FORMATS[name]


def _draws(wide: Array, keys: Array | int, stream: int) -> Array:
    """Uniform numbers in the shape of `wide`: a key for each row, or one key for all of it."""
    if np.size(keys) == 1:
        return noise.uniforms(np.asarray(keys), stream, wide.size, np.float64).reshape(wide.shape)
    if wide.ndim != 2 or np.size(keys) != len(wide):
        raise ValueError(f"{np.size(keys)} keys for values of shape {wide.shape}: give one key, or one for each row")
    return noise.uniforms(np.asarray(keys), stream, wide.shape[1], np.float64)


def _round(wide: Array, step: Any, draw: Array | None) -> Array:
    scaled = wide / step
    return np.asarray((np.rint(scaled) if draw is None else np.floor(scaled + draw)) * step)


def _float_round(wide: Array, kind: Format, draw: Array | None, saturate: bool) -> Array:
    """Round to the spacing of the format at each value; steps are powers of two, so scaling is exact."""
    _, exponent = np.frexp(wide)
    step = np.ldexp(1.0, np.maximum(exponent - 1, kind.low_exponent) - kind.mantissa)
    out = _round(wide, step, draw)
    beyond = kind.largest if saturate else kind.beyond
    return np.where(np.abs(out) > kind.largest, np.copysign(beyond, wide), out)
