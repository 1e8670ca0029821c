"""Converters between numbers and volts: phase shifters driven in voltage, uniform input and output converters.

Knows nothing of what lies between them.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import native
from hzo_hil.simulators.arrays import is_numpy
from hzo_hil.simulators.mesh import TWO_PI
from hzo_hil.simulators.model import Port

Array = NDArray[Any]
_LEAST = 1 << 18  # values that are worth a thread of their own
NO_CONVERTER = ". Leave it out (null) where there is no converter"


# --- phases -------------------------------------------------------------------------------------------------------


def voltage_levels(
    bits: int, v_pi: float, v_max: float, period: float = TWO_PI, partial: bool = False
) -> tuple[float, ...]:
    """Nominal phases (rad) a heater can take, ascending: phi = pi (V / v_pi)^2 on a uniform grid of volts 0..v_max.

    Codes beyond the first that reaches `period` are left out: they repeat phases at more power. The steps
    grow with the phase. Volts in, rad out. ValueError if v_max cannot reach one period, unless `partial` says that
    this is known: `reach` then tells what it costs.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"a phase DAC has 1 to 16 bits, not {bits}{NO_CONVERTER}")
    if not (v_pi > 0 and v_max > 0):
        raise ValueError(f"v_pi {v_pi} and v_max {v_max} must be above 0 volts")
    phases = math.pi * (np.arange(2**bits) * (v_max / (2**bits - 1)) / v_pi) ** 2
    if phases[-1] < period and not partial:
        raise ValueError(
            f"v_max {v_max} V reaches {phases[-1]:.3g} rad of the {period:.3g} rad needed (v_pi {v_pi} V):"
            f" raise v_max to {v_pi * math.sqrt(period / math.pi):.3g} V or more"
        )
    return tuple(float(p) for p in phases[: int(np.searchsorted(phases, period)) + 1])


def uniform_levels(bits: int, low: float, high: float) -> tuple[float, ...]:
    """2^bits evenly spaced values from low to high."""
    if not 1 <= bits <= 16:
        raise ValueError(f"a converter with a table of levels has 1 to 16 bits, not {bits}{NO_CONVERTER}")
    return tuple(float(v) for v in np.linspace(low, high, 2**bits))


def nearest_level(values: Array, levels: tuple[float, ...] | Array) -> Array:
    """Each value replaced by the nearest of the ascending `levels` (the lower one on a tie)."""
    grid = np.asarray(levels, dtype=np.float64)
    return np.asarray(grid[np.searchsorted((grid[1:] + grid[:-1]) / 2, values)])


def phase_setting(values: Array, levels: tuple[float, ...] | None) -> Array:
    """Phases (rad) the converter realises; values beyond its levels are first wrapped into one period.

    Where the levels end before 2 pi, a phase beyond them goes to the nearer end of the circle: the last level, or 0.
    """
    phases = np.asarray(values, dtype=np.float64)
    top = TWO_PI if levels is None else levels[-1]
    phases = np.where((phases < 0) | (phases > top), np.mod(phases, TWO_PI), phases)
    if levels is None:
        return phases
    if top < TWO_PI:
        phases = np.where(phases > (top + TWO_PI) / 2, 0.0, phases)
    return nearest_level(phases, levels)


@dataclass(frozen=True)
class Reach:
    """How many of `count` phases lie `outside` a converter's levels, and what that costs (rad, over those phases)."""

    count: int
    outside: int
    top: float
    worst: float
    rms: float

    def __str__(self) -> str:
        if not self.outside:
            return f"all {self.count} phases lie within the converter's 0 to {self.top:.3g} rad"
        return (
            f"{self.outside} of {self.count} phases lie outside the converter's 0 to {self.top:.3g} rad: they are off"
            f" by {self.rms:.3g} rad (rms) and by {self.worst:.3g} rad at worst; raise v_max"
        )


def reach(values: Array, levels: tuple[float, ...] | None) -> Reach:
    """Which phases (rad, any shape) the converter cannot come near to: beyond its last level and short of 2 pi."""
    phases = np.mod(np.asarray(values, dtype=np.float64), TWO_PI).ravel()
    top = TWO_PI if levels is None else levels[-1]
    beyond = phases[phases > top]
    cost = np.minimum(beyond - top, TWO_PI - beyond)
    worst, rms = (float(cost.max()), float(np.sqrt(np.mean(cost**2)))) if cost.size else (0.0, 0.0)
    return Reach(phases.size, beyond.size, top, worst, rms)


# --- uniform converters -------------------------------------------------------------------------------------------


def uniform_port(bits: int | None, low: float, high: float) -> Port:
    """Port with a uniform converter between low and high; None: no converter, only the ends are kept.

    Signed converters are symmetric with 2^bits - 1 levels (so that 0 is a level), others have 2^bits.
    """
    if bits is None:
        return Port(low, high)
    if not 2 <= bits <= 24:
        raise ValueError(f"a converter has 2 to 24 bits, not {bits}{NO_CONVERTER}")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"a converter of {bits} bits needs finite ends, not {low} to {high}: set its bound")
    if low not in (0.0, -high):
        raise ValueError(f"a converter runs from 0 or from -high, not from {low} to {high}")
    return Port(low, high, (high - low) / (2**bits - (1 if low == 0 else 2)))


def convert(values: Any, port: Port, own: bool = False) -> Any:
    """What the port's converter gives: nearest multiple of the step (mid-tread), saturating; NaN stays NaN.

    Ties go to the even code. Takes numpy arrays and torch tensors of any shape. numpy arrays are worked on in place
    when `own` says that the caller gives them away.
    """
    if port.step == 0 and not (math.isfinite(port.low) or math.isfinite(port.high)):
        return values
    if not is_numpy(values):
        return _convert_torch(values, port)
    if native.library() is None or values.dtype.name not in native.REALS:
        return _convert_numpy(values, port, own)
    return _convert_native(values, port, own)


def _convert_native(values: Array, port: Port, own: bool) -> Array:
    kind = values.dtype.name
    if not values.flags.c_contiguous:
        values, own = np.ascontiguousarray(values), True
    out = values if own else np.empty_like(values)
    numbers, kernel = port_numbers(port, kind), _kernel(kind)
    start, into, size, width = values.ctypes.data, out.ctypes.data, values.size, values.itemsize

    def work(part: slice) -> None:
        kernel(start + part.start * width, part.stop - part.start, numbers.ctypes.data, into + part.start * width)

    native.over_rows(work, size, _LEAST)
    return out


@cache
def _kernel(kind: str) -> Any:
    library = native.library()
    assert library is not None
    pointer = ctypes.c_void_p
    return library.kernel(f"convert_{native.SUFFIXES[kind]}", pointer, ctypes.c_int64, pointer, pointer)


@cache
def port_numbers(port: Port, kind: str) -> Array:
    """low, high, 1 / step and step, as the kernels take them; 0 in both last ones without a step."""
    return np.array([port.low, port.high, 1 / port.step if port.step else 0.0, port.step], kind)


def _convert_numpy(values: Array, port: Port, own: bool) -> Array:
    low, high, inverse, step = port_numbers(port, values.dtype.name)
    out = np.clip(values, low, high, out=values if own else None)
    if port.step:
        np.multiply(out, inverse, out=out)
        np.rint(out, out=out)
        np.multiply(out, step, out=out)
    return out


def _convert_torch(values: Any, port: Port) -> Any:
    low, high, inverse, step = (float(number) for number in port_numbers(port, str(values.dtype).split(".")[-1]))
    values = values.clamp(low, high)
    return (values * inverse).round() * step if port.step else values
