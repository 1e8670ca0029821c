"""Thermal crosstalk: every heater also warms its neighbours. Knows the mesh's layout only."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from hzo_hil.simulators.layouts import Layout


def neighbours(layout: Layout) -> sparse.csr_array:
    """0/1 matrix `[phases, phases]`, symmetric: which phase shifters lie next to which.

    Convention for every scheme: in a column, theta next to the theta and phi next to the phi of the nodes directly
    above and below; theta next to the phi of the same node; output shifters next to those of the adjacent ports. The
    nodes of a butterfly's column lie in the order of their upper ports. Order of the shifters: theta, phi, out_phase.
    """
    n, ports = layout.nodes, layout.ports
    node = np.arange(n)
    above = node[:-1][layout.places[:-1, 0] == layout.places[1:, 0]]
    end = 2 * n + np.arange(ports - 1)
    rows = np.concatenate([node, above, n + above, end])
    columns = np.concatenate([n + node, above + 1, n + above + 1, end + 1])
    half = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(layout.phases, layout.phases))
    return sparse.csr_array(half + half.T)


def crosstalk(layout: Layout, strength: float) -> sparse.csr_array:
    """Matrix `[phases, phases]` from set to felt phases: 1 on the diagonal, `strength` at neighbours."""
    return sparse.csr_array(sparse.eye_array(layout.phases) + strength * neighbours(layout))
