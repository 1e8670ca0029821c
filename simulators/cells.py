"""The resistive cells of a crossbar and the wires between them, as numbers in SI units. Knows nothing of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hzo_hil.simulators.drift import PowerLaw
from hzo_hil.simulators.model import Array


@dataclass(frozen=True)
class Cells:
    """The cells of a crossbar and their wires; every imperfection of 0 is off.

    `g_min`, `g_max` S: lowest and highest conductance. `write_noise`: standard deviation of a write, redrawn at each,
    as a polynomial c0 + c1 (g / g_max) + c2 (g / g_max)^2 + ... relative to `g_max`; below 0 it counts as 0, and no
    conductance falls below 0. `stuck`: part of the cells that stay at `g_min` (chip). `read_noise`: relative standard
    deviation of a cell, redrawn for every row. `drift`: g(t) = g(0) (1 + t / t0)^-nu, the exponents fixed in
    fabrication. `wire_resistance` ohm of a segment between cells; `wire_model` "first_order", or "exact" for small
    arrays.
    """

    g_min: float = 0.0
    g_max: float = 25e-6
    write_noise: tuple[float, ...] = ()
    stuck: float = 0.0
    read_noise: float = 0.0
    drift: PowerLaw = PowerLaw()
    wire_resistance: float = 0.0
    wire_model: Literal["first_order", "exact"] = "first_order"

    def __post_init__(self) -> None:
        if not 0 <= self.g_min < self.g_max < math.inf:
            raise ValueError(f"crossbar: 0 <= g_min < g_max in siemens is needed, not {self.g_min} and {self.g_max}")
        if not 0 <= self.stuck <= 1:
            raise ValueError(f"crossbar: stuck must be a part of the cells from 0 to 1, not {self.stuck}")
        for name in ("read_noise", "wire_resistance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"crossbar: {name} must be finite and not negative, not {getattr(self, name)}")
        if not all(math.isfinite(c) for c in self.write_noise):
            raise ValueError(f"crossbar: write_noise holds coefficients, not {self.write_noise}")
        if self.wire_model not in ("first_order", "exact"):
            raise ValueError(f"unknown wire_model {self.wire_model!r}: known are 'first_order' and 'exact'")

    def write_std(self, conductances: Array) -> Array:
        relative = np.polynomial.polynomial.polyval(conductances / self.g_max, self.write_noise or (0.0,))
        return np.asarray(self.g_max * np.maximum(relative, 0))
