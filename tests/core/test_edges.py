"""At the ends of a range the realised step counts, and nothing is clipped behind the estimate's back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.devices.api import BoundarySpec, ParameterSpec, Segment, StageSpec
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.devices.fake import FakeDevice, FakeStage
from tests.core.nets import Affine, affine_opaque, cosine, gradients, inputs, worst

UNIT = BoundarySpec(low=0.0, high=1.0)


class Intensity(nn.Module):
    """|W a|^2 of a complex field with real and imaginary weights, as a detector with a full scale of 1 reads it."""

    def forward(self, inputs: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
        return ((inputs @ real.T) ** 2 + (inputs @ imaginary.T) ** 2).clamp(0, 1)


def intensity_stage(width: int, out: int, seed: int) -> FakeStage:
    """The first output is dark and the second beyond full scale for any input that is not small."""
    rng = np.random.default_rng(seed)
    initial = {n: rng.normal(scale=0.7 / np.sqrt(width), size=(out, width)) for n in ("real", "imaginary")}
    for values in initial.values():
        values[0] = 0
        values[1] = 1
    spec = StageSpec(f"detector{seed}", width, out, tuple(ParameterSpec(n, v.shape) for n, v in initial.items()))

    def run(a, p):
        return np.clip((a @ p["real"].T) ** 2 + (a @ p["imaginary"].T) ** 2, 0, 1)

    return FakeStage(spec, run, initial)


WIDTHS = (6, 5, 7, 4)


def intensity_network(**options) -> Opaque:
    fakes = [intensity_stage(a, b, k) for k, (a, b) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False))]
    device = FakeDevice.functions(fakes, dtype="float64", boundaries=UNIT, keep_inputs=True)
    stages = [Stage(device, k, leaf="autograd", twin=Intensity(), initial=f.initial) for k, f in enumerate(fakes)]
    return Opaque(stages, **options).double()


def ends_and_middles(rows: int) -> Tensor:
    """Activations of which a third are exactly 0 and a third exactly at full scale."""
    drawn = np.random.default_rng(0).uniform(-1, 2, (rows, WIDTHS[0])).clip(0, 1)
    drawn[:, 0] = 0.9  # so that no row is dark
    return torch.as_tensor(drawn)


@pytest.mark.parametrize("differences", ["central", "forward", "richardson"])
@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("tree", ["bisect", "chain", "direct"])
def test_an_intensity_only_network_at_both_ends_of_its_range_has_autograds_gradient(tree, probes, eps, differences):
    module = intensity_network(tree=tree, probes=probes, eps=eps, differences=differences)
    x = ends_and_middles(12)

    def on_host(a: Tensor) -> Tensor:
        for stage in module.stages:
            a = Intensity()(a, **dict(stage.named_parameters()))
        return a

    parameters = list(module.parameters())
    found = gradients(module, parameters, x)
    assert cosine(found, gradients(on_host, parameters, x)) >= 0.999
    assert cosine(found[-1:], gradients(on_host, [], x)) >= 0.999
    # One dark and at least one bright element a boundary and row meet an end, and more of the input do.
    sent = np.concatenate([c.inputs.ravel() for c in module.network.devices[0].calls])
    assert sent.min() >= 0 and sent.max() <= 1


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
def test_elements_at_the_ends_are_counted(probes):
    module = intensity_network(tree="chain", probes=probes).requires_grad_(False)
    x = ends_and_middles(12).requires_grad_()
    with torch.no_grad():
        inner = [x]
        for stage in list(module.stages)[:-1]:
            inner.append(Intensity()(inner[-1], **dict(stage.named_parameters())))
    expected = sum(int(((a == 0) | (a == 1)).sum()) for a in inner)
    assert expected > 12 * 4
    module(x).sum().backward()
    counted = ("one_sided", "shifted") if probes == "coordinate" else ("shifted", "one_sided")
    assert [module.ledger.events[e] for e in counted] == [expected, 0]


def linear(width: int, out: int, boundary: BoundarySpec) -> FakeDevice:
    return FakeDevice.mlp(
        [width, out], "identity", dtype="float64", boundaries=(boundary, BoundarySpec()), keep_inputs=True
    )


@pytest.mark.parametrize("differences", ["central", "forward", "richardson"])
def test_the_realised_step_divides_not_the_planned_one(differences):
    """A pair cut short at full scale and divided by 2 eps would be 40 % wrong here; the realised step is exact."""
    device = linear(4, 3, UNIT)
    plan = Plan(eps=0.1, differences=differences, shared=False)
    module = affine_opaque([4, 3], "identity", device=device, plan=plan).requires_grad_(False)
    x = torch.tensor([[0.98, 0.02, 0.5, 1.0], [0.0, 0.93, 0.07, 0.98]], dtype=torch.float64).requires_grad_()
    module(x).sum().backward()
    expected = module.stages[0].weight.sum(0).expand(2, 4)
    torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=1e-12)
    if differences == "central":
        rows = device.calls[-1].inputs
        distance = np.abs(rows[0::2] - rows[1::2]).sum(axis=1)
        assert distance[0] == pytest.approx(0.12)  # 0.88 to 1
        assert 1 - distance[0] / 0.2 == pytest.approx(0.4)
        assert module.ledger.events["one_sided"] == 7


@given(st.lists(st.floats(-0.5, 1.5), min_size=3, max_size=3), st.sampled_from(["central", "forward", "richardson"]),
       st.sampled_from(["coordinate", "hadamard", "rademacher:9"]), st.booleans())  # fmt: skip
def test_no_probe_ever_leaves_the_range(values, differences, probes, diagonal):
    """The fake device refuses what lies outside, so that an answer at all is the proof."""
    spec = StageSpec("cube", 3, 3, structure="diagonal" if diagonal else "dense")
    device = FakeDevice.functions([(spec, lambda a, _: a**3)], dtype="float64", boundaries=(UNIT, BoundarySpec()))
    module = Opaque(device, eps=0.2, differences=differences, probes=probes)
    x = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    outside = (x < 0) | (x > 1)
    assert not x.grad[outside].any()
    assert module.ledger.events["clipped:0"] == int(outside.sum())


@pytest.mark.parametrize("differences", ["central", "forward", "richardson"])
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_behind_a_converter_a_probe_cut_short_moves_by_whole_steps(dtype, diagonal, differences):
    """Activations between levels near an end: a clipped end would be rounded elsewhere than planned, 30 % wrong."""
    step = 1 / 20
    spec = StageSpec("gain", 4, 4, structure="diagonal" if diagonal else "dense", linear=True)
    device = FakeDevice.functions(
        [(spec, lambda a, _: 3 * a)],
        dtype=str(dtype).split(".")[1],
        boundaries=(BoundarySpec(low=0, high=1, in_step=step), BoundarySpec()),
    )
    module = Opaque(device, plan=Plan(eps=2 * step, differences=differences, shared=False))
    x = inputs(200, 4, grad=False).sigmoid().mul(1.2).sub(0.1).clamp(0, 1).to(dtype).requires_grad_()
    module(x).sum().backward()
    assert module.ledger.events["one_sided"] > 30
    torch.testing.assert_close(x.grad, torch.full_like(x, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
def test_inputs_beyond_the_range_are_clipped_counted_and_have_no_gradient(probes):
    module = affine_opaque([3, 2], "identity", device=linear(3, 2, UNIT), probes=probes)
    x = torch.tensor([[-0.5, 0.5, 1.5]], dtype=torch.float64, requires_grad=True)
    parameters = list(module.parameters())
    found = gradients(module, parameters, x)
    expected = gradients(lambda x: Affine("identity")(x.clamp(0, 1), *parameters), parameters, x)
    assert worst(found, expected) < 1e-7
    assert module.ledger.events["clipped:0"] == 2


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("differences", ["central", "forward"])
def test_activations_inside_the_network_beyond_the_range_have_no_gradient(probes, differences):
    """What a device clips on its way into a stage, nothing after it depends on."""
    specs = [StageSpec(f"s{k}", 3, 3, (ParameterSpec("weight", (3, 3)),), linear=True) for k in range(2)]
    weights = [np.random.default_rng(k).normal(size=(3, 3)) for k in range(2)]
    fakes = [FakeStage(s, lambda a, p: a @ p["weight"].T, {"weight": w}) for s, w in zip(specs, weights, strict=True)]
    unit = BoundarySpec(low=-0.5, high=0.5)
    device = FakeDevice.functions(fakes, dtype="float64", boundaries=[BoundarySpec(), unit, BoundarySpec()])
    twin = Affine("identity")
    stages = [Stage(device, k, twin=twin, initial=f.initial) for k, f in enumerate(fakes)]
    module = Opaque(stages, tree="chain", probes=probes, differences=differences, eps=1e-3).double()
    x = torch.as_tensor(np.random.default_rng(5).normal(size=(6, 3)))
    parameters = list(module.parameters())
    found = gradients(module, parameters, x)
    expected = gradients(lambda x: twin(twin(x, parameters[0]).clamp(-0.5, 0.5), parameters[1]), parameters, x)
    assert module.ledger.events["clipped:1"] > 0
    assert worst(found, expected) < 1e-7


# ---- boundaries that cannot be reached


def stage_of(device: FakeDevice, index: int | Segment = 0) -> Opaque:
    return Opaque([Stage(device, index)])


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            0,
            r"stage 1 \('layer1'\) needs boundary 1 of device 'sealed', which the device cannot read.*index=Segment\(",
        ),
        (1, r"stage 1 \('layer2'\) needs boundary 1 of device 'sealed', which the device cannot drive"),
        (5, r"device 'sealed' has 3 stages: there is no segment \(5, 6\]"),
    ],
)
def test_a_boundary_that_cannot_be_driven_or_read_is_refused(index, words):
    device = FakeDevice.mlp([2, 2, 2, 2], inner=False, identity="sealed")
    with pytest.raises(CapabilityError, match=words):
        stage_of(device, index)


def test_a_device_without_inner_boundaries_is_one_stage_trained_by_probing():
    device = FakeDevice.mlp([3, 4, 2], dtype="float64", inner=False)
    reference = affine_opaque([3, 4, 2], device=FakeDevice.mlp([3, 4, 2], dtype="float64"))
    module = Opaque(device).double()
    assert module.network.depth == 1
    assert module.network.stages[0].index == Segment(0, 2)
    assert [type(r).__name__ for r in module.rules] == ["ParameterProbing"]
    names = ["layer1_weight", "layer1_bias", "layer2_weight", "layer2_bias"]
    assert list(dict(module.stages[0].named_parameters())) == names
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), reference.parameters(), strict=True):
            mine.copy_(theirs)
    x = inputs(6, 3)
    found = gradients(module, list(module.parameters()), x)
    assert cosine(found, gradients(reference, list(reference.parameters()), x)) > 0.999999
    assert module.ledger.accounts["leaf"].writes == 2 * sum(p.numel() for p in module.parameters()) * 2  # both stages
    assert module.ledger.accounts["probes"].queries == 6 * 2 * 3  # the input's gradient alone


def test_a_sealed_device_learns():
    device = FakeDevice.mlp([2, 4, 1], dtype="float64", inner=False)
    module = Opaque(device, seed=1).double()
    x = inputs(16, 2, grad=False)
    y = (x[:, :1] * 0.8 - 0.3 * x[:, 1:]).tanh()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = ((module(x) - y) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("hidden", [{"drive": False}, {"read": False}])
def test_stages_on_both_sides_of_a_hidden_boundary_become_one(hidden):
    open_, closed = BoundarySpec(), BoundarySpec(**hidden)
    device = FakeDevice.mlp([2, 3, 4, 5, 2], boundaries=[open_, open_, closed, open_, open_], dtype="float64")
    module = Opaque(device).double()
    assert [s.segment for s in module.network.stages] == [Segment(0, 1), Segment(1, 3), Segment(3, 4)]
    x = inputs(3, 2)
    reference = affine_opaque([2, 3, 4, 5, 2], device=FakeDevice.mlp([2, 3, 4, 5, 2], dtype="float64"))
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), reference.parameters(), strict=True):
            mine.copy_(theirs)
    found = gradients(module, list(module.parameters()), x)
    assert cosine(found, gradients(reference, list(reference.parameters()), x)) > 0.999999


def test_widths_that_do_not_meet_are_refused():
    device = FakeDevice.mlp([2, 3, 4])
    with pytest.raises(BadInput, match=r"stage 1 \('layer1'\) gives 3 activations, stage 2 \('layer1'\) takes 2"):
        Opaque([Stage(device, 0), Stage(device, 0)])
    with pytest.raises(BadInput, match="a network needs at least one stage"):
        Opaque([])


# ---- stages that are cheap


def test_a_diagonal_stage_costs_one_probe_and_stages_without_parameters_have_no_leaf():
    curve = StageSpec("curve", 5, 5, structure="diagonal")
    weight = FakeDevice.mlp([5, 5], "identity", dtype="float64")
    device = FakeDevice.functions([(curve, lambda a, _: np.tanh(a))], dtype="float64")
    for probes in ("coordinate", "hadamard", "rademacher:4"):
        stages = [
            Stage(weight, 0, initial=dict(weight.read(0))), Stage(device, 0), Stage(device, 0),
        ]  # fmt: skip
        module = Opaque(stages, tree="chain", probes=probes).double()
        assert [r is None for r in module.rules] == [False, True, True]
        x = inputs(7, 5)
        parameters = list(module.parameters())
        found = gradients(module, parameters, x)
        expected = gradients(lambda x, p=parameters: Affine("identity")(x, *p).tanh().tanh(), parameters, x)
        assert worst(found[:-1], expected[:-1]) < 1e-7
        # Sets that are exact ask the linear stage once for all rows.
        dense = {"coordinate": 5, "hadamard": 8, "rademacher:4": 7 * 4}[probes]
        assert module.ledger.accounts["probes"].queries == 7 * 2 * (1 + 1) + 2 * dense
