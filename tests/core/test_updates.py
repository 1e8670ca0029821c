"""Leaf rules: what each needs, what it costs, and how close it comes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hzo_hil import Opaque, Stage
from hzo_hil.devices.api import ParameterSpec, StageSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, FakeStage
from hzo_hil.updates import rule_for
from hzo_hil.updates.delta import DeltaRule
from hzo_hil.updates.probing import ParameterProbing
from tests.core.nets import Affine, OnHost, affine_opaque, cosine, gradients, inputs, leaf_rule, loss_of, worst

TWO_PI = 2 * math.pi


def interferometer(size: int, phases: np.ndarray, **parameter) -> FakeDevice:
    """Each output is x cos(phase)^2 + (next x) sin(phase)^2: smooth and 2 pi periodic in its phase."""
    spec = StageSpec("phases", size, size, (ParameterSpec("phase", (size,), **parameter),), linear=True)

    def run(a, p):
        share = np.cos(p["phase"]) ** 2
        return a * share + np.roll(a, 1, axis=1) * (1 - share) + 0.3 * np.sin(p["phase"])

    return FakeDevice.functions([FakeStage(spec, run, {"phase": phases})], dtype="float64")


class Interferometer(torch.nn.Module):
    def forward(self, inputs, phase):
        share = torch.cos(phase) ** 2
        return inputs * share + inputs.roll(1, 1) * (1 - share) + 0.3 * torch.sin(phase)


def probed(
    device: FakeDevice, rule: ParameterProbing, phases: np.ndarray
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The gradient of the phases by probing, and by torch at the values that were written."""
    module = Opaque([Stage(device, 0, leaf=rule, initial={"phase": phases})]).double()
    x = inputs(5, len(phases), grad=False)
    loss_of(module(x)).backward()
    at = torch.as_tensor(module.written.values[0]["phase"]).requires_grad_()
    expected = torch.autograd.grad(loss_of(Interferometer()(x, at)), at)
    return [module.stages[0].phase.grad], list(expected)


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
def test_probing_divides_by_the_step_that_the_converter_realises(probes):
    """An uneven converter moves phases by other steps than asked: up to 60 % wrong if divided by what was asked."""
    levels = tuple(np.arange(81) ** 2 * (TWO_PI / 80**2))
    phases = np.array([0.7, 2.0, 3.1, 4.4, 5.5, 1.2])
    found, expected = probed(
        interferometer(6, phases, levels=levels, high=7.0, low=0.0), ParameterProbing(probes, 0.12), phases
    )
    assert worst(found, expected) < 0.08
    assert cosine(found, expected) > 0.997


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
def test_probing_across_the_seam_of_a_period(probes):
    phases = np.array([0.0, 1e-4, TWO_PI - 1e-4, 3.0, 0.003])
    device = interferometer(5, phases, low=0.0, high=TWO_PI, period=TWO_PI, edge="wrap")
    found, expected = probed(device, ParameterProbing(probes, 0.01), phases)
    assert worst(found, expected) < 1e-3
    written = np.concatenate([w.parameters["phase"] for w in device.writes])
    assert written.min() >= 0 and written.max() <= TWO_PI


@pytest.mark.parametrize("edge", ["clip", "reflect"])
@pytest.mark.parametrize("probes", ["coordinate", "hadamard", "rademacher:400"])
def test_probing_at_the_ends_of_a_range(probes, edge):
    """One-sided steps, or for random sets a base moved inside: O(eps). Divided by the planned step, ends would be half.

    Rademacher with 400 probes of 4 phases errs by sqrt(3 / 400) = 8.7 %; the bound of 30 % is three of them (seeded).
    """
    phases = np.array([0.5, 2.5, 1.5, 2.5])
    device = interferometer(4, phases, low=0.5, high=2.5, edge=edge)
    found, expected = probed(device, ParameterProbing(probes, 0.01), phases)
    assert worst(found, expected) < (0.3 if probes.startswith("rademacher") else 0.03)
    written = np.concatenate([w.parameters["phase"] for w in device.writes])
    assert written.min() >= 0.5 and written.max() <= 2.5


def test_probing_costs_two_writes_and_two_queries_a_probe():
    for probes, count in (("coordinate", 6), ("hadamard", 8), ("gaussian:3", 3)):
        phases = np.linspace(1, 2, 6)
        device = interferometer(6, phases)
        module = Opaque([Stage(device, 0, leaf=ParameterProbing(probes), initial={"phase": phases})]).double()
        loss_of(module(inputs(5, 6, grad=False))).backward()
        leaf = module.ledger.accounts["leaf"]
        assert (leaf.writes, leaf.queries) == (2 * count, 2 * count * 5)


def test_default_steps_of_parameters_are_two_converter_steps_or_a_tenth_of_a_radian():
    rule = ParameterProbing()
    assert rule._step(ParameterSpec("w", (1,))) == 0.01
    assert rule._step(ParameterSpec("phase", (1,), period=TWO_PI)) == 0.1
    assert rule._step(ParameterSpec("w", (1,), levels=(0.0, 0.1, 0.3))) == pytest.approx(0.4)


# ---- the delta rule


def curved(levels: tuple[float, ...] | None = None, **parameter) -> FakeDevice:
    return FakeDevice.mlp([3, 4], "tanh", dtype="float64", parameter={"levels": levels, **parameter})


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "sigmoid"])
def test_known_derivatives(activation):
    module = affine_opaque([3, 4, 2], activation, "delta", seed=2)
    x = inputs(6, 3)
    parameters = list(module.parameters())
    assert worst(gradients(module, parameters, x), gradients(OnHost(module, activation), parameters, x)) < 1e-7


def test_a_derivative_of_your_own():
    device = FakeDevice.mlp([3, 4], "softplus", dtype="float64")
    module = Opaque([Stage(device, 0, leaf=DeltaRule(lambda y: 1 - torch.exp(-y)))]).double()
    weight, bias = module.parameters()
    x = inputs(6, 3)
    expected = gradients(lambda x: torch.nn.functional.softplus(x @ weight.T + bias), [weight, bias], x)
    assert worst(gradients(module, [weight, bias], x), expected) < 1e-7


@pytest.mark.parametrize(
    "parameter",
    [
        {},
        {"levels": tuple(np.linspace(-2, 2, 129) + 0.004 * np.sin(np.arange(129)))},  # an uneven converter
        {"low": -3.0, "high": 0.1},  # half of the biases sit at the upper end
        {"low": -3.0, "high": 0.1, "edge": "reflect"},
    ],
)
def test_measured_derivatives_divide_by_the_realised_shift(parameter):
    device = curved(**parameter)
    initial = {"weight": np.linspace(-1, 0.1, 12).reshape(4, 3), "bias": np.array([0.1, -0.5, 0.1, 0.0])}
    module = Opaque([Stage(device, 0, leaf=DeltaRule("measured", eps=0.03), initial=initial)]).double()
    x = inputs(8, 3, grad=False)
    loss_of(module(x)).backward()
    held = [torch.as_tensor(v).requires_grad_() for v in module.written.values[0].values()]
    expected = torch.autograd.grad(loss_of(Affine()(x, *held)), held)
    assert worst([p.grad for p in module.parameters()], list(expected)) < 0.03
    assert (module.ledger.accounts["leaf"].writes, module.ledger.accounts["leaf"].queries) == (2, 2 * 8)


def test_a_parameter_of_a_probe_is_put_back_before_the_next_forward():
    module = affine_opaque([3, 4, 2], leaf="measured")
    x = inputs(2, 3, grad=False)
    first = module(x)
    first.sum().backward()
    assert torch.equal(module(x), first)


# ---- which rule, and which not


def test_auto_takes_the_cheapest_rule_that_applies():
    linear = FakeDevice.mlp([3, 3], "identity")
    bent = FakeDevice.mlp([3, 3], "tanh")
    bare = FakeDevice.functions([(StageSpec("bare", 3, 3), lambda a, _: a)])
    chosen = [
        rule_for(Stage(d, 0, twin=t)) for d, t in ((linear, Affine()), (linear, None), (bent, None), (bare, None))
    ]
    assert [type(r).__name__ for r in chosen] == ["LocalAutograd", "DeltaRule", "ParameterProbing", "NoneType"]


@pytest.mark.parametrize(
    ("rule", "device", "words"),
    [
        ("autograd", curved, r"stage 'layer1' asks for local autograd but has no twin\. Give Stage\(twin=module\)"),
        ("delta", lambda: interferometer(3, np.zeros(3)), r".*needs a parameter 'weight' of shape \[3, 3\]"),
        (
            DeltaRule("measured"), lambda: FakeDevice.mlp([2, 2], bias=False),
            r"has no 'bias' to shift: sigma' cannot be measured",
        ),
        (
            DeltaRule("measured", eps=0.01), lambda: curved(tuple(np.linspace(-1, 1, 21))),
            r"a shift of 0\.01 of the bias of stage 'layer1' is smaller than.*Use eps of at least 0\.05",
        ),
        (
            ParameterProbing(eps=0.01), lambda: curved(tuple(np.linspace(-1, 1, 21))),
            r"a probe of 0\.01 on parameter 'weight' of stage 'layer1' is smaller than .*steps \(up to 0\.1\)",
        ),
        (
            ParameterProbing("sphere:9", eps=0.3), lambda: interferometer(4, np.zeros(4), low=0.0, high=1.0),
            r"sphere:9 probes do not fit into the range 0\.\.1 of parameter 'phase'.*coordinate or hadamard",
        ),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_suit_its_stage_is_refused(rule, device, words):
    made = device()
    with pytest.raises(BadInput, match=words):
        Opaque([Stage(made, 0, leaf=rule)])
    assert not made.calls


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: DeltaRule("gelu"),
            r"unknown derivative 'gelu': choose identity, relu, tanh, sigmoid, measured, or give",
        ),
        (lambda: DeltaRule(eps=0), r"eps of the delta rule is 0: it must be positive"),
        (lambda: ParameterProbing(eps=math.nan), r"eps of parameter probing is nan: it must be positive and finite"),
        (lambda: ParameterProbing("spiral"), r"unknown probes 'spiral'"),
    ],
)
def test_rules_that_cannot_be_are_refused(make, words):
    with pytest.raises(BadInput, match=words):
        make()


def test_a_twin_of_the_wrong_shape_is_refused():
    device = FakeDevice.mlp([3, 4], dtype="float64")
    module = Opaque([Stage(device, 0, leaf=leaf_rule("autograd", "tanh"), twin=lambda x, weight, bias: x)]).double()
    with pytest.raises(BadInput, match=r"the twin of stage 'layer1' gives \[2, 3\], the device \[2, 4\]"):
        module(inputs(2, 3)).sum().backward()


def test_a_bias_that_is_not_one_value_an_output_is_refused_by_the_delta_rule():
    parameters = (ParameterSpec("weight", (3, 3)), ParameterSpec("bias", (1,)))
    device = FakeDevice.functions([(StageSpec("odd", 3, 3, parameters), lambda a, p: a @ p["weight"].T + p["bias"])])
    with pytest.raises(BadInput, match=r"the delta rule needs a 'bias' of 3 values, not 1"):
        Opaque([Stage(device, 0, leaf="delta")])
