"""Response curves against their equations, and the stages made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hzo_hil.simulators import noise
from hzo_hil.simulators.converters import uniform_port
from hzo_hil.simulators.curves import CURVES, check_kind, curve_options
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.elementwise import Elementwise
from hzo_hil.simulators.twins import Twin

U = np.linspace(-3, 3, 121)
KEYS = np.arange(400, dtype=np.uint64)


def curve(kind: str, u: np.ndarray, **options: float) -> np.ndarray:
    stage = Elementwise(1, kind, options=options)
    return stage.run(stage.program({}, 0), u[:, None], KEYS[: len(u)])[:, 0]


def test_a_saturable_absorber_obeys_its_law():
    """Transmission exp(-d / (1 + I / s)) of intensities: e^-d in the dark, e^(-d/2) at s, 1 in strong light."""
    for depth, saturation in ((2.0, 1.0), (5.0, 0.3)):
        out = curve("saturable", U, optical_depth=depth, saturation=saturation)
        assert np.allclose(out**2, U**2 * np.exp(-depth / (1 + U**2 / saturation)), atol=1e-13)
    transmission = curve("saturable", np.array([1e-6, math.sqrt(0.3), 1e6]), optical_depth=5.0, saturation=0.3)
    transmission = (transmission / np.array([1e-6, math.sqrt(0.3), 1e6])) ** 2
    assert transmission == pytest.approx([math.exp(-5), math.exp(-2.5), 1.0], rel=1e-9)
    assert np.allclose(curve("saturable", U, optical_depth=0.0), U)


def test_a_tapped_modulator_obeys_its_law():
    """|y|^2 = (1 - a) cos^2(g u^2 / 2 + b / 2) u^2, the magnitude of the published equation."""
    tap, gain, bias = 0.2, 1.3, 0.4
    published = 1j * math.sqrt(1 - tap) * np.exp(-1j * (gain * U**2 + bias) / 2) * np.cos((gain * U**2 + bias) / 2) * U
    out = curve("electro_optic_tap", U, tap=tap, phase_gain=gain, bias_phase=bias)
    assert np.allclose(np.abs(out), np.abs(published), atol=1e-14)
    assert np.allclose(curve("electro_optic_tap", U, bias_phase=0.0, phase_gain=0.0, tap=0.0), U)


def test_a_tapped_modulator_at_its_null_opens_with_light():
    """At b = pi weak light is blocked, and an intensity of pi / g sees the modulator fully open."""
    weak, full = 1e-3, math.sqrt(math.pi / 2.5)
    out = curve("electro_optic_tap", np.array([weak, full]), tap=0.1, phase_gain=2.5)
    assert abs(out[0]) < 1e-5 * weak
    assert abs(out[1]) == pytest.approx(math.sqrt(0.9) * full)


def test_the_simple_modulator_is_the_limit_of_a_strong_drive():
    assert curve("electro_optic", np.array([-50.0, 50.0])) == pytest.approx([-1, 1])
    assert curve("electro_optic", np.array([1e-5])) == pytest.approx([1e-5 * math.pi / 2])


def test_a_limiter_is_linear_between_its_ends():
    assert np.array_equal(curve("limiter", U, limit=0.7), np.clip(U, -0.7, 0.7))
    assert np.array_equal(curve("limiter", U), np.clip(U, -1, 1))


def test_a_square_law_detector_gives_the_power_of_the_field():
    made = Detector("intensity", full_scale=2e-3, responsivity=0.5)
    assert np.allclose(made.current(curve("square", U)), 0.5 * 2e-3 * U**2)


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_curve_runs_on_tensors_with_noise_and_converter(kind, dtype):
    stage = Elementwise(5, kind, 0.8, Detector(noise_std=0.05), uniform_port(6, -2.0, 2.0), name="bend")
    inputs = np.random.default_rng(0).uniform(-3, 3, (400, 5)).astype(dtype)
    found = stage.run(None, inputs, KEYS)
    tensor = torch.from_numpy(inputs.copy())
    answer = stage.run(None, tensor, noise.keys_like(KEYS, tensor))
    assert answer.dtype == tensor.dtype
    assert np.allclose(answer.numpy(), found, atol=3e-6 if dtype == np.float32 else 1e-13)
    assert np.array_equal(tensor.numpy(), inputs)


OPTIONS = {"saturable": (3.0, 0.5), "electro_optic_tap": (0.3, 2.0, 1.0), "limiter": (0.6,)}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_reach_the_twin_and_its_gradient(kind):
    stage = Elementwise(3, kind, 1.1, options=dict(zip(curve_options(kind), OPTIONS[kind], strict=True)))
    inputs = torch.tensor(np.random.default_rng(0).uniform(-1, 1, (4, 3)), requires_grad=True)
    twin = Twin(stage)
    assert torch.autograd.gradcheck(twin, (inputs,))
    plain = Twin(Elementwise(3, kind, 1.1))(inputs)
    assert not torch.allclose(twin(inputs), plain, atol=1e-3)
    assert np.allclose(twin(inputs).detach().numpy(), stage.run(None, inputs.detach().numpy(), KEYS[:4]), atol=1e-14)


def test_settings_tell_the_options():
    stage = Elementwise(3, "saturable", options={"optical_depth": 3.0})
    assert stage.settings()["options"] == {"optical_depth": 3.0}
    assert len({stage, Elementwise(3, "saturable", options={"optical_depth": 3.0})}) == 1


def test_every_curve_has_a_page_of_its_own():
    for kind, function in CURVES.items():
        assert function.__doc__, kind
        assert "y = " in function.__doc__, kind


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="activation 'tanh' has no option 'limit': it takes none"):
        Elementwise(2, "tanh", options={"limit": 1.0})
    with pytest.raises(ValueError, match="has no option 'depth': it takes optical_depth, saturation"):
        Elementwise(2, "saturable", options={"depth": 1.0})
    with pytest.raises(ValueError, match="activation 'limiter': limit must be above 0, not 0"):
        Elementwise(2, "limiter", options={"limit": 0})
    with pytest.raises(ValueError, match="tap must be from 0 to 1, not 1.5"):
        Elementwise(2, "electro_optic_tap", options={"tap": 1.5})
    with pytest.raises(ValueError, match="optical_depth must be from 0 to inf, not -1"):
        check_kind("saturable", "activation", {"optical_depth": -1})
    with pytest.raises(ValueError, match="bias_phase must be a finite number, not 'pi'"):
        check_kind("electro_optic_tap", "activation", {"bias_phase": "pi"})
