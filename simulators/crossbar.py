"""Analog crossbars: voltages on rows, conductances at the crossings, currents out of columns.

Ohm multiplies and Kirchhoff adds (Xia and Yang, Nat. Mater. 18, 309, 2019). Knows resistive cells that are linear in
the voltage, and nothing of how they are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import constants

from hzo_hil.simulators import noise, wires
from hzo_hil.simulators.arrays import Held, namespace
from hzo_hil.simulators.cells import Cells
from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values
from hzo_hil.simulators.noise import CHIP_CELL_DRIFT, CHIP_STUCK


class CrossbarState(NamedTuple):
    """Conductances `[rows, columns]` S as written, the effective weights `[in, out]`, and what every squared input adds
    to the variance of an output `[in, out]`, with the part that it has without inputs `[out]`; both in output units."""

    conductances: Array
    weight: Held
    variance: Held | None
    dark_variance: Held | None


@dataclass(frozen=True)
class Crossbar(StageModel):
    """W x from conductances: `differential` with a pair of cells for each weight, in neighbouring columns (weights
    within +-`weight_bound`); otherwise with one (weights 0..`weight_bound`), less the current that cells of `g_min`
    would give.

    Inputs of +-`in_bound` (0..`in_bound` unless `signed_inputs`) are voltages of +-`read_voltage` V through a
    converter of `in_bits`; outputs pass one of `out_bits` over +-`out_bound` (None: none). Noise of the amplifiers:
    Johnson noise 4 k T B g of a column over `bandwidth` Hz (0: none) at `temperature` K, `amplifier_noise` A, and
    `noise_std` in output units.
    """

    in_features: int
    out_features: int
    differential: bool = True
    cells: Cells = Cells()
    weight_bound: float = 1.0
    in_bits: int | None = None
    in_bound: float = 1.0
    signed_inputs: bool = True
    out_bits: int | None = None
    out_bound: float = math.inf
    read_voltage: float = 0.2
    bandwidth: float = 0.0
    temperature: float = 300.0
    amplifier_noise: float = 0.0
    noise_std: float = 0.0
    seed: int = 0
    index: int = 0
    name: str = "crossbar"

    def __post_init__(self) -> None:
        if self.in_features < 1 or self.out_features < 1:
            raise ValueError(f"stage {self.name!r}: {self.in_features} to {self.out_features} values: at least 1 each")
        for name in ("weight_bound", "in_bound", "read_voltage"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"stage {self.name!r}: {name} must be finite and above 0, not {getattr(self, name)}")
        for name in ("bandwidth", "temperature", "amplifier_noise", "noise_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"stage {self.name!r}: {name} must be finite and not negative, not {getattr(self, name)}"
                )
        _ = self.input, self.output

    @property
    def in_width(self) -> int:
        return self.in_features

    @property
    def out_width(self) -> int:
        return self.out_features

    @property
    def linear(self) -> bool:
        return True

    @cached_property
    def input(self) -> Port:
        return uniform_port(self.in_bits, -self.in_bound if self.signed_inputs else 0.0, self.in_bound)

    @cached_property
    def output(self) -> Port:
        signed = self.differential or self.signed_inputs
        return uniform_port(self.out_bits, -self.out_bound if signed else 0.0, self.out_bound)

    @property
    def _lowest(self) -> float:
        return -self.weight_bound if self.differential else 0.0

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("weight", (self.out_features, self.in_features), self._lowest, self.weight_bound),)

    @property
    def per_siemens(self) -> float:
        """Weight of one siemens."""
        return self.weight_bound / (self.cells.g_max - self.cells.g_min)

    @property
    def per_ampere(self) -> float:
        """Output of one ampere."""
        return self.per_siemens * self.in_bound / self.read_voltage

    @property
    def read_noise(self) -> float:
        """With every cell at `g_min`."""
        columns = 2 if self.differential else 1
        return math.sqrt(float(self._dark(np.array(columns * self.in_features * self.cells.g_min))))

    def _dark(self, total: Array) -> Array:
        """Variance of an output without inputs, from the conductance `total` S that its amplifiers see."""
        johnson = 4 * constants.k * self.temperature * self.bandwidth * total
        return np.asarray((johnson + self.amplifier_noise**2) * self.per_ampere**2 + self.noise_std**2)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Weights of variance 1 / in_features (LeCun et al., 1998); their sizes where they have no sign."""
        weight = rng.standard_normal((self.out_features, self.in_features)) / math.sqrt(self.in_features)
        weight = weight if self.differential else np.abs(weight)
        return {"weight": np.clip(weight, self._lowest, self.weight_bound)}

    def program(self, values: Values, key: int) -> CrossbarState:
        check_values(self, values)
        g = self.conductances(np.asarray(values["weight"], dtype=np.float64))
        if self.cells.write_noise:
            draw = noise.normals(key, noise.STREAM_WRITE, g.size, np.float64).reshape(g.shape)
            g = np.maximum(g + self.cells.write_std(g) * draw, 0)
        if self.cells.stuck:
            chance = noise.chip_rng(self.seed, self.index, CHIP_STUCK).uniform(size=g.shape)
            g = np.where(chance < self.cells.stuck, self.cells.g_min, g)
        return self._state(g, g)

    def conductances(self, weight: Array) -> Array:
        """What is asked of the cells, `[rows, columns]` S; a pair's positive cell comes first."""
        share = np.clip(weight, self._lowest, self.weight_bound).T / self.weight_bound
        sides = [np.maximum(share, 0), np.maximum(-share, 0)] if self.differential else [share]
        columns = np.stack(sides, axis=-1).reshape(self.in_features, -1)
        return self.cells.g_min + (self.cells.g_max - self.cells.g_min) * columns

    @property
    def drifts(self) -> bool:
        return self.cells.drift.nu > 0 or self.cells.drift.nu_std > 0

    @property
    def drifts_from_write(self) -> bool:
        """`at` counts seconds from the last write, not from the start."""
        return True

    def at(self, state: CrossbarState, seconds: float) -> CrossbarState:
        if not self.drifts:
            return state
        left = self.cells.drift.values(self.seed, self.index, CHIP_CELL_DRIFT, state.conductances.size, seconds)
        return self._state(state.conductances, state.conductances * left.reshape(state.conductances.shape))

    def _state(self, written: Array, now: Array) -> CrossbarState:
        """What the inputs meet when cells `written` have become `now`."""
        met = now
        if self.cells.wire_resistance:
            solve = wires.exact if self.cells.wire_model == "exact" else wires.first_order
            met = solve(now, self.cells.wire_resistance)
        pairs = met.reshape(self.in_features, self.out_features, -1)
        weight = pairs[..., 0] - (pairs[..., 1] if self.differential else self.cells.g_min)
        cells = now.reshape(pairs.shape)
        variance = (self.cells.read_noise * self.per_siemens) ** 2 * (cells**2).sum(axis=-1)
        dark = self._dark(cells.sum(axis=(0, -1)))
        return CrossbarState(
            written,
            Held(weight * self.per_siemens),
            Held(variance) if variance.any() else None,
            Held(dark) if dark.any() else None,
        )

    def run(self, state: CrossbarState, inputs: Any, keys: Any) -> Any:
        values = convert(inputs, self.input)
        outputs = values @ state.weight.like(values)
        variance: Any = 0
        if state.variance is not None:
            variance = (values * values) @ state.variance.like(values)
        if state.dark_variance is not None:
            variance = variance + state.dark_variance.like(values)
        if not isinstance(variance, int):
            draw = noise.normals(keys, noise.STREAM_DETECTOR, self.out_features, values.dtype)
            outputs += draw * namespace(values).sqrt(variance)
        return convert(outputs, self.output, own=True)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        return inputs @ values["weight"].T
