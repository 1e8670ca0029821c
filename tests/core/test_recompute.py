"""Activations asked for again: the same gradient, counted, and few boundaries alive at a time."""

from __future__ import annotations

import math

import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.forecast import forecast
from hzo_hil.plan import Cut, Tree
from hzo_hil.recompute import Ask, Leaf, Release, moves
from tests.core.nets import affine_opaque, differing, inputs, loss_of, spent_and_predicted

WIDTHS = [4, 5, 3, 4, 5, 2]
TREES = ["bisect", "chain", "direct", (2, 4, 1, 3)]


def taken(tree: Tree) -> tuple[list[int], int]:
    """Stages in the order of their leaves, and the most boundaries alive; every move finds what it needs."""
    activations, targets = {0, tree.depth}, {tree.depth}
    leaves, most = [], 0
    for move in moves(tree, [True] * tree.depth):
        match move:
            case Ask(lo, hi):
                assert lo in activations and hi not in activations
                activations.add(hi)
            case Cut(at, source):
                assert at in activations and source in targets
                targets.add(at)
            case Leaf(stage):
                assert {stage, stage + 1} <= activations and stage + 1 in targets
                leaves.append(stage)
            case Release(boundary):
                activations.discard(boundary)
                targets.discard(boundary)
        most = max(most, len(activations | targets))
    assert activations | targets <= {0}
    return leaves, most


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 8, 64, 256])
@pytest.mark.parametrize("name", ["bisect", "chain", "direct"])
def test_every_leaf_is_reached_and_with_bisection_few_boundaries_are_alive(name, depth):
    leaves, most = taken(Tree.named(name, depth))
    assert sorted(leaves) == list(range(depth))
    if name == "bisect":
        assert most <= math.ceil(math.log2(depth)) + 2
    if name == "chain":
        assert most <= 3


@pytest.mark.parametrize("needs_input", [False, True])
@pytest.mark.parametrize("taps", [False, True])
@pytest.mark.parametrize("tree", TREES)
def test_the_gradient_is_that_of_stored_activations_to_the_bit(tree, taps, needs_input):
    found = []
    for memory in ("store", "recompute"):
        device = FakeDevice.mlp(WIDTHS, "tanh", dtype="float64", taps=taps)
        module = affine_opaque(WIDTHS, device=device, tree=tree, memory=memory)
        x = inputs(3, 4, grad=needs_input)
        wanted = [*module.parameters(), *([x] if needs_input else [])]
        found.append(torch.autograd.grad(loss_of(module(x)), wanted))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("frozen", [(), (0,), (4,), (1, 2), (0, 1, 3), (1, 2, 3, 4)])
@pytest.mark.parametrize("needs_input", [False, True])
def test_it_costs_what_was_forecast(frozen, needs_input):
    for tree in TREES:
        for taps in (False, True):
            device = FakeDevice.mlp(WIDTHS, "tanh", taps=taps, max_batch=7, virtual_time=True, query_s=1e-6)
            module = affine_opaque(WIDTHS, device=device, tree=tree, memory="recompute", repeats=2)
            for k in frozen:
                module.stages[k].requires_grad_(False)
            x = inputs(3, 4, grad=needs_input)
            spent, predicted = spent_and_predicted(module, x, memory="recompute")
            assert differing(spent, predicted) == [], (tree, taps)


def test_one_core_for_all_layers_costs_what_was_forecast():
    from hzo_hil import Opaque, Stage
    from hzo_hil.updates.delta import DeltaRule

    device = FakeDevice.mlp([4, 4], virtual_time=True, settling_s=0.1)
    module = Opaque([Stage(device, 0, leaf=DeltaRule("tanh")) for _ in range(4)], memory="recompute")
    spent, predicted = spent_and_predicted(module, inputs(3, 4, grad=False).float(), memory="recompute")
    assert differing(spent, predicted) == []


def test_a_bisection_asks_for_half_a_logarithm_more():
    module = affine_opaque([3] * 9, device=FakeDevice.mlp([3] * 9, taps=True), tree="bisect")
    kept, again = (
        forecast(module.network, module.resolved, module.rules, 1, memory=m).purposes["forward"].stage_evaluations
        for m in ("store", "recompute")
    )
    assert (kept, again) == (8, 8 + 8 * 3 / 2)


def test_a_second_backward_and_a_learned_subspace_work_without_activations():
    module = affine_opaque([8] * 5, probes="subspace:2+1", memory="recompute")
    other = affine_opaque([8] * 5, probes="subspace:2+1")
    for step in range(3):
        gradients = []
        for m in (module, other):
            loss = loss_of(m(inputs(12, 8, seed=step, grad=False)))
            first = torch.autograd.grad(loss, list(m.parameters()), retain_graph=True)
            gradients.append((*first, *torch.autograd.grad(loss, list(m.parameters()))))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory": "forget"}, "unknown memory 'forget': choose store or recompute"),
        ({"memory": "recompute", "leaf": "probing"}, "the leaf rule of .* asks the device after the last probe"),
        ({"memory": "recompute", "leaf": "autograd", "credit": "twin"}, "needs all activations at once"),
    ],
)
def test_what_cannot_be_recomputed_is_refused(options, says):
    with pytest.raises(BadInput, match=says):
        affine_opaque([3, 3, 3], **options)
