"""Phases of a rectangular mesh that realise a given unitary, and of a pair of meshes that realise a real matrix.

The method is that of Clements et al., Optica 3, 1460 (2016): null the elements below the diagonal from both
sides by turns, then carry the remaining phases to the output. Knows perfect nodes only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators.mesh import TWO_PI, Layout

Array = NDArray[Any]
Node = tuple[int, float, float]  # upper port, theta, phi


def decompose(matrix: Array, tolerance: float = 1e-8) -> Array:
    """Phases `[nodes + nodes + ports]` (theta, phi, out_phase; rad in [0, 2 pi)) of a unitary `[ports, ports]`.

    ValueError if the matrix is not square or is further than `tolerance` (largest element of U U^H - 1) from unitary.
    """
    work = np.array(matrix, dtype=np.complex128)
    if work.ndim != 2 or work.shape[0] != work.shape[1]:
        raise ValueError(f"a mesh realises a square matrix, not one of shape {work.shape}")
    error = float(np.abs(work @ work.conj().T - np.eye(len(work))).max())
    if not error <= tolerance:
        raise ValueError(
            f"the matrix is not unitary: U U^H differs from 1 by up to {error:.3g} (allowed {tolerance:g});"
            " a general real matrix needs svd_program"
        )
    before, after = _null(work)
    diagonal = np.diag(work).copy()
    for upper, theta, phi in reversed(after):
        before.append((upper, theta, _carry(diagonal, upper, theta, phi)))
    layout = Layout(len(work))
    return np.mod(np.concatenate([*_place(layout, before), np.angle(diagonal)]), TWO_PI)


def _null(work: Array) -> tuple[list[Node], list[Node]]:
    """Make `work` diagonal in place; the nodes taken from its right and from its left, in that order."""
    ports = len(work)
    right: list[Node] = []
    left: list[Node] = []
    for diagonal in range(ports - 1):
        for j in range(diagonal + 1):
            if diagonal % 2 == 0:
                row, upper = ports - 1 - j, diagonal - j
                a, b = work[row, upper], work[row, upper + 1]
                theta, phi = 2 * np.arctan2(abs(b), abs(a)), -np.angle(-b * np.conj(a))
                pair = work[:, upper : upper + 2]
                pair[:] = pair @ _node(theta, phi).conj().T
                right.append((upper, theta, phi))
            else:
                upper, column = ports + j - diagonal - 2, j
                a, b = work[upper, column], work[upper + 1, column]
                theta, phi = 2 * np.arctan2(abs(a), abs(b)), np.angle(b * np.conj(a))
                pair = work[upper : upper + 2]
                pair[:] = _node(theta, phi) @ pair
                left.append((upper, theta, phi))
    return right, left


def _node(theta: float, phi: float) -> Array:
    """Transfer matrix of one perfect node (mesh.nodes with both couplers at pi/4)."""
    sine, cosine, outer = np.sin(theta / 2), np.cos(theta / 2), np.exp(1j * phi)
    return np.array(1j * np.exp(0.5j * theta) * np.array([[outer * sine, cosine], [outer * cosine, -sine]]))


def _carry(diagonal: Array, upper: int, theta: float, phi: float) -> float:
    """Rewrite node^H diag(d) as diag(d') node': d' replaces `diagonal` in place, the new phi is returned.

    Both sides share theta; comparing the four elements gives d'_1 = -e^{-i theta - i phi} d_2,
    d'_2 = -e^{-i theta} d_2 and phi' = arg(d_1 / d_2).
    """
    first, second = diagonal[upper], diagonal[upper + 1]
    diagonal[upper + 1] = -np.exp(-1j * theta) * second
    diagonal[upper] = diagonal[upper + 1] * np.exp(-1j * phi)
    return float(np.angle(first * np.conj(second)))


def _place(layout: Layout, sequence: list[Node]) -> tuple[Array, Array]:
    """theta and phi in the layout's order: each node goes to the first free column of its parity."""
    number = {(int(c), int(m)): i for i, (c, m) in enumerate(layout.places)}
    free = np.zeros(layout.ports, dtype=np.int64)
    theta, phi = np.empty(layout.nodes), np.empty(layout.nodes)
    for upper, inner, outer in sequence:
        column = int(max(free[upper], free[upper + 1]))
        column += (column - upper) % 2
        free[upper] = free[upper + 1] = column + 1
        theta[number[column, upper]], phi[number[column, upper]] = inner, outer
    return theta, phi


def svd_program(weight: Array) -> tuple[Array, Array, Array, float]:
    """Phases of V^H, attenuations in [0, 1], phases of U and the scale with weight = scale U diag(att) V^H.

    `weight` `[out, in]` is real; U is `[out, out]`, V^H `[in, in]`, attenuations `[min(out, in)]`.
    """
    u, singular, vh = np.linalg.svd(np.asarray(weight, dtype=np.float64))
    scale = float(singular[0]) if singular[0] > 0 else 1.0
    return decompose(vh), singular / scale, decompose(u), scale


def random_orthogonal(width: int, rng: np.random.Generator) -> Array:
    """Orthogonal matrix `[width, width]`, uniform over the group (Mezzadri, Notices AMS 54, 592, 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((width, width)))
    return np.asarray(q * np.sign(np.diag(r)))
