"""Phases of meshes that no decomposition programs: real transfer matrices, and the Fourier transform on a butterfly.

A perfect node is i e^{i theta/2} [[e^{i phi} s, c], [e^{i phi} c, -s]] with s, c = sin, cos of theta/2. The phases in
front belong to both of its outputs, so that they can be taken back by the phi of later nodes and by out_phase. Knows
perfect nodes only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators.layouts import Layout
from hzo_hil.simulators.mesh import TWO_PI

Array = NDArray[Any]


def balanced(layout: Layout, theta: Array, extra: Array | None = None) -> Array:
    """Phases `[phases]` in [0, 2 pi) at which every node acts as [[e^{i x} s, c], [e^{i x} c, -s]] with x its `extra`
    (rad `[nodes]`, 0 without), free of phases in front: with x of 0 or pi the mesh is a real orthogonal matrix."""
    behind = np.zeros(layout.ports)  # what each port's light has gathered and is still to lose
    phi = np.zeros(layout.nodes) if extra is None else np.array(extra, dtype=np.float64)
    for nodes, upper, lower in layout.steps:
        phi[nodes] += behind[lower] - behind[upper]
        behind[upper] = behind[lower] = behind[lower] + math.pi / 2 + theta[nodes] / 2
    return np.mod(np.concatenate([theta, phi, -behind]), TWO_PI)


def random_real(layout: Layout, rng: np.random.Generator) -> Array:
    """Phases of a random real orthogonal matrix within the layout's reach: every node a uniformly drawn rotation."""
    theta = rng.uniform(0, TWO_PI, layout.nodes)
    return balanced(layout, theta, math.pi * rng.integers(0, 2, layout.nodes))


def fourier(ports: int) -> tuple[Array, Array]:
    """Phases at which a butterfly is the discrete Fourier transform of its permuted inputs, and the permutation.

    With `order` the bit-reversed ports and F_jk = e^{-2 pi i j k / N} / sqrt(N), the mesh's matrix is F[:, order]
    (Cooley and Tukey, Math. Comp. 19, 297, 1965, decimation in time).
    """
    layout = Layout(ports, "butterfly")
    bits = layout.columns
    order = np.array([int(f"{m:0{bits}b}"[::-1], 2) for m in range(ports)])
    column, upper = layout.places.T
    # Column k joins halves of length 2^k: the lower one is turned by -2 pi m / 2^(k+1). A node turns its upper port, so
    # both are turned back by as much, which the next phases take up.
    turn = TWO_PI * (upper % 2**column) / 2 ** (column + 1)
    behind = np.zeros(ports)
    phi = np.empty(layout.nodes)
    for nodes, up, low in layout.steps:
        phi[nodes] = turn[nodes] + behind[low] - behind[up]
        behind[up] = behind[low] = behind[low] + math.pi * 3 / 4 + turn[nodes]
    return np.mod(np.concatenate([np.full(layout.nodes, math.pi / 2), phi, -behind]), TWO_PI), order
