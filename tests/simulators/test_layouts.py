"""Layouts of meshes: where nodes sit, what a butterfly can do, who warms whom."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import dft

from hzo_hil.simulators import butterfly
from hzo_hil.simulators.crosstalk import crosstalk, neighbours
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout

MADE = [
    *(Layout(ports, scheme) for scheme in ("clements", "reck") for ports in (2, 7, 8)),
    *(Layout(ports, "butterfly") for ports in (2, 16)),
]
NAMES = [f"{made.scheme} {made.ports}" for made in MADE]


def perfect(layout: Layout, phases: np.ndarray) -> np.ndarray:
    return ImperfectMesh(layout, MeshErrors()).matrix(phases)


@pytest.mark.parametrize("layout", MADE, ids=NAMES)
def test_nodes_of_a_column_share_no_port(layout):
    assert layout.phases == 2 * layout.nodes + layout.ports
    assert (np.diff(layout.places[:, 0]) >= 0).all()
    seen = []
    for nodes, upper, lower in layout.steps:
        ports = np.concatenate([np.arange(layout.ports)[upper], np.arange(layout.ports)[lower]])
        assert len(np.unique(ports)) == len(ports) == 2 * (nodes.stop - nodes.start)
        assert np.array_equal(np.stack([ports[: len(ports) // 2], ports[len(ports) // 2 :]], 1), layout.pairs[nodes])
        seen.append(nodes)
    assert len(seen) == layout.columns
    assert [s.stop for s in seen[:-1]] == [s.start for s in seen[1:]]
    assert seen[-1].stop == layout.nodes


@pytest.mark.parametrize(
    ("scheme", "ports", "columns", "nodes"),
    [("clements", 8, 8, 28), ("reck", 8, 13, 28), ("butterfly", 8, 3, 12), ("reck", 2, 1, 1), ("reck", 5, 7, 10)],
)
def test_every_scheme_has_its_shape(scheme, ports, columns, nodes):
    layout = Layout(ports, scheme)
    assert (layout.columns, layout.nodes) == (columns, nodes)


def test_a_triangle_is_widest_at_the_first_ports():
    """Every port pair m of N ports holds N - 1 - m nodes, two columns apart."""
    column, upper = Layout(6, "reck").places.T
    for m in range(5):
        assert column[upper == m].tolist() == list(range(m, 9 - m, 2))


def test_a_butterfly_s_columns_reach_twice_as_far_each():
    layout = Layout(16, "butterfly")
    assert np.array_equal(layout.pairs[:, 1] - layout.pairs[:, 0], 2 ** layout.places[:, 0])


@given(ports=st.integers(2, 9))
def test_the_clements_layout_is_rectangular(ports):
    layout = Layout(ports)
    assert all(upper % 2 == column % 2 for column, upper in layout.places)


@pytest.mark.parametrize("layout", MADE, ids=NAMES)
def test_gather_tables_name_every_node_once_and_partners_mutually(layout):
    index, partner = layout.gather
    here = np.tile(np.arange(layout.ports), (layout.columns, 1))
    assert np.array_equal(np.take_along_axis(partner, partner, axis=1), here)
    assert sorted(index[index < 2 * layout.nodes]) == list(range(2 * layout.nodes))
    assert ((partner == here) == (index == 2 * layout.nodes)).all()


def test_bad_layouts_are_refused():
    with pytest.raises(ValueError, match="at least 2 ports, not 1"):
        Layout(1)
    with pytest.raises(ValueError, match="unknown scheme 'hex' of a mesh: known are clements, reck, butterfly"):
        Layout(4, "hex")
    with pytest.raises(ValueError, match="ports are a power of 2, not 12: take 8 or 16, or another scheme"):
        Layout(12, "butterfly")


# --- butterflies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ports", [2, 4, 8, 64])
def test_a_butterfly_is_a_fourier_transform_at_the_right_phases(ports):
    phases, order = butterfly.fourier(ports)
    assert 0 <= phases.min() <= phases.max() < 2 * math.pi
    found = perfect(Layout(ports, "butterfly"), phases)
    assert np.abs(found - dft(ports, scale="sqrtn")[:, order]).max() < 1e-13


@pytest.mark.parametrize("layout", MADE, ids=NAMES)
def test_random_real_phases_make_a_random_real_matrix(layout):
    first, second = (perfect(layout, butterfly.random_real(layout, np.random.default_rng(s))) for s in (0, 1))
    assert np.abs(first.imag).max() < 1e-13
    assert np.abs(first.real @ first.real.T - np.eye(layout.ports)).max() < 1e-13
    assert np.abs(first - second).max() > 0.1


# --- crosstalk ----------------------------------------------------------------------------------------------------


def test_crosstalk_follows_the_layout():
    """Four ports: columns of 2, 1, 2, 1 nodes, numbered 0-1, 2, 3-4, 5; phi follows theta, then the outputs."""
    found = crosstalk(Layout(4), 0.005).toarray()
    pairs = {(i, 6 + i) for i in range(6)} | {(0, 1), (3, 4), (6, 7), (9, 10)} | {(12, 13), (13, 14), (14, 15)}
    expected = np.eye(16)
    for i, j in pairs:
        expected[i, j] = expected[j, i] = 0.005
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("scheme", "nodes", "stacked"),
    [
        # Four ports of a triangle: columns of 1, 1, 2, 1, 1 nodes: only 2 and 3 lie one above the other.
        ("reck", 6, {(2, 3)}),
        # Four ports of a butterfly: two columns of two nodes.
        ("butterfly", 4, {(0, 1), (2, 3)}),
    ],
)
def test_crosstalk_of_other_schemes(scheme, nodes, stacked):
    layout = Layout(4, scheme)
    pairs = {(i, nodes + i) for i in range(nodes)} | stacked | {(nodes + i, nodes + j) for i, j in stacked}
    pairs |= {(2 * nodes + m, 2 * nodes + m + 1) for m in range(3)}
    found = neighbours(layout).toarray()
    assert {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(found)), strict=True)} == pairs
    assert np.array_equal(found, found.T)
    assert set(np.unique(found)) == {0, 1}
