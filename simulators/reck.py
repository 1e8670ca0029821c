"""Phases of a triangular mesh that realise a given unitary (Reck et al., Phys. Rev. Lett. 73, 58, 1994).

Rows are emptied from the last one up, all from the right: the nodes taken first are those the light meets first.
Knows perfect nodes only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import nulling
from hzo_hil.simulators.layouts import Layout

Array = NDArray[Any]


def decompose(matrix: Array, tolerance: float = 1e-8) -> Array:
    """Phases (theta, phi, out_phase; rad in [0, 2 pi)) of a unitary matrix; ValueError as clements.decompose."""
    return nulling.program(Layout(len(matrix), "reck"), matrix, _orders(len(matrix)), tolerance)


@lru_cache(maxsize=32)
def _orders(ports: int) -> Array:
    found = [(0, row, upper) for row in range(ports - 1, 0, -1) for upper in range(row)]
    return np.array(found, dtype=np.int32)
