"""Without noise every plan gives autograd's gradient, whatever the network."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice
from tests.core.nets import OnHost, affine_opaque, cosine, gradients, inputs, worst

EXACT = 1e-7


@dataclass(frozen=True)
class Block:
    """One piece of a mixed model: an opaque run, plain or under a skip, or a host layer."""

    kind: str
    widths: tuple[int, ...]
    order: tuple[int, ...]
    seed: int


class Mixed(nn.Module):
    """Blocks in sequence; `host=True` computes the opaque ones by ordinary torch on the same parameters."""

    def __init__(self, blocks: list[Block], activation: str, tree: str, probes: str, leaf: str) -> None:
        super().__init__()
        self.blocks = blocks
        self.parts = nn.ModuleList()
        self.twins: list[nn.Module] = []
        for block in blocks:
            if block.kind == "host":
                part: nn.Module = nn.Sequential(nn.Linear(*block.widths), nn.GELU()).double()
                self.twins.append(part)
            else:
                chosen = list(block.order) if tree == "custom" else tree
                part = affine_opaque(block.widths, activation, leaf, seed=block.seed, tree=chosen, probes=probes)
                self.twins.append(OnHost(part, activation))
            self.parts.append(part)

    def forward(self, x: Tensor, host: bool = False) -> Tensor:
        for block, part, twin in zip(self.blocks, self.parts, self.twins, strict=True):
            y = twin(x) if host else part(x)
            x = x + y if block.kind == "residual" else y
        return x


@st.composite
def models(draw: st.DrawFn, count: int = 3) -> list[Block]:
    width = draw(st.integers(1, 5))
    blocks = []
    for kind in draw(st.lists(st.sampled_from(["plain", "residual", "host"]), min_size=1, max_size=count)):
        inner = draw(st.lists(st.integers(1, 5), min_size=0, max_size=0 if kind == "host" else 4))
        last = width if kind == "residual" else draw(st.integers(1, 5))
        order = draw(st.permutations(list(range(1, len(inner) + 1))))
        blocks.append(Block(kind, (width, *inner, last), tuple(order), draw(st.integers(0, 1000))))
        width = last
    assume(any(b.kind != "host" for b in blocks))
    return blocks


def compared(model: Mixed, rows: int, seed: int) -> float:
    x = inputs(rows, model.blocks[0].widths[0], seed)
    parameters = list(model.parameters())
    return worst(gradients(model, parameters, x), gradients(lambda x: model(x, host=True), parameters, x))


@pytest.mark.parametrize("leaf", ["delta", "autograd"])
@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("tree", ["bisect", "chain", "direct", "custom"])
@settings(max_examples=5)
@given(blocks=models(), rows=st.integers(1, 4), seed=st.integers(0, 1000))
def test_plain_residual_and_mixed_networks_have_autograds_gradient(tree, probes, leaf, blocks, rows, seed):
    torch.manual_seed(seed)
    assert compared(Mixed(blocks, "tanh", tree, probes, leaf), rows, seed) < EXACT


@pytest.mark.parametrize("leaf", ["delta", "autograd"])
@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("tree", ["bisect", "chain", "direct", "custom"])
@settings(max_examples=3)
@given(blocks=models(2), seed=st.integers(0, 1000))
def test_through_relu_away_from_its_kinks(tree, probes, leaf, blocks, seed):
    torch.manual_seed(seed)
    model = Mixed(blocks, "relu", tree, probes, leaf)
    with torch.no_grad():
        model(inputs(2, blocks[0].widths[0], seed), host=True)
    assume(min(getattr(t, "closest", 1.0) for t in model.twins) > 1e-3)
    assert compared(model, 2, seed) < EXACT


@pytest.mark.parametrize("differences", ["central", "richardson", "forward"])
@pytest.mark.parametrize("leaf", ["delta", "autograd", "measured", "probing"])
def test_every_difference_and_every_leaf_rule_approaches_it(differences, leaf):
    """Bounds are the schemes': forward differences lose half the digits, parameter probing keeps its O(eps^2)."""
    module = affine_opaque([4, 6, 5, 3], "tanh", leaf, tree="bisect", differences=differences)
    parameters = list(module.parameters())
    x = inputs(5, 4)
    error = worst(gradients(module, parameters, x), gradients(OnHost(module, "tanh"), parameters, x))
    assert error < (2e-4 if leaf == "probing" else 1e-6 if differences == "forward" else EXACT)


def test_parameter_probing_of_small_steps_is_exact_too():
    from hzo_hil.updates.probing import ParameterProbing

    device = FakeDevice.mlp([3, 4, 2], dtype="float64")
    for probes in ("coordinate", "hadamard"):
        rule = ParameterProbing(probes, eps=1e-5)
        module = Opaque([Stage(device, k, leaf=rule, initial=dict(device.read(k))) for k in range(2)]).double()
        parameters = list(module.parameters())
        x = inputs(4, 3)
        assert worst(gradients(module, parameters, x), gradients(OnHost(module, "tanh"), parameters, x)) < EXACT


def test_float32_is_close_and_comes_back_in_float32():
    device = FakeDevice.mlp([6, 8, 8, 4], "tanh")
    module = affine_opaque([6, 8, 8, 4], device=device).float()
    parameters = list(module.parameters())
    x = inputs(16, 6, dtype=torch.float32)
    found = gradients(module, parameters, x)
    assert {g.dtype for g in found} == {torch.float32}
    assert cosine(found, gradients(OnHost(module, "tanh"), parameters, x)) > 0.9999


@pytest.mark.parametrize("wanted", range(3))
def test_a_frozen_stage_costs_no_probe_and_the_others_keep_their_gradients(wanted):
    module = affine_opaque([3, 4, 5, 2])
    for k, stage in enumerate(module.stages):
        stage.requires_grad_(k == wanted)
    trained = list(module.stages[wanted].parameters())
    x = inputs(4, 3, grad=False)
    found = list(torch.autograd.grad(((module(x) - 0.3) ** 2).sum(), trained))
    expected = list(torch.autograd.grad(((OnHost(module, "tanh")(x) - 0.3) ** 2).sum(), trained))
    assert worst(found, expected) < EXACT
    # Boundary 2 is cut from the loss and 1 from 2; the last stage needs no target but the loss's.
    assert module.ledger.accounts["probes"].queries == 4 * 2 * [4 + 5, 5, 0][wanted]


def test_nothing_is_probed_where_nothing_is_trained_but_the_input():
    module = affine_opaque([3, 4, 2]).requires_grad_(False)
    x = inputs(2, 3)
    module(x).sum().backward()
    assert module.ledger.accounts["probes"].queries == 2 * 2 * (3 + 4)
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_an_empty_batch_has_gradients_of_zero():
    module = affine_opaque([3, 4, 2])
    x = inputs(0, 3)
    outputs = module(x)
    outputs.sum().backward()
    assert outputs.shape == (0, 2) and x.grad.shape == (0, 3)
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_a_second_backward_probes_again():
    module = affine_opaque([3, 4, 2])
    loss = module(inputs(2, 3)).sum()
    loss.backward(retain_graph=True)
    once = module.ledger.accounts["probes"].queries
    first = [p.grad.clone() for p in module.parameters()]
    loss.backward()
    assert module.ledger.accounts["probes"].queries == 2 * once
    assert worst([p.grad / 2 for p in module.parameters()], first) < EXACT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": "sparse"}, r"unknown probes 'sparse': choose coordinate, hadamard, or rademacher:q"),
        ({"probes": "gaussian"}, r"unknown probes 'gaussian'.*with q probes"),
        ({"probes": "gaussian:0"}, r"unknown probes 'gaussian:0'"),
        ({"tree": "spiral"}, r"unknown tree 'spiral': choose bisect, chain, direct or give a list of cuts"),
        ({"differences": "backward"}, r"unknown differences 'backward': choose central, forward, richardson"),
        ({"repeats": 0}, r"repeats is 0: a query is asked at least once"),
        ({"plan": Plan(), "tree": "chain"}, r"plan= already says tree: give the one or the others"),
        ({"plan": Plan(), "probes": "hadamard", "eps": 0.1}, r"plan= already says probes, eps"),
        ({"eps": {0: 0.1, 2: 0.1}}, r"eps names boundaries \[2\]; this network can be driven at 0\.\.1"),
        ({"eps": -0.1}, r"eps at boundary 0 is -0\.1: a step must be positive and finite"),
        ({"eps": float("nan")}, r"a step must be positive and finite"),
        ({"credit": "magic"}, r"unknown credit 'magic': choose hzo, activity"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_words(options, words):
    device = FakeDevice.mlp([3, 4, 2])
    with pytest.raises(BadInput, match=words):
        Opaque(device, **options)
    assert not device.calls and not device.writes


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        ({"weight": torch.zeros(2, 3)}, r"initial 'weight' of stage 'first' has shape \[2, 3\], expected \[4, 3\]"),
        ({"phase": torch.zeros(4)}, r"stage 'first' has no parameters \['phase'\]; it has \['bias', 'weight'\]"),
    ],
)
def test_initial_values_that_do_not_fit_are_refused(initial, words):
    device = FakeDevice.mlp([3, 4, 2])
    with pytest.raises(BadInput, match=words):
        Opaque([Stage(device, 0, initial=initial, name="first"), Stage(device, 1)])


def test_an_unknown_leaf_rule_is_refused():
    with pytest.raises(
        BadInput, match=r"unknown leaf rule 'backprop' for stage 'layer1': choose auto, delta, autograd"
    ):
        Opaque([Stage(FakeDevice.mlp([3, 2]), 0, leaf="backprop")])
