"""Convolutions on photonic cores: the same blocked matrix, met by every patch of an image.

Knows neither what the matrix is made of nor how it is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hzo_hil.simulators.arrays import namespace
from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.model import Array, Parameter, Port, Reach, StageModel, Structure, Values, check_values
from hzo_hil.simulators.patches import Patches
from hzo_hil.simulators.tensor_core import CoreState, TensorCore


@dataclass(frozen=True)
class ConvCore(StageModel):
    """A convolution: every patch of a flat image `[channels x height x width]` through one `matrix`, outputs
    `[out channels x rows x columns]`, both in the order of torch. Parameter: `weight` `[out channels, channels, kernel,
    kernel]`."""

    patches: Patches
    matrix: TensorCore

    def __post_init__(self) -> None:
        if self.matrix.in_features != self.patches.size:
            raise ValueError(
                f"stage {self.name!r}: a patch has {self.patches.size} values (channels x kernel x kernel), but the"
                f" matrix takes {self.matrix.in_features}"
            )

    @property
    def name(self) -> str:
        return self.matrix.name

    @property
    def in_width(self) -> int:
        return self.patches.channels * self.patches.height * self.patches.width

    @property
    def out_width(self) -> int:
        return self.matrix.out_features * self.patches.positions

    @property
    def linear(self) -> bool:
        return True

    @property
    def structure(self) -> Structure:
        p = self.patches
        shape, kernel, stride, padding = (p.height, p.width), (p.kernel,) * 2, (p.stride,) * 2, (p.padding,) * 2
        return Reach(p.channels, self.matrix.out_features, shape, kernel, stride, padding, (1, 1), uniform=True)

    @property
    def input(self) -> Port:
        return self.matrix.input

    @property
    def output(self) -> Port:
        return self.matrix.output

    @property
    def read_noise(self) -> float:
        return self.matrix.read_noise

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        p = self.patches
        return (Parameter("weight", (self.matrix.out_features, p.channels, p.kernel, p.kernel)),)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        return {"weight": self.matrix.initial(rng)["weight"].reshape(self.parameters[0].shape)}

    def program(self, values: Values, key: int) -> CoreState:
        check_values(self, values)
        weight = np.asarray(values["weight"], dtype=np.float64)
        return self.matrix.program({"weight": weight.reshape(len(weight), -1)}, key)

    @property
    def drifts(self) -> bool:
        return self.matrix.drifts

    def at(self, state: CoreState, seconds: float) -> CoreState:
        return self.matrix.at(state, seconds)

    def run(self, state: CoreState, inputs: Any, keys: Any) -> Any:
        xp = namespace(inputs)
        rows = self.patches.of(xp, convert(inputs, self.input))
        return _channels_first(xp, self.matrix.apply(state, rows, keys))

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        weight = values["weight"].reshape(self.matrix.out_features, -1)
        return _channels_first(xp, self.patches.of(xp, inputs) @ weight.T)


def _channels_first(xp: Any, outputs: Any) -> Any:
    """`[batch, positions, channels]` as flat images."""
    batch, positions, channels = outputs.shape
    return xp.swapaxes(outputs, 1, 2).reshape(batch, positions * channels)
