"""The low-precision emulator as a stage: an analog matrix between converters, with read and write noise.

Order: input converter, matrix (in a number format), bias, read noise, output converter, digital activation.
The scheme and its names follow the crossbar model of aihwkit (Rasch et al., arXiv 2104.02184).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import noise
from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.elementwise import CURVES, check_kind
from hzo_hil.simulators.lowprecision import Rounding, cast, check_format, fixed_port
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values

_MAX_LEVELS = 4096  # longer tables of weight levels are not worth declaring


class EmulatedState(NamedTuple):
    """Transposed weight and bias as realised, for each precision; bias None where it has none."""

    weight: dict[Any, Array]
    bias: dict[Any, Array] | None


@dataclass(frozen=True)
class EmulatedLinear(StageModel):
    """activation(W x + b) with the defects of an analog accelerator; all 0 (as by default): none.

    `in_bits`, `in_bound`: input converter over +-in_bound; `out_bits`, `out_bound`: output converter on the sum, before
    the activation; `read_noise_std`: noise on the sum, in its units; `write_noise`: noise of each write, relative to
    `weight_bound` (to the largest weight where that is infinite); `weight_format`, `accumulate_format`:
    names of `lowprecision.cast`; the product is rounded once, at its end; all formats saturate. `signed=False`: light
    or conductances, so that inputs, weights and what is read are 0 or positive.
    """

    in_features: int
    out_features: int
    activation: str = "none"
    bias: bool = True
    in_bits: int = 0
    in_bound: float = math.inf
    out_bits: int = 0
    out_bound: float = math.inf
    read_noise_std: float = 0.0
    write_noise: float = 0.0
    weight_bound: float = math.inf
    weight_format: str = "float"
    accumulate_format: str = "float"
    rounding: Rounding = "nearest"
    signed: bool = True
    name: str = "linear"

    def __post_init__(self) -> None:
        if self.activation != "none":
            check_kind(self.activation, "activation")
        if self.in_features < 1 or self.out_features < 1:
            raise ValueError(f"stage {self.name!r}: {self.in_features} to {self.out_features} values: at least 1 each")
        if not (self.read_noise_std >= 0 and self.write_noise >= 0 and self.weight_bound > 0):
            raise ValueError(f"stage {self.name!r}: noise must not be negative and weight_bound must be above 0")
        if not self.signed and self.bias:
            raise ValueError(f"stage {self.name!r}: an unsigned stage has no bias; say bias: false")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"unknown rounding {self.rounding!r}: known are 'nearest' and 'stochastic'")
        check_format(self.weight_format)
        check_format(self.accumulate_format)
        _ = self.input, self._converter

    @property
    def in_width(self) -> int:
        return self.in_features

    @property
    def out_width(self) -> int:
        return self.out_features

    @property
    def linear(self) -> bool:
        return self.activation == "none"

    @property
    def read_noise(self) -> float:
        return self.read_noise_std

    @cached_property
    def input(self) -> Port:
        return uniform_port(self.in_bits, -self.in_bound if self.signed else 0.0, self.in_bound)

    @cached_property
    def _converter(self) -> Port:
        return uniform_port(self.out_bits, -self.out_bound if self.signed else 0.0, self.out_bound)

    @property
    def output(self) -> Port:
        """The converter as seen from outside: behind an activation its ends and steps are no longer visible."""
        return self._converter if self.linear else Port()

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        shape = (self.out_features, self.in_features)
        weight = Parameter("weight", shape, self._lowest, self.weight_bound, levels=self._levels)
        return (weight, Parameter("bias", (self.out_features,))) if self.bias else (weight,)

    @property
    def _lowest(self) -> float:
        return -self.weight_bound if self.signed else 0.0

    @property
    def _levels(self) -> tuple[float, ...] | None:
        """Every weight a fixed-point memory can hold, where writing rounds to the nearest of few."""
        port = fixed_port(self.weight_format)
        if port is None or self.rounding == "stochastic" or 2 * port.high / port.step >= _MAX_LEVELS:
            return None
        top = round(port.high / port.step)
        levels = (float(k * port.step) for k in range(-top, top + 1))
        return tuple(w for w in levels if self._lowest <= w <= self.weight_bound)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Weights of variance 1 / in_features (LeCun et al., 1998), bias 0; their sizes where they are not signed."""
        weight = rng.standard_normal((self.out_features, self.in_features)) / math.sqrt(self.in_features)
        values = {"weight": np.clip(weight if self.signed else np.abs(weight), self._lowest, self.weight_bound)}
        return values | ({"bias": np.zeros(self.out_features)} if self.bias else {})

    def program(self, values: Values, key: int) -> EmulatedState:
        check_values(self, values)
        weight = np.clip(np.asarray(values["weight"], dtype=np.float64), self._lowest, self.weight_bound)
        weight = cast(weight, self.weight_format, self.rounding, key, saturate=True)
        if self.write_noise:
            scale = self.weight_bound if math.isfinite(self.weight_bound) else float(np.abs(weight).max())
            draw = noise.normals(key, noise.STREAM_WRITE, weight.size, np.float64)
            weight = weight + self.write_noise * scale * draw.reshape(weight.shape)
        kinds = (np.dtype(np.float32), np.dtype(np.float64))
        biases = {k: np.asarray(values["bias"], dtype=k) for k in kinds} if self.bias else None
        return EmulatedState({k: np.ascontiguousarray(weight.T.astype(k)) for k in kinds}, biases)

    def run(self, state: EmulatedState, inputs: Array, keys: NDArray[np.uint64]) -> Array:
        sums = convert(inputs, self.input) @ state.weight[inputs.dtype]
        if self.accumulate_format != "float":
            sums = cast(sums, self.accumulate_format, self.rounding, keys, saturate=True)
        if state.bias is not None:
            sums += state.bias[inputs.dtype]
        if self.read_noise_std:
            draw = noise.normals(keys, noise.STREAM_DETECTOR, sums.shape[1], sums.dtype)
            draw *= sums.dtype.type(self.read_noise_std)
            sums += draw
        sums = convert(sums, self._converter, own=True)
        return self._activate(np, sums)

    def _activate(self, xp: Any, sums: Any) -> Any:
        return sums if self.activation == "none" else CURVES[self.activation](xp, sums)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        sums = inputs @ values["weight"].T
        return self._activate(xp, sums + values["bias"] if self.bias else sums)
