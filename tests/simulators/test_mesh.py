"""Fabricated meshes: unitarity, independence of every error and phase, loss, crosstalk, the reach of the DAC."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hzo_hil.simulators import mesh
from hzo_hil.simulators.crosstalk import crosstalk
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors, ReachWarning
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.complex64, 1e-6), (np.complex128, 1e-12)])
@pytest.mark.parametrize(
    ("ports", "scheme"), [(2, "reck"), (33, "clements"), (33, "reck"), (64, "butterfly"), (128, "clements")]
)
def test_walks_and_compiled_matrices_are_unitary(ports, scheme, dtype, tolerance):
    layout = Layout(ports, scheme)
    made = ImperfectMesh(layout, MeshErrors(coupler_std=0.1), seed=3)
    phases = random_phases(layout)
    compiled = made.matrix(phases).astype(dtype)
    # A random unitary instead of the identity: every port carries light everywhere.
    light = np.linalg.qr(np.random.default_rng(5).standard_normal((ports, ports)))[0].astype(compiled.real.dtype)
    walked = made.circuit.walk(phases[None], light)[0]
    assert walked.dtype == dtype
    for u in (compiled, walked):
        assert np.abs(u.astype(np.complex128) @ u.conj().T - np.eye(ports)).max() < tolerance


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


# --- crosstalk ----------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="coupler_std must be finite and not negative, not -0.1"):
        MeshErrors(coupler_std=-0.1)
    with pytest.raises(ValueError, match="unknown bias_law 'cauchy': known are 'normal' and 'uniform'"):
        MeshErrors(bias_law="cauchy")
    with pytest.raises(ValueError, match="noise_clip is 0 \\(none\\) or from 0.1 to 6 standard deviations, not 9"):
        MeshErrors(noise_clip=9.0)
    with pytest.raises(ValueError, match="unknown law of drift 'brown'"):
        MeshErrors(phase_drift_law="brown")


# --- the reach of the DAC ------------------------------------------------------------------------------------------


def test_a_dac_that_cannot_reach_one_period_is_refused():
    with pytest.raises(
        ValueError, match=r"v_max 5.0 V reaches 4.13 rad of the 6.28 rad needed .*: raise v_max to 6.17 V"
    ):
        MeshErrors(phase_bits=8, v_max=5.0)
    with pytest.raises(ValueError, match="unknown short_reach 'clip': known are 'refuse' and 'nearest'"):
        MeshErrors(short_reach="clip")


def test_phases_out_of_reach_are_counted_and_their_cost_stated():
    """v_max 5 V reaches 4.13 rad: 4.5 becomes 4.13, 6.0 is nearer to 0; 2.0 and -3.0 (3.28) are within reach."""
    layout = Layout(2)
    made = ImperfectMesh(layout, MeshErrors(phase_bits=16, v_max=5.0, short_reach="nearest"), index=3)
    top = math.pi * (5.0 / 4.36) ** 2
    worst = 4.5 - top
    rms = math.sqrt((worst**2 + (2 * math.pi - 6.0) ** 2) / 2)
    told = np.array([4.5, 6.0, 2.0, -3.0])
    with pytest.warns(
        ReachWarning,
        match=rf"mesh of stage 3: 2 of 4 phases lie outside .* {rms:.3g} rad \(rms\) and by {worst:.3g} rad at worst",
    ):
        felt = made.phases(told, 0)
    assert np.allclose(felt, [top, 0.0, 2.0, 2 * math.pi - 3.0], atol=1e-3)


def test_a_dac_that_reaches_everything_warns_of_nothing(recwarn):
    made = ImperfectMesh(Layout(4), MeshErrors(phase_bits=8))
    made.phases(random_phases(Layout(4)), 0)
    assert not recwarn.list


def test_many_writes_at_once_are_the_same_writes():
    layout = Layout(5)
    errors = MeshErrors(crosstalk=0.01, phase_bias=0.1, programming_std=0.2, phase_bits=8, gamma_std=0.01)
    made = ImperfectMesh(layout, errors, seed=2)
    told = np.random.default_rng(0).uniform(0, 6, (3, layout.phases))
    keys = np.array([4, 9, 2**63], np.uint64)
    single = [made.phases(vector, int(key)) for vector, key in zip(told, keys, strict=True)]
    assert np.allclose(made.phases(told, keys), single, rtol=0, atol=1e-14)
