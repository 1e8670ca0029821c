"""Probes by low-rank update are the walks at the changed phases."""

from __future__ import annotations

import numpy as np
import pytest

from hzo_hil.simulators import probes
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout

LAYOUTS = [Layout(2), Layout(7), Layout(20), Layout(6, "reck"), Layout(8, "butterfly")]
NAMES = [f"{made.scheme} {made.ports}" for made in LAYOUTS]
KINDS = {"float32": 5e-6, "complex64": 5e-6, "float64": 1e-13, "complex128": 1e-13}


def setting(layout: Layout, **errors: float) -> Setting:
    made = ImperfectMesh(layout, MeshErrors(coupler_std=0.1, loss_db=0.2, **errors), seed=1)
    return made.set(np.random.default_rng(0).uniform(0, 6, layout.phases), 1)


def light(layout: Layout, kind: str, rows: int = 21) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, layout.ports)) + 1j * rng.standard_normal((rows, layout.ports))
    return (x if kind.startswith("complex") else x.real).astype(kind)


def walked(told: Setting, which: np.ndarray, changes: np.ndarray, x: np.ndarray) -> np.ndarray:
    vectors = np.repeat(told.phases[None], len(which), axis=0)
    for vector, shifters, by in zip(vectors, which, changes, strict=True):
        vector[shifters] += by
    return told.circuit.walk(vectors, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_every_single_phase(layout, kind):
    told, x = setting(layout), light(layout, kind)
    which = np.random.default_rng(3).permutation(layout.phases)
    changes = np.random.default_rng(4).normal(0, 2, layout.phases)
    found = probes.fields(told, which, changes, x)
    assert found.dtype == np.result_type(kind, np.complex64)
    assert np.abs(found - walked(told, which, changes, x)).max() < KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("rank", [2, 5])
def test_blocks_of_phases(layout, kind, rank):
    """Within one node, from node to node and at the outputs, in any order."""
    told, x, rng = setting(layout), light(layout, kind), np.random.default_rng(5)
    which = np.stack([rng.permutation(layout.phases)[: min(rank, layout.phases)] for _ in range(30)])
    which[0, :2] = layout.nodes, 0  # phi and theta of the first node
    which[0, 2:] = np.setdiff1d(np.arange(layout.phases), which[0, :2])[: which.shape[1] - 2]
    changes = rng.normal(0, 2, which.shape)
    assert np.abs(probes.fields(told, which, changes, x) - walked(told, which, changes, x)).max() < 3 * KINDS[kind]


@pytest.mark.parametrize("rank", [1, 3])
def test_chunks_and_groups_do_not_change_the_answer(rank, monkeypatch):
    layout = Layout(6)
    told, x, rng = setting(layout), light(layout, "float32", 40), np.random.default_rng(6)
    which = np.stack([rng.permutation(layout.phases)[:rank] for _ in range(25)])
    changes = rng.normal(0, 1, which.shape)
    whole = probes.fields(told, which, changes, x)
    met = list(probes.chunks(told, which, changes, x, chunk_bytes=4 * 40 * 6 * 8))
    assert [(some.start, some.stop) for some, _ in met] == [(i, min(i + 4, 25)) for i in range(0, 25, 4)]
    monkeypatch.setattr(probes, "_HELD_BYTES", 7 * 8 * (40 + 4 * 6))
    assert np.abs(probes.fields(told, which, changes, x) - whole).max() < 1e-6
    monkeypatch.setattr(probes, "_CHUNK_BYTES", 1)
    assert np.abs(probes.fields(told, which, changes, x) - whole).max() < 1e-6


def test_factors_are_fields_and_their_way_out():
    layout = Layout(5)
    told, x = setting(layout), light(layout, "complex128")
    which = np.array([0, 7, 13, 24])
    made = probes.factors(told, which, x)
    assert np.abs(made.base - x @ told.matrix.T).max() < 1e-13
    for s, shifter in enumerate(which):
        moved = made.base + (np.exp(0.7j) - 1) * made.met[s][:, None] * made.reached[s]
        assert np.abs(moved - walked(told, np.array([[shifter]]), np.array([[0.7]]), x)[0]).max() < 1e-13


def test_weighed_factors_are_derivatives_of_linear_functionals():
    layout = Layout(5)
    told, x = setting(layout), light(layout, "complex128")
    weights = light(layout, "complex128")[::-1]
    which = np.arange(layout.phases)
    slope = 1j * probes.factors(told, which, x).weighed(weights)
    step = 1e-6
    plus, minus = (walked(told, which[:, None], np.full((layout.phases, 1), by), x) for by in (step, -step))
    assert np.abs(slope - ((plus - minus) * weights).sum(axis=(1, 2)) / (2 * step)).max() < 1e-7


def test_no_probes_are_no_work():
    told = setting(Layout(4))
    assert probes.fields(told, np.zeros(0, int), np.zeros(0), light(Layout(4), "float32")).shape == (0, 21, 4)


def test_bad_probes_are_refused():
    told, x = setting(Layout(4)), light(Layout(4), "float32")
    with pytest.raises(ValueError, match="shifters are numbered 0 to 15, not 3 to 16"):
        probes.fields(told, np.array([3, 16]), np.zeros(2), x)
    with pytest.raises(ValueError, match="changes the same shifter twice: add the changes up"):
        probes.fields(told, np.array([[3, 3]]), np.zeros((1, 2)), x)
    with pytest.raises(ValueError, match=r"of one shape, .* not \[2\] and \[3\]"):
        probes.fields(told, np.arange(2), np.zeros(3), x)
    with pytest.raises(ValueError, match="shifters are numbered 0 to 15, not -1 to 2"):
        probes.factors(told, np.array([2, -1]), x)
