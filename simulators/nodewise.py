"""The imperfections of a mesh, node by node, from how its outputs move when one shifter is turned by half a period.

The field behind a mesh is linear in e^{i phase} of every shifter s: turning s changes the transfer matrix by a multiple
of u_s v_s^T, where u_s depends only on what follows s. So from the outputs backwards each node is found by itself: from
u of its theta the second coupler and the phase between its two ways on; from u of its phi, the first coupler and theta.
Each phase between two ways is a sum of phi and output phases with integer coefficients; with the absolute phases of the
whole matrix they are as many equations as unknowns, and unimodular. Nothing is fitted and no start is needed, so the
size of the biases does not matter.

Meshes of two-port nodes read by homodyne. Neighbours that warm with a shifter, and heaters that do not turn exactly as
told, disturb in proportion: a start for a fit, good to some hundredths of a radian. Knows no device and no noise law.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators.layouts import Layout
from hzo_hil.simulators.mesh import TWO_PI

Array = NDArray[Any]


def settings(layout: Layout, base: Array) -> Array:
    """Phases to command `[settings, phases]`: `base` itself and with each shifter inside the mesh half a period on,
    each with all output shifters at 0 and at a quarter period, so that homodyne reads both quadratures.
    """
    inside = 2 * layout.nodes
    turned = np.repeat(base[None], inside + 1, axis=0)
    turned[np.arange(inside) + 1, np.arange(inside)] += TWO_PI / 2
    found = np.repeat(turned, 2, axis=0)
    found[0::2, inside:] = 0.0
    found[1::2, inside:] = TWO_PI / 4
    return np.mod(found, TWO_PI)


def solve(layout: Layout, commanded: Array, answers: Array) -> dict[str, Array]:
    """Imperfections of the mesh from the `answers` `[settings, ports in, ports out]` (real, to light of amplitude 1 in
    one port after the other) to what was `commanded`, `settings` as realised `[settings, phases]`.

    `bias` `[phases]` in (-pi, pi], `first` and `second` `[nodes]`, errors of the couplers: rad.
    """
    fields = _fields(layout, commanded, answers)
    moved = fields[1:] - fields[0]
    directions = np.linalg.svd(moved)[0][:, :, 0]
    felt, first, second = _peeled(layout, fields[0], directions)
    base = commanded[0].copy()
    return {"bias": np.angle(np.exp(1j * (felt - base))), "first": first, "second": second}


def _fields(layout: Layout, commanded: Array, answers: Array) -> Array:
    """Complex transfer matrices `[pairs, ports out, ports in]` in front of the output shifters' commanded phase."""
    ends = commanded[:, 2 * layout.nodes :]
    a, b = ends[0::2, :, None], ends[1::2, :, None]
    at_a, at_b = (answers[i::2].transpose(0, 2, 1) for i in (0, 1))
    # Re(e^{ia} z) and Re(e^{ib} z) are two equations for the real and imaginary part of z.
    determinant = np.sin(a - b)
    real = (np.sin(a) * at_b - np.sin(b) * at_a) / determinant
    imaginary = (np.cos(a) * at_b - np.cos(b) * at_a) / determinant
    found: Array = real + 1j * imaginary
    # As seen with the output shifters where the first of each pair had them.
    return found * np.exp(1j * a)


def _peeled(layout: Layout, whole: Array, directions: Array) -> tuple[Array, Array, Array]:
    """Felt phases `[phases]` and coupler errors of both couplers `[nodes]`."""
    nodes, ports = layout.nodes, layout.ports
    theta, first, second = np.zeros(nodes), np.zeros(nodes), np.zeros(nodes)
    # Unknown phases: the output shifters, then phi of every node. Where each way's phase stands is a sum of them.
    unknown = np.eye(ports + nodes, dtype=np.int64)
    way = [unknown[p] for p in range(ports)]
    sums, phases = [], []
    behind = np.eye(ports, dtype=np.complex128)
    for n in range(nodes - 1, -1, -1):
        p, q = (int(i) for i in layout.pairs[n])
        ahead = behind[:, [p, q]]
        seen = np.linalg.lstsq(ahead, directions[[n, nodes + n]].T, rcond=None)[0]
        ratio = seen[1, 0] / (1j * seen[0, 0])
        between, half = np.angle(ratio), np.arctan(abs(ratio))
        outer = _coupler(half) * np.array([[1], [np.exp(1j * between)]])
        inner = np.linalg.solve(outer, seen[:, 1])
        ratio = inner[1] / (1j * inner[0])
        theta[n], start = -np.angle(ratio), np.arctan(abs(ratio))
        behind[:, [p, q]] = ahead @ outer @ np.diag([np.exp(1j * theta[n]), 1]) @ _coupler(start)
        first[n], second[n] = start - np.pi / 4, half - np.pi / 4
        sums.append(way[q] - way[p])
        phases.append(between)
        way[p], way[q] = way[p] + unknown[ports + n], way[p]
    ends = np.angle(np.diag(np.linalg.solve(behind, whole)))
    inverse = np.round(np.linalg.inv(np.array(sums + way, dtype=np.float64)))
    found = inverse @ np.concatenate([phases, ends])
    return np.concatenate([theta, found[ports:], found[:ports]]), first, second


def _coupler(angle: float) -> Array:
    return np.array([[np.cos(angle), 1j * np.sin(angle)], [1j * np.sin(angle), np.cos(angle)]])
