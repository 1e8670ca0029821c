"""Phases of a rectangular mesh that realise a given unitary, and of a pair of meshes that realise a real matrix.

The method is that of Clements et al., Optica 3, 1460 (2016): null the elements below the diagonal from both
sides by turns, then carry the remaining phases to the output. Knows perfect nodes only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import nulling, reck
from hzo_hil.simulators.layouts import Layout, Scheme

Array = NDArray[Any]


def decompose(matrix: Array, tolerance: float = 1e-8, scheme: Scheme = "clements") -> Array:
    """Phases `[nodes + nodes + ports]` (theta, phi, out_phase; rad in [0, 2 pi)) of a unitary `[ports, ports]`.

    ValueError if the matrix is not square or is further than `tolerance` (largest element of U U^H - 1) from unitary,
    and for a butterfly, which cannot realise every unitary.
    """
    if scheme == "reck":
        return reck.decompose(matrix, tolerance)
    if scheme != "clements":
        raise ValueError(
            f"a mesh of scheme {scheme!r} cannot be programmed with a matrix, since it does not reach every unitary:"
            " train its phases, or take 'clements' or 'reck'"
        )
    return nulling.program(Layout(len(matrix)), matrix, _orders(len(matrix)), tolerance)


@lru_cache(maxsize=32)
def _orders(ports: int) -> Array:
    """Diagonals from the lower left corner, nulled from the right and from the left by turns."""
    found = []
    for diagonal in range(ports - 1):
        for j in range(diagonal + 1):
            if diagonal % 2 == 0:
                found.append((0, ports - 1 - j, diagonal - j))
            else:
                found.append((1, j, ports + j - diagonal - 2))
    return np.array(found, dtype=np.int32)


def svd_program(weight: Array, scheme: Scheme = "clements") -> tuple[Array, Array, Array, float]:
    """Phases of V^H, attenuations in [0, 1], phases of U and the scale with weight = scale U diag(att) V^H.

    `weight` `[out, in]` is real; U is `[out, out]`, V^H `[in, in]`, attenuations `[min(out, in)]`.
    """
    u, singular, vh = np.linalg.svd(np.asarray(weight, dtype=np.float64))
    scale = float(singular[0]) if singular[0] > 0 else 1.0
    return decompose(vh, scheme=scheme), singular / scale, decompose(u, scheme=scheme), scale


def random_orthogonal(width: int, rng: np.random.Generator) -> Array:
    """Orthogonal matrix `[width, width]`, uniform over the group (Mezzadri, Notices AMS 54, 592, 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((width, width)))
    return np.asarray(q * np.sign(np.diag(r)))
