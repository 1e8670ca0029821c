"""Live gains are ratios of the targets' squared norms: against autograd in float64 on the same parameters."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.core.nets import OnHost, affine_opaque, inputs, loss_of

WIDTHS = [5, 6, 4, 7, 3]


def expected(module, batches, whole):
    """By stage, ||T_(k-1)||^2 / ||T_k||^2 over all samples; stage 1 where `whole` or an input needs a gradient."""
    host = OnHost(module, "tanh")
    sums: dict[int, list[float]] = {}
    for x in batches:
        boundaries = [x.detach().clone().requires_grad_()]
        for stage in module.stages:
            values = dict(stage.named_parameters())
            boundaries.append(host.twin.curve(boundaries[-1] @ values["weight"].T + values["bias"]))
        targets = torch.autograd.grad(loss_of(boundaries[-1]), boundaries)
        for k in range(1, len(boundaries)):
            if k > 1 or whole or x.requires_grad:
                below, above = (float(t.square().sum()) for t in (targets[k - 1], targets[k]))
                found = sums.setdefault(k, [0.0, 0.0])
                found[0], found[1] = found[0] + below, found[1] + above
    return {k: below / above for k, (below, above) in sorted(sums.items())}


@pytest.mark.parametrize(
    "options", [{"tree": "chain"}, {"tree": "bisect"}, {"memory": "recompute"}, {"credit": "twin"}], ids=str
)
def test_they_are_those_of_the_targets(options):
    module = affine_opaque(WIDTHS, **options)
    whole = module.credit == "twin"  # the input's target costs it nothing
    batches = [inputs(4, 5, seed=1, grad=False), inputs(3, 5, seed=2)]
    for x in batches:
        loss_of(module(x)).backward()
    assert module.gains.stages() == pytest.approx(expected(module, batches, whole), rel=1e-4)
    module.gains.clear()
    assert module.gains.stages() == {}


def test_frozen_stages_below_have_none():
    module = affine_opaque(WIDTHS)
    for stage in list(module.stages)[:2]:
        stage.requires_grad_(False)
    loss_of(module(inputs(4, 5, grad=False))).backward()
    assert sorted(module.gains.stages()) == [4]


def test_state_and_copies_keep_them_and_measuring_noise_adds_nothing():
    module = affine_opaque(WIDTHS)
    x = inputs(4, 5, grad=False)
    loss_of(module(x)).backward()
    kept = module.gains.state()
    module.spread_of_gradient(lambda: loss_of(module(x)))
    assert module.gains.state() == kept
    other = affine_opaque(WIDTHS)
    other.load_state_dict(module.state_dict())
    assert other.gains.state() == copy.deepcopy(module).gains.state() == kept
    other.gains.clear()
    assert module.gains.state() == kept
