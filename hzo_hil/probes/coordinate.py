"""Coordinate probes: one element at a time (HZO algorithm 1; CGE elsewhere).

M probes, D = I, so the read noise of every element enters once: ||D||_F^2 = M. Smallest truncation error of all sets,
and the only one whose probe can become one-sided at the edge of a range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Coordinate:
    """
    >>> Coordinate().count(5)
    5
    """

    name = "coordinate"
    spread = False
    per_sample = False

    def count(self, width: int) -> int:
        return width

    def reach(self, width: int) -> float:
        return 1.0

    def directions(self, width: int, key: int, first: int, last: int) -> Array:
        return np.eye(width)[None]

    def decode(self, derivatives: Array, width: int, key: int, first: int) -> Array:
        return derivatives
