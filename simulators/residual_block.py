"""A basic residual block as one stage: two 3 x 3 convolutions and the skip, all inside the device.

Batch norms are frozen: with statistics that no longer follow the batch a norm is a gain and a shift for every channel,
which are parameters here. Knows nothing of the network around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hzo_hil.simulators.arrays import Held, namespace
from hzo_hil.simulators.convolution import convolve, per_channel
from hzo_hil.simulators.ends import ReadOut
from hzo_hil.simulators.model import Array, Parameter, Reach, StageModel, Structure, Values, check_values


@dataclass(frozen=True)
class ResidualBlock(StageModel):
    """relu(gain2 conv2(relu(gain1 conv1(x) + shift1)) + shift2 + skip(x)) on flat images (He et al., 2016).

    `stride` is that of the first convolution. The skip is x; where sizes differ, every `stride`-th pixel with channels
    of zeros on both sides (their option A). `read_noise_std`: noise on every output of every shot.
    """

    in_channels: int
    out_channels: int
    shape: tuple[int, int]
    stride: int = 1
    read_noise_std: float = 0.0
    name: str = "block"

    def __post_init__(self) -> None:
        if (self.out_channels - self.in_channels) % 2 or self.out_channels < self.in_channels:
            raise ValueError(
                f"stage {self.name!r}: {self.in_channels} channels cannot be padded to {self.out_channels}"
            )

    @cached_property
    def convolutions(self) -> tuple[Reach, Reach]:
        first = Reach(
            self.in_channels, self.out_channels, self.shape, (3, 3), (self.stride,) * 2, (1, 1), (1, 1)
        )  # fmt: skip
        return first, Reach(self.out_channels, self.out_channels, first.out_shape, (3, 3), (1, 1), (1, 1), (1, 1))

    @property
    def in_width(self) -> int:
        return self.in_channels * math.prod(self.shape)

    @property
    def out_width(self) -> int:
        return self.out_channels * math.prod(self.convolutions[1].out_shape)

    @property
    def structure(self) -> Structure:
        """Both kernels together; the skip lies within."""
        s = self.stride
        kernel, padding = (3 + 2 * s,) * 2, (1 + s,) * 2
        return Reach(self.in_channels, self.out_channels, self.shape, kernel, (s, s), padding, (1, 1))

    @property
    def read_noise(self) -> float:
        return self.read_noise_std

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        c = self.out_channels
        return (
            Parameter("weight1", (c, self.in_channels, 3, 3)), Parameter("gain1", (c,)), Parameter("shift1", (c,)),
            Parameter("weight2", (c, c, 3, 3)), Parameter("gain2", (c,)), Parameter("shift2", (c,)),
        )  # fmt: skip

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Weights of variance 2 / (values seen), gains 1, shifts 0."""
        values: dict[str, Array] = {}
        for p in self.parameters:
            if p.name.startswith("weight"):
                values[p.name] = rng.standard_normal(p.shape) * math.sqrt(2 / math.prod(p.shape[1:]))
            else:
                values[p.name] = np.full(p.shape, float(p.name.startswith("gain")))
        return values

    def program(self, values: Values, key: int) -> dict[str, Held]:
        check_values(self, values)
        return {name: Held(np.array(value, dtype=np.float64)) for name, value in values.items()}

    def run(self, state: dict[str, Held], inputs: Any, keys: Any) -> Any:
        outputs = self.ideal(namespace(inputs), {n: held.like(inputs) for n, held in state.items()}, inputs)
        return self._read_out(outputs, keys)

    @cached_property
    def _read_out(self) -> ReadOut:
        return ReadOut(dark=self.read_noise_std**2)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        inner, outer = self.convolutions
        between = convolve(inputs, values["weight1"], inner)
        between = between * per_channel(values["gain1"], xp, inner) + per_channel(values["shift1"], xp, inner)
        sums = convolve(_rectified(xp, between), values["weight2"], outer)
        sums = sums * per_channel(values["gain2"], xp, outer) + per_channel(values["shift2"], xp, outer)
        return _rectified(xp, sums + self._skip(xp, inputs))

    def _skip(self, xp: Any, inputs: Any) -> Any:
        if self.stride == 1 and self.in_channels == self.out_channels:
            return inputs
        batch = len(inputs)
        pixels = inputs.reshape(batch, self.in_channels, *self.shape)[:, :, :: self.stride, :: self.stride]
        zeros = xp.zeros_like(pixels[:, :1]) if xp is np else pixels[:, :1] * 0
        sides = [zeros] * ((self.out_channels - self.in_channels) // 2)
        return xp.concatenate([*sides, pixels, *sides], 1).reshape(batch, -1)


def _rectified(xp: Any, values: Any) -> Any:
    return np.maximum(values, 0) if xp is np else values.relu()
