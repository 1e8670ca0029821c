"""A convolution with the same kernel everywhere is measured by impulses that share images: exact, counted, averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.colouring import colouring
from hzo_hil.cuttables import ways
from hzo_hil.devices.api import Local
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.manifest import from_json, to_json
from hzo_hil.impulses import Impulses, impulses
from hzo_hil.structure import Footprint
from tests.core.convs import Conv, conv_stage, identity, reaches
from tests.core.nets import differing, gradients, inputs, spent_and_predicted, worst

ROWS = 3
RESNET = [
    (Local.conv(3, 16, (32, 32), 3, padding=1, uniform=True), 1),
    (Local.conv(16, 16, (32, 32), 3, padding=1, uniform=True), 1),
    (Local.conv(16, 32, (32, 32), 3, stride=2, padding=1, uniform=True), 1),
    (Local.conv(32, 32, (16, 16), 3, padding=1, uniform=True), 2),
    (Local.conv(32, 64, (16, 16), 3, stride=2, padding=1, uniform=True), 8),
    (Local.conv(64, 64, (8, 8), 3, padding=1, uniform=True), 16),
]


def opaque(reach: Local, noise: float = 0.0, seed: int = 0, leaf: str = "delta", **plan: Any) -> Opaque:
    made = conv_stage(reach, identity)
    device = FakeDevice.functions(
        [made], dtype="float64", keyed=True, virtual_time=True, script=Script(noise=noise, seed=seed)
    )
    stage = Stage(device, 0, leaf=leaf, twin=Conv(reach, identity), initial=made.initial)
    return Opaque([stage], plan=Plan(**plan), seed=seed).double()


def asked(module: Opaque) -> int:
    return module.ledger.accounts["probes"].queries


@settings(max_examples=150, deadline=None)
@given(reaches(), st.sampled_from(["central", "forward", "richardson"]))
def test_gradients_are_those_of_autograd(reach, differences):
    reach = replace(reach, uniform=True)
    module = opaque(reach, differences=differences)
    x = inputs(ROWS, reach.widths[0])
    (weight,) = module.parameters()
    expected = gradients(lambda x: Conv(reach, identity)(x, weight), [weight], x)
    assert worst(gradients(module, [weight], x), expected) < 1e-12
    colours = module.network.colouring(0, 1, shared=True)
    assert colours.count <= colouring(Footprint((reach,)), reach.widths[0]).count
    once = {"central": 2, "forward": 1, "richardson": 4}[differences]
    assert asked(module) == once * colours.count + (differences == "forward")
    spent, predicted = spent_and_predicted(module, x)
    assert differing(spent, predicted) == []


@settings(max_examples=150, deadline=None)
@given(reaches())
def test_no_two_answers_of_an_image_meet_and_no_tap_is_missed(reach):
    found = impulses(replace(reach, uniform=True))
    if found is None:
        return
    sees = np.ones((1, 1), dtype=bool)
    for axis in Footprint((reach,)).axes:
        sees = np.kron(sees, axis).astype(bool)
    moved = found.masks(0, found.count)
    assert (sees.astype(int) @ (moved != 0).T).max() <= 1
    kernel = torch.zeros(reach.out_channels, reach.in_channels // reach.groups, *reach.kernel, dtype=torch.float64)
    taps = kernel.clone().requires_grad_()
    Conv(reach, identity)(torch.ones(1, reach.widths[0], dtype=torch.float64), taps).sum().backward()
    visible = taps.grad[0].ne(0).flatten().nonzero().flatten().tolist()
    assert set(found._entries.tolist()) == set(visible)


@pytest.mark.parametrize(("reach", "images"), RESNET)
def test_few_images_measure_the_kernels_of_resnet_20(reach, images):
    found = impulses(reach)
    assert found is not None
    assert found.count == images


def test_taps_that_meet_again_round_a_circle_are_measured_by_colours():
    reach = Local.conv(2, 2, (2,), 3, padding=1, circular=True, uniform=True)
    module = opaque(reach)
    assert not isinstance(module.network.colouring(0, 1, shared=True), Impulses)


def test_stages_in_a_row_are_not_uniform():
    reach = Local.conv(1, 1, (8,), 3, padding=1, uniform=True)
    device = FakeDevice.functions([conv_stage(reach, identity, name=n) for n in "ab"], dtype="float64")
    network = Opaque(device, tree="direct").network
    assert isinstance(network.colouring(0, 1, shared=True), Impulses)
    assert not isinstance(network.colouring(0, 2, shared=True), Impulses)


def test_a_bias_is_that_of_a_channel():
    from hzo_hil.devices.simulated import SimulatedDevice
    from hzo_hil.simulators.emulated_conv import EmulatedConv
    from hzo_hil.simulators.model import Reach

    model = EmulatedConv(Reach(2, 3, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1)), bias=True)
    module = Opaque(SimulatedDevice([model], dtype="float64")).double()  # no twin: the rule that fits
    x = inputs(ROWS, model.in_width)
    weight, bias = module.parameters()

    def host(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x.reshape(ROWS, 2, 5, 4), weight, bias, padding=1).flatten(1)

    assert worst(gradients(module, [weight, bias], x), gradients(host, [weight, bias], x)) < 1e-12


def test_a_weight_of_another_shape_is_refused():
    reach = Local.conv(2, 2, (4, 4), 3, padding=1)
    with pytest.raises(BadInput, match=r"'weight' of shape \[32, 32\]"):
        opaque(reach)
    opaque(replace(reach, uniform=True))


@pytest.mark.parametrize("reach", [
    Local.conv(2, 3, (12, 12), 3, padding=1, uniform=True),
    Local.conv(3, 2, (9, 8), 3, stride=2, padding=1, uniform=True),
    Local.conv(4, 4, (15,), 3, dilation=2, groups=2, uniform=True),
    Local.conv(2, 2, (9,), 3, padding=1, circular=True, uniform=True),
])  # fmt: skip
def test_noise_is_as_the_planner_forecasts(reach):
    """Variance over 400 devices against the forecast: +- 5 standard errors (a chi squared with at least 400 degrees of
    freedom each), false-alarm rate below 1e-5 a geometry. The targets are random signs, so that their energy is spread
    evenly."""
    noise, seeds = 0.1, 400
    generator = torch.Generator().manual_seed(1)
    top = torch.randint(0, 2, (1, reach.widths[1]), generator=generator).double() * 2 - 1
    x = torch.zeros(1, reach.widths[0], dtype=torch.float64)
    energies = []
    for seed in range(seeds):
        module = opaque(reach, noise, seed, eps=0.5)
        image = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(module(image), [image], top)
        (exact,) = torch.autograd.grad(Conv(reach, identity)(image, module.stages[0].weight), [image], top)
        energies.append(float(((found - exact) ** 2).sum()))
    (way,) = ways(module.network, 0, 1, 1)
    expected = noise**2 / (2 * 0.5**2) * way.decoder * float((top**2).sum())
    spread = np.std(energies, ddof=1) / np.sqrt(seeds)
    assert abs(np.mean(energies) - expected) < 5 * spread
    assert spread < 0.1 * expected


def test_the_word_survives_the_wire_and_older_descriptions_lack_it():
    reach = Local.conv(2, 3, (6, 6), 3, padding=1)
    for one in (reach, replace(reach, uniform=True)):
        described = to_json(opaque(one, leaf="autograd").network.stages[0].device.capabilities)
        assert ("uniform" in described["stages"][0]["structure"]) == one.uniform
        assert from_json(described).stages[0].structure == one
    described["stages"][0]["structure"]["uniform"] = "yes"
    with pytest.raises(CapabilityError, match=r"stage 0, structure, uniform: expected true or false, not 'yes'"):
        from_json(described)


def test_a_checkpoint_from_before_the_declaration_is_measured_anew(tmp_path):
    reach = Local.conv(2, 3, (6, 6), 3, padding=1)
    before = opaque(reach, leaf="autograd")
    x = inputs(ROWS, reach.widths[0])
    before(x).sum().backward()
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after = opaque(replace(reach, uniform=True))
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    after(x).sum().backward()
    assert asked(after) == 2 * after.network.colouring(0, 1, shared=True).count
    torch.save(after.state_dict(), tmp_path / "state.pt")
    again = opaque(replace(reach, uniform=True))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again(x).sum().backward()
    assert asked(again) == 0  # what was measured of this one still holds
