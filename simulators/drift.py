"""Slow changes of what is shared by a whole chip, as functions of device time.

Knows nothing of who keeps the clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LaserWander:
    """Relative optical power 1 + amplitude * s(t), with s a sum of two incommensurate sines within [-1, 1].

    `amplitude` is the largest relative change (0.1: by 10 %), `period_s` the period of the slower sine in seconds of
    device time. s(0) = 0: the laser starts at its nominal power.
    """

    amplitude: float = 0.0
    period_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.amplitude < 1 or not self.period_s > 0:
            raise ValueError(
                f"laser wander: amplitude {self.amplitude} must be in [0, 1) and period {self.period_s} s above 0"
            )

    def gain(self, seconds: float) -> float:
        turn = 2 * math.pi * seconds / self.period_s
        return 1 + self.amplitude * (0.6 * math.sin(turn) + 0.4 * math.sin(turn * (1 + math.sqrt(5)) / 2))
