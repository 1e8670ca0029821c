"""The low-precision emulator as a stage: a matrix between converters, in number formats, with read and write noise.

Order: input converter, input format, matrix (in a format), accumulator (in a format), bias, read noise, output
converter, digital activation. The scheme and its names follow the crossbar model of aihwkit (Rasch et al., arXiv
2104.02184). Knows nothing of circuits: noise is given as a standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import Held, namespace
from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.curves import CURVES, check_kind
from hzo_hil.simulators.ends import ReadOut
from hzo_hil.simulators.lowprecision import Rounding, cast, check_format, fixed_port
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values

_MAX_LEVELS = 4096  # longer tables of weight levels are not worth declaring


class EmulatedState(NamedTuple):
    """Transposed weight and bias as realised; bias None where it has none."""

    weight: Held
    bias: Held | None


@dataclass(frozen=True)
class EmulatedLinear(StageModel):
    """activation(W x + b) with the defects of an analog accelerator; all 0 (as by default): none.

    `in_bits`, `in_bound`: input converter over +-in_bound; `out_bits`, `out_bound`: output converter on the sum, before
    the activation; `read_noise_std`: noise on the sum, in its units; `write_noise`: noise of each write, relative to
    `weight_bound` (to the largest weight where that is infinite). `signed=False`: light or conductances, so that
    inputs, weights and what is read are 0 or positive. Of a device, fixed (`seed` and `index` name it):
    `weight_mismatch` and `slope_mismatch`, relative standard deviations of the weights and of the slope of each
    activation; `input_noise_std`: noise on every driven input of every shot, in its units.

    `in_format`, `weight_format`, `accumulate_format`: names of `lowprecision.cast`, all rounded as `rounding` says.
    `accumulate_every` k: after every k products, themselves exact, the sum so far is rounded to the
    accumulator's format (1: each product is added in the format; 0: the whole sum is rounded once, at its end).
    `saturate`: what exceeds a format stops at its largest value; else it becomes infinity or NaN, as the format has it.
    """

    in_features: int
    out_features: int
    activation: str = "none"
    bias: bool = True
    in_bits: int | None = None
    in_bound: float = math.inf
    out_bits: int | None = None
    out_bound: float = math.inf
    read_noise_std: float = 0.0
    write_noise: float = 0.0
    weight_bound: float = math.inf
    weight_format: str = "float"
    accumulate_format: str = "float"
    rounding: Rounding = "nearest"
    signed: bool = True
    name: str = "linear"
    in_format: str = "float"
    accumulate_every: int = 0
    saturate: bool = True
    activation_options: Mapping[str, float] = field(default_factory=dict, hash=False)
    weight_mismatch: float = 0.0
    slope_mismatch: float = 0.0
    input_noise_std: float = 0.0
    seed: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        if self.activation != "none":
            check_kind(self.activation, "activation", self.activation_options)
        if self.in_features < 1 or self.out_features < 1:
            raise ValueError(f"stage {self.name!r}: {self.in_features} to {self.out_features} values: at least 1 each")
        wrong = (self.read_noise_std, self.write_noise, self.input_noise_std, self.weight_mismatch, self.slope_mismatch)
        if not (min(wrong) >= 0 and self.weight_bound > 0):
            raise ValueError(
                f"stage {self.name!r}: noise and mismatch must not be negative and weight_bound must be above 0"
            )
        if not self.signed and self.bias:
            raise ValueError(f"stage {self.name!r}: an unsigned stage has no bias; say bias: false")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"unknown rounding {self.rounding!r}: known are 'nearest' and 'stochastic'")
        for format in (self.in_format, self.weight_format, self.accumulate_format):
            check_format(format)
        if self.accumulate_every < 0 or (self.accumulate_every and self.accumulate_format == "float"):
            raise ValueError(
                f"stage {self.name!r}: accumulate_every {self.accumulate_every} must not be negative, and needs an"
                f" accumulate_format, which is {self.accumulate_format!r}"
            )
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
        # Noise of the inputs arrives through weights, whose rows start with about unit length.
        return math.hypot(self.read_noise_std, self.input_noise_std)

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
        weight = cast(weight, self.weight_format, self.rounding, key, self.saturate)
        if self.weight_mismatch:
            weight = weight * self._factors(self.weight_mismatch, noise.CHIP_WEIGHTS, weight.shape)
        if self.write_noise:
            scale = self.weight_bound if math.isfinite(self.weight_bound) else float(np.abs(weight).max())
            draw = noise.normals(key, noise.STREAM_WRITE, weight.size, np.float64)
            weight = weight + self.write_noise * scale * draw.reshape(weight.shape)
        bias = Held(np.array(values["bias"], dtype=np.float64)) if self.bias else None
        return EmulatedState(Held(np.ascontiguousarray(weight.T)), bias)

    def run(self, state: EmulatedState, inputs: Any, keys: Any) -> Any:
        driven = convert(inputs, self.input)
        if self.in_format != "float":
            driven = cast(driven, self.in_format, self.rounding, keys, self.saturate, noise.STREAM_ROUNDING_INPUT)
        if self.input_noise_std:
            draw = noise.normals(keys, noise.STREAM_INPUT, self.in_features, inputs.dtype)
            driven = driven + draw * self.input_noise_std
        sums = self._accumulate(driven, state.weight.like(inputs), keys)
        outputs = self._read_out(sums, keys, state.bias)
        if self.slope_mismatch:
            outputs = outputs * self._slopes.like(outputs)
        return self._activate(namespace(inputs), outputs, own=True)

    def _factors(self, spread: float, tag: int, shape: tuple[int, ...]) -> Array:
        return 1 + spread * noise.chip_rng(self.seed, self.index, tag).standard_normal(shape)

    @cached_property
    def _slopes(self) -> Held:
        return Held(self._factors(self.slope_mismatch, noise.CHIP_SLOPES, (self.out_features,)))

    @cached_property
    def _read_out(self) -> ReadOut:
        return ReadOut(self._converter, dark=self.read_noise_std**2)

    def _accumulate(self, driven: Any, weight: Any, keys: Any) -> Any:
        """The products, added up `accumulate_every` at a time; each time draws numbers of its own, the last as ever."""
        if self.accumulate_format == "float":
            return driven @ weight
        size = self.in_features
        starts = range(0, size, self.accumulate_every or size)
        sums: Any = None
        for part, start in enumerate(starts):
            rows = slice(start, start + starts.step)
            more = driven[:, rows] @ weight[rows]
            sums = more if sums is None else sums + more
            left = len(starts) - 1 - part
            key = noise.derive(keys, left) if left and self.rounding == "stochastic" else keys
            sums = cast(sums, self.accumulate_format, self.rounding, key, self.saturate, own=True)
        return sums

    def _activate(self, xp: Any, sums: Any, own: bool = False) -> Any:
        """`own`: a numpy array may be used up."""
        if self.activation == "none":
            return sums
        if own and self.activation == "tanh" and xp is np:
            return np.tanh(sums, out=sums)  # a fresh array this large costs as much as a third of the function
        return CURVES[self.activation](xp, sums, **self.activation_options)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        sums = inputs @ values["weight"].T
        return self._activate(xp, sums + values["bias"] if self.bias else sums)

    def noiseless(self, xp: Any, values: Values, inputs: Any) -> Any:
        weight = values["weight"]
        if self.weight_mismatch:
            weight = weight * Held(self._factors(self.weight_mismatch, noise.CHIP_WEIGHTS, weight.shape)).like(weight)
        sums = inputs @ weight.T
        sums = xp.clip(sums + values["bias"] if self.bias else sums, self._converter.low, self._converter.high)
        return self._activate(xp, sums * self._slopes.like(sums) if self.slope_mismatch else sums)
