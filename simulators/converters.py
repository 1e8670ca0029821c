"""Converters between numbers and volts: phase shifters driven in voltage, uniform input and output converters.

Knows nothing of what lies between them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators.mesh import TWO_PI
from hzo_hil.simulators.model import Port

Array = NDArray[Any]


def voltage_levels(bits: int, v_pi: float, v_max: float, period: float = TWO_PI) -> tuple[float, ...]:
    """Nominal phases (rad) a heater can take, ascending: phi = pi (V / v_pi)^2 on a uniform grid of volts 0..v_max.

    Codes beyond the first that reaches `period` are left out: they repeat phases at more power. The steps
    grow with the phase. Volts in, rad out; ValueError if v_max cannot reach one period.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"a phase DAC has 1 to 16 bits, not {bits}")
    if not (v_pi > 0 and v_max > 0):
        raise ValueError(f"v_pi {v_pi} and v_max {v_max} must be above 0 volts")
    phases = math.pi * (np.arange(2**bits) * (v_max / (2**bits - 1)) / v_pi) ** 2
    if phases[-1] < period:
        raise ValueError(
            f"v_max {v_max} V reaches {phases[-1]:.3g} rad of the {period:.3g} rad needed (v_pi {v_pi} V):"
            f" raise v_max to {v_pi * math.sqrt(period / math.pi):.3g} V or more"
        )
    return tuple(float(p) for p in phases[: int(np.searchsorted(phases, period)) + 1])


def uniform_levels(bits: int, low: float, high: float) -> tuple[float, ...]:
    """2^bits evenly spaced values from low to high."""
    if not 1 <= bits <= 16:
        raise ValueError(f"a converter with a table of levels has 1 to 16 bits, not {bits}")
    return tuple(float(v) for v in np.linspace(low, high, 2**bits))


def nearest_level(values: Array, levels: tuple[float, ...] | Array) -> Array:
    """Each value replaced by the nearest of the ascending `levels` (the lower one on a tie)."""
    grid = np.asarray(levels, dtype=np.float64)
    return np.asarray(grid[np.searchsorted((grid[1:] + grid[:-1]) / 2, values)])


def phase_setting(values: Array, levels: tuple[float, ...] | None) -> Array:
    """Phases (rad) the converter realises; values beyond its levels are first wrapped into one period."""
    phases = np.asarray(values, dtype=np.float64)
    top = TWO_PI if levels is None else levels[-1]
    phases = np.where((phases < 0) | (phases > top), np.mod(phases, TWO_PI), phases)
    return phases if levels is None else nearest_level(phases, levels)


def uniform_port(bits: int, low: float, high: float) -> Port:
    """Port with a uniform converter between low and high; 0 bits: none, only the ends are kept.

    Signed converters are symmetric with 2^bits - 1 levels (so that 0 is a level), others have 2^bits.
    """
    if bits == 0:
        return Port(low, high)
    if not 2 <= bits <= 24:
        raise ValueError(f"a converter has 2 to 24 bits (0: none), not {bits}")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"a converter of {bits} bits needs finite ends, not {low} to {high}: set its bound")
    if low not in (0.0, -high):
        raise ValueError(f"a converter runs from 0 or from -high, not from {low} to {high}")
    return Port(low, high, (high - low) / (2**bits - (1 if low == 0 else 2)))


def convert(values: Array, port: Port, own: bool = False) -> Array:
    """What the port's converter gives: nearest multiple of the step (mid-tread), saturating; NaN stays NaN.

    Works in place when `own` says that the caller gives the array away.
    """
    limited = math.isfinite(port.low) or math.isfinite(port.high)
    if port.step == 0 and not limited:
        return values
    target = values if own else None
    if limited:
        values = target = np.clip(values, port.low, port.high, out=target)
    if port.step == 0:
        return values
    values = np.multiply(values, values.dtype.type(1 / port.step), out=target)
    np.rint(values, out=values)
    np.multiply(values, values.dtype.type(port.step), out=values)
    return values
