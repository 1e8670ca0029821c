"""The heaters of a bank of rings: what phase a ring has when its heater is told one. Knows nothing of light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hzo_hil.simulators import noise
from hzo_hil.simulators.converters import voltage_levels
from hzo_hil.simulators.model import Array


@dataclass(frozen=True)
class BankErrors:
    """Strength of every imperfection of a bank; 0 switches one off.

    `resonance_std` Hz, by which a ring's resonance misses its channel, fixed in fabrication (what calibration left of
    it); `crosstalk`: part of a heater's phase that the next rings feel, in its own bank and in the banks beside it,
    counted from `calibrated_at` rad; `programming_std` rad of a heater, redrawn at each write; `phase_bits` of a DAC in
    volts (0: none) with `v_pi` and `v_max` V.
    """

    resonance_std: float = 0.0
    crosstalk: float = 0.0
    calibrated_at: float = 0.0
    programming_std: float = 0.0
    phase_bits: int | None = None
    v_pi: float = 4.36
    v_max: float = 10.8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"ring bank: {name} must be finite and not negative, not {value}")

    @property
    def levels(self) -> tuple[float, ...] | None:
        return voltage_levels(self.phase_bits, self.v_pi, self.v_max) if self.phase_bits is not None else None

    def felt(self, phases: Array, fabrication: Array, free_spectral_range: float, key: int) -> Array:
        """Round-trip phases (rad) for heaters set to `phases` `[banks, rings]`: their own, their neighbours',
        fabrication, then the noise of this write. `fabrication`: a standard normal number for each ring of this chip.
        """
        if self.crosstalk:
            phases = phases + self.crosstalk * _neighbours(phases - self.calibrated_at)
        if self.resonance_std:
            phases = phases + 2 * math.pi * self.resonance_std / free_spectral_range * fabrication
        if self.programming_std:
            draw = noise.normals(key, noise.STREAM_PROGRAM, phases.size, np.float64)
            phases = phases + self.programming_std * draw.reshape(phases.shape)
        return phases


def _neighbours(phases: Array) -> Array:
    """Sum of what the rings next to each have: along its bank and in the banks beside it."""
    near = np.zeros_like(phases)
    near[:, 1:] += phases[:, :-1]
    near[:, :-1] += phases[:, 1:]
    near[1:] += phases[:-1]
    near[:-1] += phases[1:]
    return near
