"""Photodetectors in SI inside, full scale outside: an amplitude or intensity of 1 is full scale.

Shot noise 2 q (I + I_dark) B and thermal noise 4 k T B / R are Gaussian and independent, so they are drawn as
one normal number for each output. The mean dark current is taken as subtracted. Knows nothing of meshes or converters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import constants

from hzo_hil.simulators import noise

Array = NDArray[Any]


@dataclass(frozen=True)
class Detector:
    """Balanced homodyne (real part of the field) or direct (intensity) detection.

    `responsivity` A/W; `dark_current` A; `load` ohm; `temperature` K; `bandwidth` Hz (0: no physical noise);
    `full_scale` W of signal at full scale; `local_oscillator` W, which sets the shot noise of homodyne
    (0: as much as `full_scale`). `noise_std`: a further plain Gaussian noise, in output units.
    """

    kind: Literal["homodyne", "intensity"] = "homodyne"
    responsivity: float = 1.0
    dark_current: float = 0.0
    load: float = 50.0
    temperature: float = 300.0
    bandwidth: float = 0.0
    full_scale: float = 1e-3
    local_oscillator: float = 0.0
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("homodyne", "intensity"):
            raise ValueError(f"unknown detection {self.kind!r}: known are 'homodyne' and 'intensity'")
        for name in ("responsivity", "load", "full_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"detector: {name} must be above 0, not {getattr(self, name)}")
        for name in ("dark_current", "temperature", "bandwidth", "local_oscillator", "noise_std"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"detector: {name} must not be negative, not {getattr(self, name)}")

    @property
    def dark_std(self) -> float:
        """Standard deviation of a dark output, in output units."""
        return math.sqrt(self._variance[0])

    @property
    def _variance(self) -> tuple[float, float]:
        """Variance of a dark output, and what an intensity of 1 adds to it; in output units squared."""
        shot = 2 * constants.e * self.bandwidth
        thermal = 4 * constants.k * self.temperature * self.bandwidth / self.load
        signal = self.responsivity * self.full_scale
        plain = self.noise_std**2
        if self.kind == "intensity":
            return plain + (shot * self.dark_current + thermal) / signal**2, shot / signal
        # Two diodes share the local oscillator; their difference swings by 2 R sqrt(P_lo P_signal). The signal's own
        # shot noise is left out, as usual where the local oscillator is at least as strong.
        oscillator = self.local_oscillator or self.full_scale
        current = self.responsivity * oscillator + 2 * self.dark_current
        swing = 2 * self.responsivity * math.sqrt(oscillator * self.full_scale)
        return plain + (shot * current + thermal) / swing**2, 0.0

    def add_noise(self, outputs: Array, keys: NDArray[np.uint64], stream: int = noise.STREAM_DETECTOR) -> Array:
        """Add this detector's noise to `outputs` `[batch, width]` in place, row i drawn from keys[i]."""
        dark, per_intensity = self._variance
        if dark == 0 and per_intensity == 0:
            return outputs
        draw = noise.normals(keys, stream, outputs.shape[1], outputs.dtype)
        if per_intensity == 0:
            draw *= outputs.dtype.type(math.sqrt(dark))
        else:
            draw *= np.sqrt(np.maximum(outputs, 0) * outputs.dtype.type(per_intensity) + outputs.dtype.type(dark))
        outputs += draw
        return outputs
