"""The emulator as a convolution: weights between converters, with read noise; all 0 (as by default): exact.

One stage is a whole convolution on images of one size. Knows nothing of circuits; a convolution on photonic cores is
`conv_core`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import Held, namespace
from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.convolution import convolve, per_channel
from hzo_hil.simulators.ends import ReadOut
from hzo_hil.simulators.model import Array, Parameter, Port, Reach, StageModel, Structure, Values, check_values


class ConvState(NamedTuple):
    """Weight as realised, and the bias of every output; None where there is none."""

    weight: Held
    bias: Held | None


@dataclass(frozen=True)
class EmulatedConv(StageModel):
    """conv(x, weight) + bias on flat images, by `reach`. Parameters: `weight` `[out channels, in channels / groups,
    *kernel]` and, with `bias`, `bias` `[out channels]`.

    `in_bits`, `in_bound`: input converter over +-in_bound; `out_bits`, `out_bound`: output converter; `read_noise_std`:
    noise on every output of every shot, in its units; `weight_bound`: weights lie within +- it; `write_noise`: noise of
    each write, relative to `weight_bound` (to the largest weight where that is infinite).
    """

    reach: Reach
    bias: bool = False
    in_bits: int | None = None
    in_bound: float = math.inf
    out_bits: int | None = None
    out_bound: float = math.inf
    read_noise_std: float = 0.0
    weight_bound: float = math.inf
    write_noise: float = 0.0
    name: str = "conv"

    def __post_init__(self) -> None:
        if not (min(self.read_noise_std, self.write_noise) >= 0 and self.weight_bound > 0):
            raise ValueError(f"stage {self.name!r}: noise must not be negative and weight_bound must be above 0")
        if min(self.reach.out_shape) < 1 or self.reach.in_channels % self.reach.groups:
            raise ValueError(f"stage {self.name!r}: {self.reach} is no convolution")
        _ = self.input, self.output

    @property
    def in_width(self) -> int:
        return self.reach.widths[0]

    @property
    def out_width(self) -> int:
        return self.reach.widths[1]

    @property
    def structure(self) -> Structure:
        return replace(self.reach, uniform=True)

    @property
    def linear(self) -> bool:
        return True

    @property
    def read_noise(self) -> float:
        return self.read_noise_std

    @cached_property
    def input(self) -> Port:
        return uniform_port(self.in_bits, -self.in_bound, self.in_bound)

    @cached_property
    def output(self) -> Port:
        return uniform_port(self.out_bits, -self.out_bound, self.out_bound)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        r = self.reach
        shape = (r.out_channels, r.in_channels // r.groups, *r.kernel)
        weight = Parameter("weight", shape, -self.weight_bound, self.weight_bound)
        return (weight, Parameter("bias", (r.out_channels,))) if self.bias else (weight,)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Weights of variance 2 / (values seen), for a rectifier behind them (He et al., 2015); bias 0."""
        shape = self.parameters[0].shape
        weight = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        values = {"weight": np.clip(weight, -self.weight_bound, self.weight_bound)}
        return values | ({"bias": np.zeros(shape[0])} if self.bias else {})

    def program(self, values: Values, key: int) -> ConvState:
        check_values(self, values)
        weight = np.clip(np.asarray(values["weight"], dtype=np.float64), -self.weight_bound, self.weight_bound)
        if self.write_noise:
            scale = self.weight_bound if math.isfinite(self.weight_bound) else float(np.abs(weight).max())
            draw = noise.normals(key, noise.STREAM_WRITE, weight.size, np.float64)
            weight = weight + self.write_noise * scale * draw.reshape(weight.shape)
        bias = Held(per_channel(np.asarray(values["bias"], np.float64), np, self.reach)) if self.bias else None
        return ConvState(Held(weight), bias)

    def run(self, state: ConvState, inputs: Any, keys: Any) -> Any:
        sums = convolve(convert(inputs, self.input), state.weight.like(inputs), self.reach)
        return self._read_out(sums, keys, state.bias)

    @cached_property
    def _read_out(self) -> ReadOut:
        return ReadOut(self.output, dark=self.read_noise_std**2)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        sums = convolve(inputs, values["weight"], self.reach)
        return sums + per_channel(values["bias"], namespace(inputs), self.reach) if self.bias else sums

    def noiseless(self, xp: Any, values: Values, inputs: Any) -> Any:
        return self.ideal(xp, values, inputs)
