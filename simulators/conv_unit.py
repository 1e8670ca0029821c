"""A convolution, a frozen norm, a rectifier and a skip as one stage, all inside the device.

With statistics that no longer follow the batch a batch norm is a gain and a shift for every channel, which are
parameters here. Knows nothing of the network around it; two convolutions in one stage are a `residual_block`.
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
class ConvUnit(StageModel):
    """relu(gain conv(x, weight) + shift) on flat images, and x added where widths are equal and `skip` is true.

    `read_noise_std`: noise on every output of every shot.
    """

    reach: Reach
    skip: bool = True
    read_noise_std: float = 0.0
    name: str = "unit"

    def __post_init__(self) -> None:
        if min(self.reach.out_shape) < 1 or self.reach.in_channels % self.reach.groups:
            raise ValueError(f"stage {self.name!r}: {self.reach} is no convolution")

    @property
    def skips(self) -> bool:
        r = self.reach
        return self.skip and (r.in_channels, r.shape) == (r.out_channels, r.out_shape)

    @property
    def in_width(self) -> int:
        return self.reach.widths[0]

    @property
    def out_width(self) -> int:
        return self.reach.widths[1]

    @property
    def structure(self) -> Structure:
        """The skip lies within the kernel's reach, or the kernel has no middle: then nothing is said."""
        r = self.reach
        middle = all(p % d == 0 and p // d < k for k, p, d in zip(r.kernel, r.padding, r.dilation, strict=True))
        return r if middle or not self.skips else "dense"

    @property
    def read_noise(self) -> float:
        return self.read_noise_std

    @property
    def draws(self) -> bool:
        return self.read_noise_std > 0

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        r = self.reach
        channels = (r.out_channels,)
        return (
            Parameter("weight", (r.out_channels, r.in_channels // r.groups, *r.kernel)),
            Parameter("gain", channels), Parameter("shift", channels),
        )  # fmt: skip

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Weights of variance 2 / (values seen), gains 1, shifts 0."""
        weight, gain, shift = (p.shape for p in self.parameters)
        scale = math.sqrt(2 / math.prod(weight[1:]))
        return {"weight": rng.standard_normal(weight) * scale, "gain": np.ones(gain), "shift": np.zeros(shift)}

    def program(self, values: Values, key: int) -> dict[str, Held]:
        """The gain is multiplied into the kernel."""
        check_values(self, values)
        weight, gain, shift = (np.asarray(values[p.name], dtype=np.float64) for p in self.parameters)
        each = gain.reshape(-1, *(1,) * (weight.ndim - 1))
        return {"weight": Held(weight * each), "shift": Held(per_channel(shift, np, self.reach))}

    def run(self, state: dict[str, Held], inputs: Any, keys: Any) -> Any:
        sums = convolve(inputs, state["weight"].like(inputs), self.reach)
        sums += state["shift"].like(inputs)
        outputs = np.maximum(sums, 0, out=sums) if namespace(sums) is np else sums.relu_()
        if self.skips:
            outputs += inputs
        return self._read_out(outputs, keys)

    @cached_property
    def _read_out(self) -> ReadOut:
        return ReadOut(dark=self.read_noise_std**2)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        sums = convolve(inputs, values["weight"], self.reach)
        sums = sums * per_channel(values["gain"], xp, self.reach) + per_channel(values["shift"], xp, self.reach)
        outputs = np.maximum(sums, 0) if xp is np else sums.relu()
        return outputs + inputs if self.skips else outputs

    def noiseless(self, xp: Any, values: Values, inputs: Any) -> Any:
        return self.ideal(xp, values, inputs)
