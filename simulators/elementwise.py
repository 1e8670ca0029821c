"""A stage that bends every value by itself: an opaque non-linearity without parameters.

Knows the response curves only; `u` below is gain times input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.model import Array, Port, StageModel, Structure, Values, check_values


def _electro_optic(xp: Any, u: Any) -> Any:
    """Mach-Zehnder modulator at its null, driven by a saturating amplifier: sin(pi/2 tanh u)."""
    return xp.sin(xp.tanh(u) * (math.pi / 2))


def _saturable(xp: Any, u: Any) -> Any:
    """Saturable absorber of optical depth 2 at low power: the amplitude u times exp(-1 / (1 + u^2))."""
    return u * xp.exp(-1 / (1 + u * u))


CURVES: dict[str, Any] = {
    "identity": lambda xp, u: u * 1,
    "relu": lambda xp, u: xp.where(u > 0, u, 0.0),
    "tanh": lambda xp, u: xp.tanh(u),
    "sigmoid": lambda xp, u: xp.tanh(u * 0.5) * 0.5 + 0.5,
    "square": lambda xp, u: u * u,
    "electro_optic": _electro_optic,
    "saturable": _saturable,
}


def check_kind(kind: str, what: str) -> None:
    if kind not in CURVES:
        raise ValueError(f"unknown {what} {kind!r}: known are {', '.join(CURVES)}")


@dataclass(frozen=True)
class Elementwise(StageModel):
    """y = curve(gain x) on `width` values, then the noise of its read-out and the converter at its output."""

    width: int
    kind: str = "tanh"
    gain: float = 1.0
    detector: Detector = field(default_factory=Detector)
    input: Port = Port()
    output: Port = Port()
    name: str = "activation"

    def __post_init__(self) -> None:
        check_kind(self.kind, "activation")
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

    def run(self, state: None, inputs: Array, keys: NDArray[np.uint64]) -> Array:
        outputs = self.ideal(np, {}, convert(inputs, self.input))
        return convert(self.detector.add_noise(outputs, keys), self.output, own=True)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        return CURVES[self.kind](xp, inputs if self.gain == 1 else inputs * self.gain)
