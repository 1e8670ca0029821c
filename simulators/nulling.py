"""Making a unitary diagonal by nodes of a mesh, one element at a time: what all decompositions share.

An order (side, line, upper) nulls one element: side 0 acts from the right on columns upper and upper + 1 and nulls
the first in row `line`; side 1 acts from the left on those rows and nulls the second in column `line`. Knows perfect
nodes on neighbouring ports; which orders make which mesh is up to the callers.
"""

from __future__ import annotations

import cmath
import ctypes
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import native
from hzo_hil.simulators.layouts import Layout
from hzo_hil.simulators.mesh import TWO_PI

Array = NDArray[Any]
_NOTHING = 1e-13  # size of elements that count as 0, also in native/unitary.h


def program(layout: Layout, matrix: Array, orders: Array, tolerance: float) -> Array:
    """Phases `[phases]` (theta, phi, out_phase; rad in [0, 2 pi)) of a unitary `[ports, ports]`, by int32 orders
    `[nodes, 3]`. ValueError if the matrix is not square or not unitary, saying how far it is from that."""
    work = np.array(matrix, dtype=np.complex128, order="C")
    check_unitary(work, tolerance)
    angles = null(work, orders)
    right = orders[:, 0] == 0
    diagonal = [complex(d) for d in np.diag(work)]
    carried = _carry(diagonal, orders[~right, 2].tolist()[::-1], angles[~right].tolist()[::-1])
    phases = np.empty(layout.phases)
    theta, phi, out_phase = layout.split(phases)
    number = _numbers(layout, tuple(orders[right, 2].tolist() + orders[~right, 2].tolist()[::-1]))
    theta[number], phi[number] = np.concatenate([angles[right], carried]).T
    out_phase[:] = np.angle(diagonal)
    phases = np.mod(phases, TWO_PI)
    # To a heater 0 and 2 pi are not the same: rounding must not choose between them.
    return np.where(phases > TWO_PI - 1e-11, 0.0, phases)


def check_unitary(matrix: Array, tolerance: float) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a mesh realises a square matrix, not one of shape {matrix.shape}")
    error = float(np.abs(matrix @ matrix.conj().T - np.eye(len(matrix))).max())
    if not error <= tolerance:
        raise ValueError(
            f"the matrix is not unitary: U U^H differs from 1 by up to {error:.3g} (allowed {tolerance:g});"
            " a general real matrix needs svd_program"
        )


def null(work: Array, orders: Array) -> Array:
    """Make `work` complex128 `[n, n]` diagonal in place; theta and phi of each order's node, float64 `[orders, 2]`."""
    library = native.library()
    if library is None:
        return null_numpy(work, orders)
    orders, angles = np.ascontiguousarray(orders), np.empty((len(orders), 2))
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    kernel = library.kernel("mesh_null", pointer, long, pointer, long, pointer)
    kernel(work.ctypes.data, len(work), orders.ctypes.data, len(orders), angles.ctypes.data)
    return angles


def null_numpy(work: Array, orders: Array) -> Array:
    angles = np.empty((len(orders), 2))
    for i, (left, line, upper) in enumerate(orders.tolist()):
        pair = work[upper : upper + 2] if left else work.T[upper : upper + 2]
        a, b = complex(pair[0, line]), complex(pair[1, line])
        theta = 2 * (math.atan2(abs(a), abs(b)) if left else math.atan2(abs(b), abs(a)))
        phi = 0.0
        if min(abs(a), abs(b)) >= _NOTHING:  # else it would be a phase of rounding errors
            phi = cmath.phase(b * a.conjugate()) if left else -cmath.phase(-b * a.conjugate())
        node = _node(theta, phi)
        pair[:] = (node if left else node.conj()) @ pair
        angles[i] = theta, phi
    return angles


def _node(theta: float, phi: float) -> Array:
    """Transfer matrix of one perfect node (mesh.nodes with both couplers at pi/4)."""
    shared, turned = 1j * cmath.exp(0.5j * theta), cmath.exp(1j * phi)
    sine, cosine = shared * math.sin(theta / 2), shared * math.cos(theta / 2)
    return np.array([[turned * sine, cosine], [turned * cosine, -sine]])


def _carry(diagonal: list[complex], uppers: list[int], angles: list[list[float]]) -> Array:
    """Angles `[nodes, 2]` of nodes right of the phases `diagonal`, from those of nodes left of it, which is replaced.

    node^H diag(d) = diag(d') node' with the same theta; comparing the four elements gives
    d'_1 = -e^{-i theta - i phi} d_2, d'_2 = -e^{-i theta} d_2 and phi' = arg(d_1 / d_2).
    """
    found = np.empty((len(uppers), 2))
    for i, (upper, (theta, phi)) in enumerate(zip(uppers, angles, strict=True)):
        first, second = diagonal[upper], diagonal[upper + 1]
        diagonal[upper + 1] = -cmath.exp(-1j * theta) * second
        diagonal[upper] = diagonal[upper + 1] * cmath.exp(-1j * phi)
        found[i] = theta, cmath.phase(first * second.conjugate())
    return found


@lru_cache(maxsize=32)
def _numbers(layout: Layout, sequence: tuple[int, ...]) -> Array:
    """The layout's numbers of nodes met in this sequence of upper ports: each takes the first column that is free."""
    number = {(int(c), int(m)): i for i, (c, m) in enumerate(layout.places)}
    free = [0] * layout.ports
    found = []
    for upper in sequence:
        column = max(free[upper], free[upper + 1])
        column += (column - upper) % 2
        free[upper] = free[upper + 1] = column + 1
        found.append(number[column, upper])
    return np.array(found)
