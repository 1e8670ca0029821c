"""A stage that bends every value by itself: an opaque non-linearity without parameters.

Knows the response curves by name only; see `curves` for their equations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hzo_hil.simulators.arrays import namespace
from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.curves import CURVES, check_kind
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.model import Array, Port, StageModel, Structure, Values, check_values

__all__ = ["CURVES", "Elementwise", "check_kind"]


@dataclass(frozen=True)
class Elementwise(StageModel):
    """y = curve(gain x) on `width` values, then the noise of its read-out and the converter at its output.

    `kind` names the curve and `options` its own numbers, such as {"optical_depth": 3}.
    """

    width: int
    kind: str = "tanh"
    gain: float = 1.0
    detector: Detector = field(default_factory=Detector)
    input: Port = Port()
    output: Port = Port()
    name: str = "activation"
    options: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_kind(self.kind, "activation", self.options)
        if self.width < 1 or not math.isfinite(self.gain) or self.gain == 0:
            raise ValueError(f"stage {self.name!r}: width {self.width} must be at least 1, gain {self.gain} not 0")

    @property
    def in_width(self) -> int:
        return self.width

    @property
    def out_width(self) -> int:
        return self.width

    @property
    def structure(self) -> Structure:
        return "diagonal"

    @property
    def linear(self) -> bool:
        return self.kind == "identity"

    @property
    def read_noise(self) -> float:
        return self.detector.dark_std

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        return {}

    def program(self, values: Values, key: int) -> None:
        check_values(self, values)

    def run(self, state: None, inputs: Any, keys: Any) -> Any:
        outputs = self.ideal(namespace(inputs), {}, convert(inputs, self.input))
        return self.detector.read(outputs, keys, self.output)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        return CURVES[self.kind](xp, inputs if self.gain == 1 else inputs * self.gain, **self.options)

    def noiseless(self, xp: Any, values: Values, inputs: Any) -> Any:
        return self.detector.noiseless(self.ideal(xp, values, inputs))
