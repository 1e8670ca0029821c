"""A linear segment is measured once for the whole batch, exactly, and again only when a stage of it was written."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hzo_hil import Codec, Opaque, Plan, Stage, Tiles
from hzo_hil.devices.api import BoundarySpec, Segment, StageSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, FakeStage, Script
from hzo_hil.devices.pool import Pool
from tests.core.convs import Conv, conv_stage, identity
from tests.core.nets import Affine, affine_opaque, differing, gradients, inputs, loss_of, spent_and_predicted, worst

ROWS, WIDTH = 7, 5
DIFFERENCES = ["central", "forward", "richardson"]
PROBES = ["coordinate", "hadamard"]


def linear_opaque(widths: list[int], device: FakeDevice | None = None, **plan: Any) -> Opaque:
    return affine_opaque(widths, "identity", device=device, plan=Plan("chain", **plan))


def asked(module: Opaque) -> int:
    return module.ledger.accounts["probes"].queries


def on_host(module: Opaque, x: Tensor) -> Tensor:
    for stage in module.stages:
        x = Affine("identity")(x, **dict(stage.named_parameters()))
    return x


# ---- exact, and counted


@pytest.mark.parametrize("differences", DIFFERENCES)
@pytest.mark.parametrize("probes", PROBES)
@pytest.mark.parametrize("tree", ["chain", "bisect", "direct"])
def test_one_measurement_gives_every_sample_its_gradient(tree, probes, differences):
    module = affine_opaque([WIDTH, 4, 6, 3], "identity", plan=Plan(tree, probes, differences=differences))
    x = inputs(ROWS, WIDTH)
    parameters = list(module.parameters())
    assert worst(gradients(module, parameters, x), gradients(lambda x: on_host(module, x), parameters, x)) < 1e-12
    once = {"central": 2, "forward": 1, "richardson": 4}[differences]
    # Forward differences leave a column of Hadamard's out, and ask the base point.
    sizes = {"coordinate": (5, 4, 6), "hadamard": (8, 4, 8) if once != 1 else (8, 8, 8)}[probes]
    assert asked(module) == sum(once * n + (once == 1) for n in sizes)


@pytest.mark.parametrize("differences", DIFFERENCES)
@pytest.mark.parametrize("probes", PROBES)
@pytest.mark.parametrize("form", ["plain", "two_pass"])
def test_tiles_and_two_passes_are_measured_once_too(form, probes, differences):
    low = 0.0 if form == "two_pass" else -10.0
    made = {"bias": False, "dtype": "float64", "virtual_time": True}
    device = FakeDevice.mlp([4, 3], "identity", boundaries=BoundarySpec(low=low, high=10), **made)
    free = FakeDevice.mlp([4, 3], "identity", **made)
    for core in (device, free) if form == "plain" else (device,):
        stage = Stage(core, 0, leaf="autograd", twin=Affine("identity"), codec_in=Codec(form=form), tiles=Tiles(6, 5))
        module = Opaque([stage], plan=Plan(probes=probes, differences=differences)).double()
        weight = module.stages[0].weight.detach()
        whole = weight.permute(0, 2, 1, 3).reshape(6, 8)[:5, :6]
        x = inputs(ROWS, 6)
        module(x).backward(top := inputs(ROWS, 5, seed=2, grad=False))
        torch.testing.assert_close(x.grad, top @ whole, rtol=1e-11, atol=1e-11)
        spent, predicted = spent_and_predicted(module, x)
        assert differing(spent, predicted) == []


@pytest.mark.parametrize("differences", DIFFERENCES)
@pytest.mark.parametrize("circular", [False, True])
def test_convolutions_are_measured_once(circular, differences):
    from hzo_hil.devices.api import Local

    reach = Local.conv(2, 4, (6, 7), 3, stride=(2, 1), padding=1, groups=2, circular=circular)
    made = conv_stage(reach, identity)
    device = FakeDevice.functions([made], dtype="float64")
    module = Opaque([Stage(device, 0, twin=Conv(reach, identity), initial=made.initial)], differences=differences)
    module = module.double()
    x = inputs(ROWS, reach.widths[0])
    (weight,) = module.parameters()
    expected = gradients(lambda x: Conv(reach, identity)(x, weight), [weight], x)
    assert worst(gradients(module, [weight], x), expected) < 1e-12
    colours = module.network.colouring(0, 1).count
    assert asked(module) == {"central": 2, "forward": 1, "richardson": 4}[differences] * colours + (
        differences == "forward"
    )


def test_linear_stages_next_to_curves_cost_a_batch_and_curves_a_sample():
    curve = StageSpec("curve", WIDTH, WIDTH, structure="diagonal")
    device = FakeDevice.functions([(curve, lambda a, _: np.tanh(a))], dtype="float64")
    meshes = FakeDevice.mlp([WIDTH] * 3, "identity", dtype="float64")
    stages = [
        Stage(meshes, 0, initial=dict(meshes.read(0))), Stage(device, 0),
        Stage(meshes, 1, initial=dict(meshes.read(1))), Stage(device, 0),
    ]  # fmt: skip
    module = Opaque(stages, tree="chain").double()
    x = inputs(ROWS, WIDTH)
    parameters = list(module.parameters())
    found = gradients(module, parameters, x)
    expected = gradients(lambda x, p=parameters: (
        Affine("tanh")(Affine("tanh")(x, *p[:2]), *p[2:])
    ), parameters, x)  # fmt: skip
    assert worst(found, expected) < 1e-7
    assert asked(module) == 2 * (2 * ROWS + 2 * WIDTH)


# ---- how long it holds


def test_it_holds_until_a_stage_is_written():
    module = linear_opaque([WIDTH, 4, 3])
    x = inputs(ROWS, WIDTH)
    once = 2 * (4 + WIDTH)
    loss = loss_of(module(x))
    loss.backward(retain_graph=True)
    assert asked(module) == once
    loss.backward()  # the same pass again
    loss_of(module(inputs(3, WIDTH, seed=4))).backward()  # accumulated: other samples, the same parameters
    assert asked(module) == once
    with torch.no_grad():
        module.stages[1].weight += 0.1
    found = gradients(module, list(module.parameters()), x)
    assert asked(module) == once + 2 * 4  # the other stage was not written
    assert worst(found, gradients(lambda x: on_host(module, x), list(module.parameters()), x)) < 1e-12


@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_what_is_frozen_is_not_measured_again_and_forecast_so(frozen):
    device = FakeDevice.mlp([WIDTH, 4, 3], "identity", dtype="float64", virtual_time=True)
    module = linear_opaque([WIDTH, 4, 3], device)
    for k in frozen:
        module.stages[k].requires_grad_(False)
    spent, predicted = spent_and_predicted(module, inputs(ROWS, WIDTH))
    assert differing(spent, predicted) == []
    per_step = {(): 2 * (4 + WIDTH), (0,): 2 * 4, (1,): 2 * WIDTH}[frozen]
    assert predicted.queries_per_batch == per_step
    assert predicted.queries_per_sample == 0


def test_maintenance_moves_what_was_measured():
    module = linear_opaque([WIDTH, 3])
    x = inputs(ROWS, WIDTH)
    module(x).sum().backward()
    module.ledger.events["maintenances"] += 1
    module(x).sum().backward()
    assert asked(module) == 2 * 2 * WIDTH


@pytest.mark.parametrize("keyed", [True, False])
def test_a_reboot_moves_what_was_measured_unless_writes_are_keyed(keyed):
    """The forward after the first step finds the device rebooted: it is written anew, and the write may scatter."""
    found = []
    for reboot in (set(), {3}):
        device = FakeDevice.mlp([WIDTH, 3], "identity", script=Script(reboot_at=reboot), dtype="float64", keyed=keyed)
        module = linear_opaque([WIDTH, 3], device)
        x = inputs(ROWS, WIDTH)
        for _ in range(3):
            module(x).sum().backward()
        found.append(asked(module))
        assert module.ledger.events["reboots"] == len(reboot)
    assert found == [2 * WIDTH, 2 * WIDTH * (1 if keyed else 2)]


def test_a_checkpoint_keeps_what_still_holds(tmp_path):
    module = linear_opaque([WIDTH, 4, 3])
    module.stages[0].requires_grad_(False)
    x = inputs(ROWS, WIDTH)
    module(x).sum().backward()
    with torch.no_grad():
        module.stages[1].weight += 0.1
    torch.save(module.state_dict(), tmp_path / "state.pt")
    again = linear_opaque([WIDTH, 4, 3])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = []
    for one in (module, again):
        before = asked(one)
        (gradient,) = torch.autograd.grad(loss_of(one(x)), [x])
        found.append(gradient)
        assert asked(one) - before == 2 * 4
    assert torch.equal(*found)
    elsewhere = linear_opaque([WIDTH, 4, 3], FakeDevice.mlp([WIDTH, 4, 3], "identity", dtype="float64", identity="b"))
    with pytest.warns(UserWarning, match="is loaded on b"):
        elsewhere.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    loss_of(elsewhere(x)).backward()
    assert asked(elsewhere) == 2 * (4 + WIDTH)


def test_a_copy_measures_for_itself():
    module = linear_opaque([WIDTH, 3])
    x = inputs(ROWS, WIDTH)
    module(x).sum().backward()
    twin = copy.deepcopy(module)
    twin(x).sum().backward()
    assert asked(twin) == 2 * asked(module)


# ---- noise, steps and ranges


def test_noise_is_common_to_the_batch_and_does_not_depend_on_its_split():
    found = []
    for max_batch in (0, 3, 4):
        script = Script(noise=0.1, seed=3)
        device = FakeDevice.mlp([WIDTH, 3], "identity", dtype="float64", script=script, keyed=True, max_batch=max_batch)
        module = linear_opaque([WIDTH, 3], device).requires_grad_(False)
        x = inputs(ROWS, WIDTH)
        module(x).backward(torch.ones(ROWS, 3, dtype=torch.float64))
        error = x.grad - module.stages[0].weight.sum(0)
        assert float(error.abs().min()) > 0
        torch.testing.assert_close(error, error[:1].expand(ROWS, WIDTH), rtol=1e-12, atol=0)
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("differences", "step", "probes", "expected"),
    [
        ("central", 0.0, "coordinate", 0.5),
        ("central", 0.15, "coordinate", 0.45),
        ("richardson", 0.1, "coordinate", 0.4),
        ("forward", 0.1, "hadamard", 0.5),
    ],
)
def test_the_step_is_the_largest_that_fits(differences, step, probes, expected):
    boundary = BoundarySpec(low=0, high=1, in_step=step)
    device = FakeDevice.mlp([4, 3], "identity", boundaries=boundary)
    module = Opaque(device, plan=Plan(probes=probes, differences=differences))
    assert module.resolved.eps == (pytest.approx(expected),)
    assert Opaque(device, plan=Plan(eps=0.3)).resolved.eps == (pytest.approx(0.3),)
    assert Opaque(FakeDevice.mlp([4, 3], "identity")).resolved.eps == (1.0,)


def test_a_range_of_less_than_two_converter_steps_is_probed_to_one_side():
    device = FakeDevice.mlp(
        [4, 3], "identity", dtype="float64", boundaries=[BoundarySpec(low=0, high=1, in_step=0.7), BoundarySpec()]
    )
    module = Opaque(device).requires_grad_(False)
    assert not module.resolved.at[0].shared
    x = torch.full((2, 4), 0.7, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, module.stages[0].weight.sum(0).expand(2, 4).double())
    device = FakeDevice.mlp([4, 3], "identity", boundaries=BoundarySpec(low=0, high=1, in_step=0.3))
    raised = Opaque(device, eps=0.4).resolved.at[0]
    assert raised.eps == pytest.approx(0.6) and not raised.shared


@pytest.mark.parametrize("differences", DIFFERENCES)
@pytest.mark.parametrize("probes", PROBES)
@pytest.mark.parametrize("eps", [None, 0.2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_behind_a_converter_it_is_exact_and_stays_inside(dtype, eps, probes, differences):
    """The fake device refuses what lies outside its range. Inputs that are clipped have no gradient."""
    boundary = BoundarySpec(low=-0.3, high=0.7, in_step=1 / 50)
    device = FakeDevice.mlp([4, 3], "identity", dtype=dtype, boundaries=[boundary, BoundarySpec()])
    module = Opaque(device, plan=Plan(probes=probes, eps=eps, differences=differences)).requires_grad_(False)
    x = (inputs(ROWS, 4) * 0.6).detach().to(getattr(torch, dtype)).requires_grad_()
    module(x).sum().backward()
    inside = (x >= -0.3) & (x <= 0.7)
    assert 0 < int(inside.sum()) < inside.numel()
    expected = torch.where(inside, module.stages[0].weight.sum(0), 0).to(x.dtype)
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("differences", DIFFERENCES)
@pytest.mark.parametrize("probes", PROBES)
def test_codecs_that_are_affine_are_part_of_it(probes, differences):
    """Offset encoding in, differences of two detectors out."""
    boundaries = [BoundarySpec(low=0.0, high=1.0), BoundarySpec()]
    device = FakeDevice.mlp([4, 6], "identity", dtype="float64", boundaries=boundaries)
    drive, read = Codec(gain=0.25, offset=0.5), Codec(gain=2.0, form="pair")
    module = Opaque(
        [Stage(device, 0, codec_in=drive, codec_out=read)], plan=Plan(None, probes, differences=differences)
    )
    module = module.double().requires_grad_(False)
    assert module.resolved.at[0].shared
    x = inputs(ROWS, 4)
    top = inputs(ROWS, 3, seed=2, grad=False)
    module(x).backward(top)
    weight = module.stages[0].weight
    inside = x.detach().abs() <= 2
    expected = torch.where(inside, top @ ((weight[0::2] - weight[1::2]) / 2 * 0.25), 0)
    torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=1e-11)


# ---- where it does not hold


def refuses_to_share(stages: Any, **plan: Any) -> bool:
    return not any(cut.shared for cut in Opaque(stages, plan=Plan(**plan)).resolved.at)


def test_only_one_jacobian_for_all_is_shared():
    plain = FakeDevice.mlp([4, 4], "identity", bias=False, boundaries=BoundarySpec(low=0, high=1))
    assert not refuses_to_share(plain)
    assert refuses_to_share(FakeDevice.mlp([4, 4], "tanh"))
    assert refuses_to_share(plain, shared=False)
    assert refuses_to_share(plain, probes="rademacher:3")  # its error would be common to all samples
    pair = Codec(form="pair")
    assert refuses_to_share([Stage(plain, 0, codec_in=pair, codec_out=pair)])
    chips = [FakeDevice.mlp([4, 4], "identity", seed=k) for k in range(2)]
    assert refuses_to_share([Stage(Pool(chips, identical=False), 0)])
    assert not refuses_to_share([Stage(Pool(chips, identical=True), 0)])


def test_an_end_of_a_range_on_the_way_is_a_curve():
    ends = [BoundarySpec(), BoundarySpec(low=-1, high=1), BoundarySpec()]
    for inner, shared in ((ends[1], [True, False]), (BoundarySpec(), [True, True])):
        device = FakeDevice.mlp([4, 4, 4], "identity", boundaries=[ends[0], inner, ends[2]])
        network = Opaque(device).network
        assert [network.linear(1, 2), network.linear(0, 2)] == shared
        assert Stage(device, Segment(0, 2)).linear == shared[1]


def test_a_step_that_does_not_fit_is_refused_before_anything_is_sent():
    device = FakeDevice.mlp([4, 3], "identity", boundaries=BoundarySpec(low=0, high=1))
    with pytest.raises(BadInput, match=r"eps 0\.6 at boundary 0 does not fit into the drivable range"):
        Opaque(device, eps=0.6)
    assert not device.calls and not math.isnan(device.seconds)


def test_a_stage_that_is_linear_and_diagonal_costs_one_probe_a_batch():
    spec = StageSpec("gain", WIDTH, WIDTH, structure="diagonal", linear=True)
    gains = np.arange(1.0, WIDTH + 1)
    module = Opaque(FakeDevice.functions([FakeStage(spec, lambda a, _: gains * a)], dtype="float64"))
    x = inputs(ROWS, WIDTH)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.as_tensor(gains).expand(ROWS, WIDTH), rtol=1e-12, atol=0)
    assert asked(module) == 2
