"""Hadamard (Walsh) probes: every element moves in every probe, with orthogonal signs.

N = the next power of two at or above M; D = U^T / N, exact because U^T U = N I. At the same amplitude per element the
read noise is M / N times that of one element: M times less energy than coordinate probes. The whole vector moves by
sqrt(M) eps, and truncation with it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from hzo_hil.probes import working_dtype

Array = NDArray[Any]


class Hadamard:
    """`drop_constant` leaves the all-ones column out, so that the error of a shared reference cancels (N >= M + 1).

    >>> Hadamard().count(5), Hadamard(drop_constant=True).count(8)
    (8, 16)
    """

    name = "hadamard"
    spread = True
    per_sample = False

    def __init__(self, drop_constant: bool = False) -> None:
        self.skip = int(drop_constant)

    def count(self, width: int) -> int:
        return 1 << (width + self.skip - 1).bit_length()

    def reach(self, width: int) -> float:
        return 1.0

    def directions(self, width: int, key: int, first: int, last: int) -> Array:
        return _signs(self.count(width), self.skip, width)[None]

    def decode(self, derivatives: Array, width: int, key: int, first: int) -> Array:
        signs = self.directions(width, key, first, first)[0].astype(working_dtype(derivatives))
        return (derivatives @ signs) / self.count(width)


@lru_cache(maxsize=32)
def _signs(size: int, skip: int, width: int) -> Array:
    return np.ascontiguousarray(hadamard(size)[:, skip : skip + width].astype(np.float64))
