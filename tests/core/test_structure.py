"""Reaches compose as Jacobians multiply; colours are exact and as few as the closed forms say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hzo_hil import Codec, Opaque, Plan, Stage
from hzo_hil.colouring import colouring
from hzo_hil.devices.api import BoundarySpec, Capabilities, Local, StageSpec
from hzo_hil.devices.errors import CapabilityError
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.devices.manifest import from_json, to_json
from hzo_hil.structure import Footprint, compose
from tests.core.convs import Conv, conv_stage, identity, jacobian, reaches, weight_shape
from tests.core.nets import differing, gradients, inputs, spent_and_predicted, worst


def dense_reach(footprint: Footprint) -> np.ndarray:
    """[out, in] as one array."""
    found = np.ones((1, 1), dtype=bool)
    for axis in footprint.axes:
        found = np.kron(found, axis)
    return found


# ---- reaches and colours


@settings(max_examples=150)
@given(reaches(), st.integers(0, 2**32 - 1))
def test_colours_are_exact_for_every_convolution(reach, seed):
    """Against the Jacobian that torch has: by numbers weighed on arrival, and by slopes that are kept."""
    rng = np.random.default_rng(seed)
    exact = jacobian(Conv(reach, identity), rng.normal(size=weight_shape(reach)))
    found = colouring(compose([reach]), reach.widths[0])
    slopes = found.masks(0, found.count) @ exact.T
    targets = rng.normal(size=(3, reach.widths[1]))
    weighed = np.stack([found.reduce(c, slopes[c] * targets) for c in range(found.count)], axis=1)
    np.testing.assert_allclose(found.place(weighed), targets @ exact, atol=1e-12)
    np.testing.assert_allclose(found.apply(slopes, targets), targets @ exact, atol=1e-12)


@settings(max_examples=100)
@given(reaches())
def test_inputs_of_one_colour_have_no_output_in_common(reach):
    footprint = compose([reach])
    seen = dense_reach(footprint).astype(int)
    masks = colouring(footprint, reach.widths[0]).masks(0, count(reach))
    assert (masks @ seen.T).max() <= 1
    np.testing.assert_array_equal(masks.sum(0), seen.any(0))


@settings(max_examples=60)
@given(st.data())
def test_a_reach_of_two_is_that_of_the_product(data):
    """Positive weights: nothing cancels, so that the product's zeros are the reach's."""
    first = data.draw(reaches())
    second = data.draw(reaches(in_channels=first.out_channels, shape=first.out_shape))
    both = [jacobian(Conv(r, identity), np.ones(weight_shape(r))) for r in (first, second)]
    footprint = compose([first, "diagonal", second])
    np.testing.assert_array_equal(dense_reach(footprint), both[1] @ both[0] != 0)
    assert footprint.widths == (first.widths[0], second.widths[1])


def count(*reaches_: Local) -> int:
    return colouring(compose(reaches_), 0).count


@pytest.mark.parametrize(
    ("reach", "colours"),
    [
        (Local.conv(3, 8, (32, 32), 3, padding=1), 3 * 9),
        (Local.conv(2, 8, (32, 32), 3, padding=1, circular=True), 2 * 16),  # 32 is no multiple of 3
        (Local.conv(2, 8, (33, 33), 3, padding=1, circular=True), 2 * 9),
        (Local.conv(2, 8, (32, 32), 7, padding=3, circular=True), 2 * 64),
        (Local.conv(4, 8, (9,), 3, padding=2, dilation=2), 4 * 3),
        (Local.conv(4, 8, (8, 8), 3, groups=2), 2 * 9),
        (Local.conv(6, 6, (8, 8), 3, groups=6), 9),  # depth-wise
        (Local.conv(16, 32, (32, 32), 3, stride=2, padding=1), 16 * 9),
        (Local.conv(16, 32, (32, 32), 1, stride=2), 16),
        (Local.conv(4, 4, (2, 5), 5, padding=2), 4 * 2 * 5),  # no more than there are pixels
    ],
)
def test_colours_are_as_few_as_the_closed_form(reach, colours):
    assert count(reach) == colours


def test_two_convolutions_reach_as_far_as_both_together():
    """R = 5 for a block of two: C min(R, H) min(R, W)."""
    one = Local.conv(16, 16, (32, 32), 3, padding=1)
    assert count(one, one) == 16 * 25
    assert count(one, one) == count(Local.conv(16, 16, (32, 32), 5, padding=2))
    first, second = Local.conv(16, 32, (32, 32), 3, stride=2, padding=1), Local.conv(32, 32, (16, 16), 3, padding=1)
    whole = Local.conv(16, 32, (32, 32), 7, stride=2, padding=3)
    for a, b in zip(compose([first, second]).axes, compose([whole]).axes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_structures_compose():
    reach = Local.conv(2, 2, (4, 4), 3, padding=1)
    assert compose(["diagonal", "diagonal"]) == "diagonal"
    assert compose(["diagonal", "dense"]) == compose([reach, "dense"]) == "dense"
    assert compose(["diagonal", reach]) == compose([reach, "diagonal"]) == Footprint((reach,))
    assert compose([compose([reach]), reach]) == compose([reach, reach])
    other = Local.conv(1, 1, (32,), 3)  # as many values, laid out otherwise
    assert compose([reach, other]) == "dense"


# ---- gradients by queries


def gradient_error(reach: Local, plan: Plan, boundary: BoundarySpec, low: float, high: float) -> float:
    """Of a convolution behind a curve and one before it, against autograd; inputs in low..high."""
    made = [conv_stage(reach), conv_stage(same_size(reach), torch.sin, seed=1, name="second")]
    device = FakeDevice.functions(made, dtype="float64", boundaries=[boundary, BoundarySpec(), BoundarySpec()])
    twins = [Conv(reach), Conv(same_size(reach), torch.sin)]
    stages = [Stage(device, k, twin=twins[k], initial=made[k].initial) for k in range(2)]
    module = Opaque(stages, plan=plan).double()
    x = inputs(3, reach.widths[0]).detach().sigmoid() * (high - low) + low
    parameters = list(module.parameters())
    expected = gradients(lambda x: twins[1](twins[0](x, parameters[0]), parameters[1]), parameters, x)
    return worst(gradients(module, parameters, x), expected)


def same_size(reach: Local) -> Local:
    return Local.conv(reach.out_channels, 2, reach.out_shape, 1)


@settings(max_examples=40, deadline=None)
@given(reaches(), st.sampled_from(["central", "forward", "richardson"]), st.sampled_from(["bisect", "chain"]),
       st.sampled_from(["coordinate", "hadamard"]))  # fmt: skip
def test_gradients_through_convolutions_are_autograds(reach, differences, tree, probes):
    """Hadamard has no meaning where inputs share probes: colours are coordinates whatever the set."""
    plan = Plan(tree, probes, differences=differences)
    error = gradient_error(reach, plan, BoundarySpec(), -1, 1)
    assert error < (1e-5 if differences == "forward" else 1e-7)


@settings(max_examples=20, deadline=None)
@given(reaches(), st.sampled_from(["central", "forward"]))
def test_probes_of_a_colour_may_be_cut_short_one_by_one(reach, differences):
    """Inputs lie close to both ends of the range: each element of a colour is divided by its own realised step."""
    plan = Plan("chain", eps=1e-5, differences=differences)
    assert gradient_error(reach, plan, BoundarySpec(low=-1e-5, high=1e-5), -1e-5, 1e-5) < 1e-3


@settings(max_examples=20, deadline=None)
@given(reaches(), st.integers(2, 40), st.sampled_from(["central", "forward", "richardson"]), st.booleans())
def test_gradients_do_not_depend_on_the_batches(reach, max_batch, differences, linear):
    made = conv_stage(reach, identity if linear else torch.tanh)
    x = inputs(3, reach.widths[0])
    found = []
    for limit in (0, max_batch):
        device = FakeDevice.functions([made], dtype="float64", max_batch=limit)
        module = Opaque(device, differences=differences, eps=0.01).double().requires_grad_(False)
        (found_,) = torch.autograd.grad((module(x) ** 2).sum(), [x])
        found.append(found_)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("differences", ["central", "forward", "richardson"])
@pytest.mark.parametrize("curve", [torch.tanh, identity])
def test_convolutions_cost_what_was_forecast(curve, differences):
    reach = Local.conv(2, 2, (5, 5), 3, padding=1)
    made = [conv_stage(reach, curve, name=f"c{k}") for k in range(3)]
    device = FakeDevice.functions(made, dtype="float64", max_batch=64, virtual_time=True, query_s=1e-3)
    twin = Conv(reach, curve)
    plan = Plan("direct", differences=differences)
    module = Opaque([Stage(device, k, twin=twin) for k in range(3)], plan=plan).double()
    spent, predicted = spent_and_predicted(module, inputs(4, 50))
    assert differing(spent, predicted) == []
    one, two = 2 * 9, 2 * 25  # cuts at 0 and 2 cross one convolution, that at 1 crosses two
    expected = {"central": 2 * (2 * one + two), "forward": 2 * one + two + 3, "richardson": 4 * (2 * one + two)}
    assert spent["probes"].queries == (1 if curve is identity else 4) * expected[differences]


def test_a_stage_that_pairs_its_ports_is_not_local():
    """Two ports an activation lie side by side: the layout that was declared is that of the ports."""
    reach = Local.conv(2, 2, (4,), 3, padding=1)
    device = FakeDevice.functions([conv_stage(reach)], boundaries=BoundarySpec(low=0, high=1))
    pair = Codec(form="pair")
    assert Opaque([Stage(device, 0, codec_in=pair, codec_out=pair)]).network.structure(0, 1) == "dense"
    assert Opaque([Stage(device, 0)]).network.structure(0, 1) == Footprint((reach,))


# ---- what is declared


def described(structure: object) -> Capabilities:
    spec = StageSpec("conv", 32, 32, structure=structure, linear=True)
    return Capabilities("bench", (spec,), (BoundarySpec(), BoundarySpec()))


@pytest.mark.parametrize("structure", ["dense", "diagonal", Local.conv(2, 2, (4, 4), 3, padding=1, circular=True)])
def test_a_declaration_survives_the_wire(structure):
    assert from_json(to_json(described(structure))) == described(structure)


def test_descriptions_from_before_local_structures_are_read():
    plain = to_json(described("dense"))
    assert plain["stages"][0]["structure"] == "dense"
    del plain["stages"][0]["structure"]
    assert from_json(plain) == described("dense")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": [9, 9]}, r"a kernel of \[9, 9\] with dilation \[1, 1\] does not fit on \[4, 4\] with padding"),
        ({"kernel": [3]}, r"kernel \[3\] needs 2 whole numbers of at least 1, one an axis"),
        ({"stride": [0, 1]}, r"stride \[0, 1\] needs 2 whole numbers of at least 1"),
        ({"groups": 3}, "3 groups do not divide 2 channels in and 2 out"),
        ({"shape": [4, 4, 4]}, r"shape \[4, 4, 4\] has 3 axes, not 1 or 2"),
        ({"padding": [5, 5], "circular": True}, r"circular padding \[5, 5\] is wider than the input"),
        ({"in_channels": 1}, r"stage 'conv': its local structure takes 16 values .* the stage takes 32 and gives 32"),
        ({"padding": "same"}, r"stage 0, structure, padding: expected a list, not 'same'"),
        ({"groups": True}, r"stage 0, structure, groups: expected a whole number"),
    ],
)
def test_a_wrong_declaration_is_refused_in_words(change, words):
    plain = to_json(described(Local.conv(2, 2, (4, 4), 3, padding=1)))
    plain["stages"][0]["structure"] |= change
    with pytest.raises(CapabilityError, match=words):
        from_json(plain)


def test_a_reach_lacks_nothing():
    plain = to_json(described(Local.conv(2, 2, (4, 4), 3, padding=1)))
    del plain["stages"][0]["structure"]["stride"]
    with pytest.raises(CapabilityError, match="stage 0, structure: lacks stride"):
        from_json(plain)


def test_a_reach_says_its_widths():
    reach = Local.conv(3, 8, (9, 7), (3, 1), stride=(2, 1), padding=(1, 0))
    assert reach.out_shape == (5, 7)
    assert reach.widths == (3 * 63, 8 * 35)
    assert replace(reach, groups=1) == reach
    assert math.prod(reach.kernel) == 3
