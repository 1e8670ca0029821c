"""Between activations and device units at one side of a boundary.

Knows nothing of devices: numbers in, numbers out. Axes: [batch, width].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import BadInput

Array = NDArray[Any]


@dataclass(frozen=True)
class Codec:
    """device = offset + gain * activation.

    `form` says how a signed activation `a` meets ports that take or give positive values only:

    * `plain`: one port a value. With `offset` at mid-range this is the offset encoding; intensities as they are.
    * `pair`: two adjacent ports a value. Driving: (max(a, 0), max(-a, 0)); reading: the difference of two detectors.
    * `two_pass` (driving only): the positive and the negative part go in separate queries, whose answers
      are subtracted. Right for linear stages only, where constants (a bias) go with it; costs twice the queries.
    """

    gain: float = 1.0
    offset: float = 0.0
    form: Literal["plain", "pair", "two_pass"] = "plain"

    def __post_init__(self) -> None:
        if not np.isfinite(self.gain) or self.gain == 0 or not np.isfinite(self.offset):
            raise BadInput(f"codec gain {self.gain} and offset {self.offset} must be finite, the gain not 0")
        if self.form not in ("plain", "pair", "two_pass"):
            raise BadInput(f"codec form {self.form!r} is not one of plain, pair, two_pass")
        if self.form != "plain" and self.gain < 0:
            raise BadInput("a pair or two_pass codec needs a positive gain: its ports take positive values")

    @property
    def identity(self) -> bool:
        return self == Codec()

    @property
    def ports(self) -> int:
        """Device ports per activation."""
        return 2 if self.form == "pair" else 1

    @property
    def passes(self) -> tuple[int, ...]:
        """Signs of the queries one activation vector needs."""
        return (1, -1) if self.form == "two_pass" else (1,)

    def encode(self, activations: Array, sign: int = 1) -> Array:
        if self.identity:
            return activations
        if self.form == "plain":
            return self.offset + self.gain * activations
        if self.form == "two_pass":
            return self.offset + self.gain * np.maximum(sign * activations, 0)
        pair = np.stack([np.maximum(activations, 0), np.maximum(-activations, 0)], axis=-1)
        return self.offset + self.gain * pair.reshape(*activations.shape[:-1], -1)

    def decode(self, values: Array, constant: bool = True) -> Array:
        """`constant=False` leaves the offset out: for answers that are subtracted from one another."""
        if self.identity:
            return values
        if self.form == "pair":
            return (values[..., 0::2] - values[..., 1::2]) / self.gain
        return (values - self.offset if constant else values) / self.gain

    def limits(self, low: float, high: float) -> tuple[float, float]:
        """The range of activations that a drivable device range allows."""
        if self.form == "plain":
            ends = sorted(((low - self.offset) / self.gain, (high - self.offset) / self.gain))
            return ends[0], ends[1]
        if low > self.offset:
            raise BadInput(
                f"a {self.form} codec sends {self.offset} for zero, below the device's lowest input {low}:"
                " set the codec's offset to the device's zero"
            )
        if high <= self.offset:
            raise BadInput(
                f"a {self.form} codec sends {self.offset} for zero, at or above the device's highest input {high}:"
                " nothing could be sent above it. Set the codec's offset to the device's zero"
            )
        top = (high - self.offset) / self.gain
        return -top, top
