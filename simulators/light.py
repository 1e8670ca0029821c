"""The light that runs a chip: how strong it is at any moment, as a part of its nominal power.

Knows nothing of what it falls on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators.drift import LaserWander, Wander
from hzo_hil.simulators.noise import CHIP_POWER

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Light:
    """`power` (relative, above 0), times the laser's slow wander, times 1 + an Ornstein-Uhlenbeck process.

    `drift_std` is the relative standard deviation of that process and `drift_tau_s` its correlation time, in device
    seconds; `seed` names its path. It never falls below 0. A hundredth of `drift_tau_s` counts as one moment.
    """

    power: float = 1.0
    laser: LaserWander = LaserWander()
    drift_std: float = 0.0
    drift_tau_s: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(f"power must be finite and above 0, not {self.power}")
        _ = self._drift

    @property
    def steady(self) -> bool:
        return not (self.laser.amplitude or self.drift_std)

    @property
    def _drift(self) -> Wander:
        return Wander("ou", self.drift_std, self.drift_tau_s, self.drift_tau_s / 100)

    def gains(self, seconds: Array) -> Array:
        """The relative power `[rows]` at each of the times `[rows]`."""
        found = np.full(len(seconds), self.power)
        if self.laser.amplitude:
            found *= self.laser.gain(seconds)
        if self.drift_std:
            steps, rows = np.unique(self._drift.steps(seconds), return_inverse=True)
            path = [self._drift.at_step(self.seed, 0, CHIP_POWER, 1, int(step))[0] for step in steps]
            found *= np.maximum(1 + np.array(path), 0)[rows]
        return found
