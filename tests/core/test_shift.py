"""Parameter shift: exact where outputs are short trigonometric sums, and paid for by the setting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hzo_hil import Opaque, Stage
from hzo_hil.devices.api import BoundarySpec, ParameterSpec, Segment, StageSpec
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.devices.fake import FakeDevice, FakeStage
from hzo_hil.devices.manifest import from_json, to_json
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import chip
from hzo_hil.simulators.twins import Twin
from hzo_hil.updates import rule_for
from hzo_hil.updates.probing import ParameterProbing
from hzo_hil.updates.shift import ParameterShift, weights
from tests.core.nets import cosine, differing, inputs, loss_of, spent_and_predicted, worst

TWO_PI = 2 * math.pi
COSTS = {"virtual_time": True, "latency_s": 1e-3, "query_s": 3e-6, "settling_s": 0.02}


def sinusoids(size: int, phases: np.ndarray, harmonics: int = 1, offsets: bool = False, **parameter) -> FakeDevice:
    """Each output mixes inputs by sines of its phase, of as many harmonics."""
    declared = {"low": 0.0, "high": TWO_PI, "period": TWO_PI, "edge": "wrap", "harmonics": harmonics} | parameter
    specs = [ParameterSpec("phase", (size,), **declared)]
    if offsets:
        specs.append(ParameterSpec("offset", (size,)))
    values = {"phase": phases} | ({"offset": np.linspace(-1, 1, size)} if offsets else {})

    def run(a, p):
        found = a + np.roll(a, 1, axis=1) * np.cos(harmonics * p["phase"] + 0.3) + 0.4 * np.sin(p["phase"])
        return found + np.tanh(p["offset"]) if offsets else found

    spec = StageSpec("sinusoids", size, size, tuple(specs), linear=True)
    return FakeDevice.functions([FakeStage(spec, run, values)], dtype="float64", **COSTS)


class Sinusoids(torch.nn.Module):
    def __init__(self, harmonics: int) -> None:
        super().__init__()
        self.harmonics = harmonics

    def forward(self, inputs, phase, offset=None):
        found = inputs + inputs.roll(1, 1) * torch.cos(self.harmonics * phase + 0.3) + 0.4 * torch.sin(phase)
        return found if offset is None else found + torch.tanh(offset)


def shifted(device: FakeDevice, phases: np.ndarray, harmonics: int, rule=None, **initial):
    """Gradients by shifts on the device, and by torch at the values as written."""
    module = Opaque([Stage(device, 0, leaf=rule or "shift", initial={"phase": phases, **initial})]).double()
    x = inputs(5, len(phases), grad=False)
    loss_of(module(x)).backward()
    at = {n: torch.as_tensor(v).requires_grad_() for n, v in module.written.values[0].items()}
    expected = torch.autograd.grad(loss_of(Sinusoids(harmonics)(x, **at)), list(at.values()))
    return module, [p.grad for p in module.parameters()], list(expected)


@pytest.mark.parametrize("harmonics", [1, 2, 3])
def test_the_derivative_is_exact_for_every_number_of_harmonics(harmonics):
    phases = np.array([0.0, 0.7, 2.0, 3.1, 4.4, TWO_PI - 1e-4])
    module, found, expected = shifted(sinusoids(6, phases, harmonics), phases, harmonics)
    assert worst(found, expected) < 1e-9
    leaf = module.ledger.accounts["leaf"]
    assert (leaf.writes, leaf.queries) == (2 * harmonics * 6, 2 * harmonics * 6 * 5)


@pytest.mark.parametrize("harmonics", [1, 2])
def test_uneven_converter_codes_leave_it_exact(harmonics):
    """Weights follow from what was realised: shifts up to 0.35 rad off, and no two alike."""
    levels = tuple(np.arange(19) ** 2 * (TWO_PI / 19**2)) if harmonics == 1 else tuple(np.arange(33) ** 1.3 * 0.0662)
    phases = np.array([0.1, 1.0, 2.2, 3.3, 4.4, 5.5])
    device = sinusoids(6, phases, harmonics, levels=levels, high=7.0)
    _, found, expected = shifted(device, phases, harmonics)
    assert worst(found, expected) < 1e-9


def test_a_range_of_one_period_that_does_not_wrap_is_shifted_from_the_other_side():
    phases = np.array([0.0, 0.2, 3.0, TWO_PI - 0.1, TWO_PI])
    device = sinusoids(5, phases, edge="clip")
    _, found, expected = shifted(device, phases, 1)
    assert worst(found, expected) < 1e-9
    written = np.concatenate([w.parameters["phase"] for w in device.writes])
    assert written.min() >= 0 and written.max() <= TWO_PI


def test_what_is_not_sinusoidal_is_probed_beside_it_and_costs_what_was_forecast():
    phases = np.array([0.3, 1.7, 4.0, 5.2])
    device = sinusoids(4, phases, offsets=True)
    rule = ParameterShift("hadamard", 1e-4)
    module, found, expected = shifted(device, phases, 1, rule, offset=np.linspace(-1, 1, 4))
    assert worst(found, expected) < 1e-6
    assert module.ledger.accounts["leaf"].writes == 2 * 4 + 2 * 4
    spent, predicted = spent_and_predicted(module, inputs(3, 4))
    assert differing(spent, predicted) == []


@pytest.mark.parametrize("detection", ["homodyne", "intensity"])
def test_phases_of_a_mesh_have_one_harmonic_whichever_way_it_is_read(detection):
    models = chip.build("onn", layers=1, ports=4, activation="none", detection=detection)
    device = SimulatedDevice(models, dtype="float64")
    module = Opaque([Stage(device, 0)], seed=3).double()
    assert isinstance(module.rules[0], ParameterShift)
    x = inputs(6, 4, grad=False)
    loss_of(module(x)).backward()
    at = {n: torch.as_tensor(v).requires_grad_() for n, v in module.written.values[0].items()}
    expected = torch.autograd.grad(loss_of(Twin(models[0])(x, **at)), list(at.values()))
    assert worst([p.grad for p in module.parameters()], list(expected)) < 1e-9


def test_under_read_noise_a_shift_is_many_times_better_than_a_small_difference():
    """Noise of 0.05: a difference of 0.1 divides it by 0.2, a shift by 2. Error norms over 100 phases differ by 10 in
    the mean; 5 is missed with a probability far below 1e-6.
    """
    errors = {}
    for name, rule in (("shift", ParameterShift()), ("probing", ParameterProbing("coordinate", 0.1))):
        device = SimulatedDevice(
            chip.build("onn", layers=1, ports=10, activation="none", noise_std=0.05), dtype="float64"
        )
        clean = SimulatedDevice(chip.build("onn", layers=1, ports=10, activation="none"), dtype="float64")
        grads = []
        for chosen in (device, clean):
            module = Opaque([Stage(chosen, 0, leaf=rule)], seed=5).double()
            outputs = module(inputs(8, 10, grad=False))
            outputs.backward(torch.ones_like(outputs))
            grads.append(torch.cat([p.grad for p in module.parameters()]))
        errors[name] = float((grads[0] - grads[1]).norm())
    assert errors["probing"] > 5 * errors["shift"]


def test_a_black_box_shifts_only_what_only_linear_stages_follow():
    device = SimulatedDevice(
        chip.build("onn", layers=2, ports=4, activation="tanh"), inner_boundaries=False, dtype="float64"
    )
    module = Opaque(device, seed=1).double()
    assert module.network.stages[0].segment == Segment(0, 3)
    kept = {n: s.harmonics for n, (_, s) in module.network.stages[0].parameters.items()}
    assert all(h == ("mesh2" in n) for n, h in kept.items())
    x = inputs(6, 4, grad=False)
    loss_of(module(x)).backward()
    found = [p.grad for p in module.parameters()]
    models = device.models

    def host(at):
        first = {n: at[f"mesh1_{n}"] for n in ("theta", "phi", "out_phase")}
        last = {n: at[f"mesh2_{n}"] for n in ("theta", "phi", "out_phase")}
        return Twin(models[2])(Twin(models[1])(Twin(models[0])(x, **first)), **last)

    at = {n: torch.as_tensor(v).requires_grad_() for n, v in module.written.values[0].items()}
    expected = list(torch.autograd.grad(loss_of(host(at)), list(at.values())))
    assert cosine(found, expected) > 0.999
    half = len(found) // 2
    assert worst(found[half:], expected[half:]) < 1e-9
    spent, predicted = spent_and_predicted(module, inputs(3, 4, grad=False))
    assert differing(spent, predicted) == []


def test_weights_reproduce_the_textbook_rule():
    np.testing.assert_allclose(weights(np.array([np.pi / 2, -np.pi / 2]), 1), [0.5, -0.5], atol=1e-12)


def test_auto_takes_the_shift_where_harmonics_are_declared_and_small_differences_elsewhere():
    phases = np.zeros(3)
    assert isinstance(rule_for(Stage(sinusoids(3, phases), 0)), ParameterShift)
    assert isinstance(rule_for(Stage(sinusoids(3, phases, harmonics=1, offsets=True), 0)), ParameterShift)
    plain = sinusoids(3, phases, harmonics=0)
    assert isinstance(rule_for(Stage(plain, 0)), ParameterProbing)
    with pytest.raises(BadInput, match=r"no parameter of stage 'sinusoids' is declared sinusoidal"):
        rule_for(Stage(plain, 0, leaf="shift"))


@pytest.mark.parametrize("parameter", [{"levels": (0.0, 2.0, 4.0, 6.0)}, {"edge": "clip", "high": 4.0}])
def test_converters_and_ranges_too_coarse_for_a_shift_are_refused(parameter):
    with pytest.raises(BadInput, match=r"parameter 'phase' of stage 'sinusoids' has no value within .* leaf='probing'"):
        rule_for(Stage(sinusoids(3, np.zeros(3), **parameter), 0, leaf="shift"))


def test_harmonics_travel_with_the_manifest_and_need_a_period():
    declared = sinusoids(3, np.zeros(3), harmonics=2).capabilities
    assert from_json(to_json(declared)).stages[0].parameters[0].harmonics == 2
    old = to_json(declared)
    del old["stages"][0]["parameters"][0]["harmonics"]
    assert from_json(old).stages[0].parameters[0].harmonics == 0
    with pytest.raises(CapabilityError, match="needs a period above 0"):
        ParameterSpec("phase", (3,), harmonics=1)
    assert BoundarySpec().drive
