"""Thermal crosstalk: every heater also warms its neighbours. Knows the mesh's layout only."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from hzo_hil.simulators.mesh import Layout


def neighbours(layout: Layout) -> sparse.csr_array:
    """0/1 matrix `[phases, phases]`, symmetric: which phase shifters lie next to which.

    Convention: in a column, theta next to the theta and phi next to the phi of the nodes directly above and
    below; theta next to the phi of the same node; output shifters next to those of the adjacent ports.
    Order of the shifters: theta, phi, out_phase.
    """
    n = layout.nodes
    node_at = {(int(c), int(m)): i for i, (c, m) in enumerate(layout.places)}
    pairs = [(i, n + i) for i in range(n)]
    for (column, upper), i in node_at.items():
        below = node_at.get((column, upper + 2))
        if below is not None:
            pairs += [(i, below), (n + i, n + below)]
    pairs += [(2 * n + p, 2 * n + p + 1) for p in range(layout.ports - 1)]
    rows, columns = np.array(pairs).T
    half = sparse.coo_array((np.ones(len(pairs)), (rows, columns)), shape=(layout.phases, layout.phases))
    return sparse.csr_array(half + half.T)


def crosstalk(layout: Layout, strength: float) -> sparse.csr_array:
    """Matrix `[phases, phases]` from set to felt phases: 1 on the diagonal, `strength` at neighbours."""
    return sparse.csr_array(sparse.eye_array(layout.phases) + strength * neighbours(layout))
