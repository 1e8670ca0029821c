"""Decompositions: a unitary's phases give it back, and what is none is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import unitary_group

from hzo_hil.simulators import nulling
from hzo_hil.simulators.clements import decompose, random_orthogonal, svd_program
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout
from hzo_hil.simulators.stages import MeshStage, SVDStage

SCHEMES = ["clements", "reck"]


def realised(phases: np.ndarray, ports: int, scheme: str = "clements") -> np.ndarray:
    return ImperfectMesh(Layout(ports, scheme), MeshErrors()).matrix(phases)


@pytest.mark.parametrize("ports", [2, 3, 4, 7, 16, 33, 64, 256])
def test_a_unitary_comes_back(ports):
    target = unitary_group.rvs(ports, random_state=ports)
    for scheme in SCHEMES:
        phases = decompose(target, scheme=scheme)
        assert 0 <= phases.min() <= phases.max() < 2 * math.pi
        assert np.abs(realised(phases, ports, scheme) - target).max() < 1e-10


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("target", [np.eye(6), np.eye(6)[::-1], np.diag([1, -1, 1j, -1j]), np.eye(5)[[1, 0, 2, 4, 3]]])
def test_sparse_unitaries_come_back(target, scheme):
    assert np.abs(realised(decompose(target, scheme=scheme), len(target), scheme) - target).max() < 1e-10


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ports", [2, 9, 16])
def test_the_kernel_nulls_as_numpy_does(ports, scheme, monkeypatch):
    """Real matrices, too, whose phases are all 0 or pi: rounding must not choose between 0 and 2 pi."""
    for target in (unitary_group.rvs(ports, random_state=1), random_orthogonal(ports, np.random.default_rng(2))):
        usual = decompose(target, scheme=scheme)
        with monkeypatch.context() as patched:
            patched.setattr(nulling, "null", nulling.null_numpy)
            assert np.abs(decompose(target, scheme=scheme) - usual).max() < 1e-11


def test_what_is_not_unitary_is_refused_with_the_distance():
    for scheme in SCHEMES:
        with pytest.raises(ValueError, match=r"not unitary: U U\^H differs from 1 by up to 3 "):
            decompose(2 * np.eye(3), scheme=scheme)
        with pytest.raises(ValueError, match="differs from 1 by up to nan"):
            decompose(np.full((2, 2), np.nan), scheme=scheme)
        with pytest.raises(ValueError, match=r"square matrix, not one of shape \(2, 3\)"):
            decompose(np.ones((2, 3)), scheme=scheme)


def test_a_butterfly_cannot_be_programmed_with_a_matrix():
    with pytest.raises(ValueError, match="scheme 'butterfly' cannot be programmed with a matrix.*train its phases"):
        decompose(np.eye(4), scheme="butterfly")
    with pytest.raises(
        ValueError, match="stage 'svd': meshes of scheme 'butterfly' cannot be programmed with a matrix"
    ):
        SVDStage(4, 4, scheme="butterfly")
    with pytest.raises(ValueError, match="scheme 'butterfly' cannot be programmed"):
        SVDStage(4, 4, trained="phases", scheme="butterfly").phases_of(np.eye(4))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mesh_stage_takes_over_a_unitary(scheme):
    target = unitary_group.rvs(5, random_state=0)
    model = MeshStage(5, scheme=scheme)
    assert np.abs(model.program(model.phases_of(target), 0).matrix - target).max() < 1e-12


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (8, 8)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_svd_programming_is_exact(shape, scheme):
    weight = np.random.default_rng(0).standard_normal(shape)
    first, attenuation, last, scale = svd_program(weight, scheme)
    u, vh = realised(last, shape[0], scheme), realised(first, shape[1], scheme)
    rank = min(shape)
    assert attenuation.max() <= 1
    assert np.abs(scale * (u[:, :rank] * attenuation) @ vh[:rank] - weight).max() < 1e-10


def test_the_zero_matrix_can_be_programmed():
    _, attenuation, _, scale = svd_program(np.zeros((2, 3)))
    assert scale == 1
    assert not attenuation.any()


def test_random_orthogonal_matrices_are_orthogonal():
    q = random_orthogonal(7, np.random.default_rng(0))
    assert np.abs(q @ q.T - np.eye(7)).max() < 1e-14
