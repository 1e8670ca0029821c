"""Meshes: unitarity, independence of every error and phase, loss, decomposition, crosstalk."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import unitary_group

from hzo_hil.simulators import mesh
from hzo_hil.simulators.clements import decompose, random_orthogonal, svd_program
from hzo_hil.simulators.crosstalk import crosstalk
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.mesh import Layout


def random_phases(layout: Layout, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 2 * math.pi, layout.phases)


def matrix(layout: Layout, phases: np.ndarray, **errors) -> np.ndarray:
    return mesh.unitary(np, layout.gather, *layout.split(phases), **errors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("ports", [2, 3, 8, 33])
def test_a_mesh_without_loss_is_unitary(ports, dtype, tolerance):
    layout = Layout(ports)
    couplers = np.random.default_rng(1).normal(0, 0.1, (2, layout.nodes)).astype(dtype)
    u = matrix(layout, random_phases(layout).astype(dtype), errors=(couplers[0], couplers[1]))
    assert u.dtype == np.result_type(dtype, np.complex64)
    assert np.abs(u @ u.conj().T - np.eye(ports)).max() < tolerance * math.sqrt(ports)


def test_a_node_is_two_couplers_and_two_shifters():
    theta, phi, first, second = 0.7, 1.9, 0.03, -0.08

    def coupler(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), 1j * math.sin(angle)], [1j * math.sin(angle), math.cos(angle)]])

    def shifter(phase: float) -> np.ndarray:
        return np.diag([np.exp(1j * phase), 1])

    expected = coupler(math.pi / 4 + second) @ shifter(theta) @ coupler(math.pi / 4 + first) @ shifter(phi)
    found = mesh.nodes(np, *np.array([[theta], [phi]]), (np.array([first]), np.array([second])))
    assert np.allclose(np.ravel(found), expected.ravel(), atol=1e-15)
    perfect = mesh.nodes(np, *np.array([[theta], [phi]]))
    assert np.allclose(perfect, mesh.nodes(np, *np.array([[theta], [phi]]), (np.zeros(1), np.zeros(1))), atol=1e-15)


@given(ports=st.integers(2, 9))
def test_the_layout_is_rectangular(ports):
    layout = Layout(ports)
    assert len(layout.places) == layout.nodes
    assert all(upper % 2 == column % 2 for column, upper in layout.places)
    index, partner = layout.gather
    assert np.array_equal(np.take_along_axis(partner, partner, axis=1), np.tile(np.arange(ports), (ports, 1)))
    assert sorted(index[index < 2 * layout.nodes]) == list(range(2 * layout.nodes))


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_loss_never_amplifies(spread):
    """Even where the spread of the loss map is far larger than its mean."""
    layout = Layout(12)
    lossy = ImperfectMesh(layout, MeshErrors(loss_db=0.3, loss_std_db=spread, coupler_std=0.1), seed=4)
    gains = np.linalg.svd(lossy.matrix(random_phases(layout)), compute_uv=False)
    assert gains.max() <= 1 + 1e-12
    assert gains.min() < 0.99


def test_equal_loss_on_every_path_scales_the_power():
    layout = Layout(2)  # one node: every path crosses exactly one
    u = ImperfectMesh(layout, MeshErrors(loss_db=3.0)).matrix(random_phases(layout))
    assert np.allclose(u.conj().T @ u, 10**-0.3 * np.eye(2), atol=1e-12)


def test_both_couplers_of_a_node_have_errors_of_their_own():
    """Correlation of 2016 pairs; |z| < 5: false alarm 6e-7."""
    first, second = ImperfectMesh(Layout(64), MeshErrors(coupler_std=0.02), seed=1)._couplers
    assert abs(np.corrcoef(first, second)[0, 1]) * math.sqrt(len(first)) < 5
    assert np.std(first) == pytest.approx(0.02, rel=0.1)


def test_theta_and_phi_have_errors_of_their_own():
    """Correlation of 2016 pairs, of biases and of programming noise; |z| < 5: false alarm 1.2e-6."""
    layout = Layout(64)
    made = ImperfectMesh(layout, MeshErrors(phase_bias=0.1, programming_std=0.1), seed=1)
    zero = np.zeros(layout.phases)
    for errors in (made._bias, made.phases(zero, 3) - made._bias):
        theta, phi, _ = layout.split(errors)
        assert abs(np.corrcoef(theta, phi)[0, 1]) * math.sqrt(layout.nodes) < 5


def test_programming_noise_has_its_strength_and_follows_its_key():
    """Mean and spread of 4096 draws, |z| < 5: false alarm 1.2e-6."""
    layout = Layout(64)
    made = ImperfectMesh(layout, MeshErrors(programming_std=0.3))
    told = random_phases(layout)
    noise = made.phases(told, 5) - told
    n = noise.size
    assert np.array_equal(made.phases(told, 5), made.phases(told, 5))
    assert not np.allclose(made.phases(told, 6), made.phases(told, 5))
    assert abs(noise.mean()) / 0.3 * n**0.5 < 5
    assert abs(noise.var() / 0.09 - 1) * (n / 2) ** 0.5 < 5


@pytest.mark.parametrize("field", ["coupler_std", "phase_bias", "gamma_std", "loss_std_db"])
def test_a_stronger_error_is_the_same_draw_scaled(field):
    attribute = {"coupler_std": "_couplers", "phase_bias": "_bias", "gamma_std": "_gain", "loss_std_db": "_loss"}[field]

    def draw(strength: float) -> np.ndarray:
        value = np.asarray(getattr(ImperfectMesh(Layout(6), MeshErrors(**{field: strength}), seed=2), attribute))
        return {"gamma_std": lambda v: v - 1, "loss_std_db": np.log10}.get(field, lambda v: v)(value)

    assert np.allclose(draw(0.01), 3 * draw(0.01 / 3), rtol=1e-9, atol=1e-15)


def test_other_chips_stages_and_parts_are_other_draws():
    errors = MeshErrors(phase_bias=0.1)
    made = [ImperfectMesh(Layout(4), errors, *place)._bias[0] for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len(set(made)) == 4


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_without_noise_of_their_own_walk_like_the_matrix(rows):
    layout = Layout(5)
    made = ImperfectMesh(layout, MeshErrors(coupler_std=0.1, loss_db=0.2))
    phases = random_phases(layout)
    fields = np.random.default_rng(3).standard_normal((rows, 5))
    walked = made.walk_rows(fields, phases, np.arange(rows, dtype=np.uint64))
    assert np.allclose(walked, fields @ made.matrix(phases).T, atol=1e-12)


def test_shot_phase_noise_is_drawn_for_each_row_and_in_chunks(monkeypatch):
    layout = Layout(6)
    made = ImperfectMesh(layout, MeshErrors(shot_phase_std=0.1))
    phases, keys = random_phases(layout), np.arange(50, dtype=np.uint64)
    fields = np.ones((50, 6))
    whole = made.walk_rows(fields, phases, keys)
    monkeypatch.setattr("hzo_hil.simulators.imperfect._WALK_BYTES", 32 * 36 * 7)
    assert np.array_equal(made.walk_rows(fields, phases, keys), whole)
    assert len(np.unique(np.abs(whole[:, 0]).round(12))) == 50


# --- decomposition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ports", [2, 3, 4, 7, 16, 32, 64])
def test_decomposition_gives_the_unitary_back(ports):
    target = unitary_group.rvs(ports, random_state=ports)
    phases = decompose(target)
    assert phases.min() >= 0
    assert phases.max() < 2 * math.pi
    assert np.abs(matrix(Layout(ports), phases) - target).max() < 1e-10


@pytest.mark.parametrize("target", [np.eye(6), np.eye(6)[::-1], np.diag([1, -1, 1j, -1j]), np.eye(5)[[1, 0, 2, 4, 3]]])
def test_decomposition_of_sparse_unitaries(target):
    assert np.abs(matrix(Layout(len(target)), decompose(target)) - target).max() < 1e-10


def test_what_is_not_unitary_is_refused_with_the_distance():
    with pytest.raises(ValueError, match=r"not unitary: U U\^H differs from 1 by up to 3 "):
        decompose(2 * np.eye(3))
    with pytest.raises(ValueError, match="differs from 1 by up to nan"):
        decompose(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match=r"square matrix, not one of shape \(2, 3\)"):
        decompose(np.ones((2, 3)))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (8, 8)])
def test_svd_programming_is_exact(shape):
    weight = np.random.default_rng(0).standard_normal(shape)
    first, attenuation, last, scale = svd_program(weight)
    u, vh = matrix(Layout(shape[0]), last), matrix(Layout(shape[1]), first)
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


# --- crosstalk ----------------------------------------------------------------------------------------------------


def test_crosstalk_follows_the_layout():
    """Four ports: columns of 2, 1, 2, 1 nodes, numbered 0-1, 2, 3-4, 5; phi follows theta, then the outputs."""
    layout = Layout(4)
    found = crosstalk(layout, 0.005).toarray()
    pairs = {(i, 6 + i) for i in range(6)} | {(0, 1), (3, 4), (6, 7), (9, 10)} | {(12, 13), (13, 14), (14, 15)}
    expected = np.eye(16)
    for i, j in pairs:
        expected[i, j] = expected[j, i] = 0.005
    assert np.array_equal(found, expected)


def test_crosstalk_reaches_the_phases_before_the_bias():
    layout = Layout(4)
    errors = MeshErrors(crosstalk=0.01, phase_bias=0.2)
    made, told = ImperfectMesh(layout, errors, seed=1), random_phases(layout)
    assert np.allclose(made.phases(told, 0), crosstalk(layout, 0.01) @ told + made._bias, atol=1e-14)


def test_calibration_absorbs_the_crosstalk_of_its_operating_point():
    layout = Layout(4)
    made = ImperfectMesh(layout, MeshErrors(crosstalk=0.01, calibrated_at=2.0))
    held, told = np.full(layout.phases, 2.0), random_phases(layout)
    assert np.allclose(made.phases(held, 0), held, atol=1e-14)
    assert np.allclose(made.phases(told, 0) - held, crosstalk(layout, 0.01) @ (told - held), atol=1e-14)


def test_bad_meshes_are_refused():
    with pytest.raises(ValueError, match="at least 2 ports, not 1"):
        Layout(1)
    with pytest.raises(ValueError, match="coupler_std must be finite and not negative, not -0.1"):
        MeshErrors(coupler_std=-0.1)
    with pytest.raises(ValueError, match="unknown bias_law 'cauchy': known are 'normal' and 'uniform'"):
        MeshErrors(bias_law="cauchy")
