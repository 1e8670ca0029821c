"""ZO-GraSP: scores against the Hessian-gradient product of a quadratic, both rankings, exact counts."""

from __future__ import annotations

import math

import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import layer_fractions, statistics_kept
from hzo_hil.optim.grasp import grasp_scores, pruned_fractions
from tests.optim.losses import flat, quadratic
from tests.optim.models import batch, loss_of, residual, same, state


def test_scores_follow_the_curvature_along_the_gradient() -> None:
    """With common directions g(w + eps g) - g(w) = eps M H g exactly on a quadratic, M = 1/q sum u u^T."""
    loss = quadratic()
    queries, before = 40, loss.vector()
    found = grasp_scores(loss.parameters, loss, queries, eps=0.1)
    assert torch.equal(loss.vector(), before)
    assert len(loss.asked) == 2 * (queries + 1)
    moves = torch.stack(loss.asked[1 : queries + 1]) - before
    u = moves / 0.1
    torch.testing.assert_close(u[:, :6].norm(dim=1), torch.ones(queries).double())
    torch.testing.assert_close(u[:, 6:].norm(dim=1), torch.ones(queries).double())
    here = u @ loss.gradient() + 0.05 * (u @ loss.curvature * u).sum(1)
    g = (here[:, None] * u).mean(0)
    expected = -before * ((u.T @ u / queries) @ loss.curvature @ g)
    torch.testing.assert_close(flat(found), expected, rtol=1e-8, atol=1e-8)
    assert [s.shape for s in found] == [p.shape for p in loss.parameters]


def test_fresh_directions_differ_in_the_second_gradient() -> None:
    loss = quadratic()
    grasp_scores(loss.parameters, loss, 3, eps=0.1, fresh=True)
    asked = torch.stack(loss.asked)
    first, second = asked[1:4] - asked[0], asked[5:] - asked[4]
    assert not torch.isclose(first, second).any()


def test_the_two_rankings_prune_other_ends() -> None:
    scores = [torch.tensor([[-9.0, 0.1], [0.2, 8.0]]), torch.tensor([[5.0, -4.0], [7.0, 0.3]])]
    assert pruned_fractions(scores, 0.375, "abs") == [0.5, 0.25]  # 0.1, 0.2 | 0.3
    assert pruned_fractions(scores, 0.375, "signed") == [0.25, 0.5]  # 8 | 5, 7
    assert pruned_fractions(scores, 0.0) == [0.0, 0.0]


@pytest.mark.parametrize("ranking", ["abs", "signed"])
def test_norms_and_biases_are_never_pruned_and_counts_are_exact(ranking: str) -> None:
    model = residual()
    parameters = list(model.parameters())
    before = state(model)
    with statistics_kept(model):
        found = layer_fractions(parameters, loss_of(model, *batch()), 0.7, ranking, queries=10)
    assert same(state(model), before)
    assert all(f == 0 for f, p in zip(found, parameters, strict=True) if p.ndim == 1)
    pruned = sum(f * p.numel() for f, p in zip(found, parameters, strict=True))
    assert pruned == pytest.approx(round(0.7 * sum(p.numel() for p in parameters if p.ndim > 1)))


def test_frozen_parameters_have_no_fraction() -> None:
    model = residual()
    model[0].weight.requires_grad_(False)
    found = layer_fractions(list(model.parameters()), loss_of(model, *batch()), 0.5, queries=3)
    assert len(found) == len(list(model.parameters())) - 1


def test_bad_input_is_refused_before_any_loss() -> None:
    loss = quadratic()
    with pytest.raises(BadInput, match="sparsity is 1: it must be a number, at least 0 and below 1"):
        layer_fractions(loss.parameters, loss, 1)
    with pytest.raises(BadInput, match="unknown ranking 'big': choose abs, signed"):
        layer_fractions(loss.parameters, loss, 0.5, "big")
    with pytest.raises(BadInput, match="queries is 0"):
        layer_fractions(loss.parameters, loss, 0.5, queries=0)
    with pytest.raises(BadInput, match="nothing to prune"):
        layer_fractions(loss.parameters[1:], loss, 0.5)
    assert not loss.asked
    before = loss.vector()
    with pytest.raises(BadInput, match="loss is nan at evaluation 1 of 8"):
        layer_fractions(loss.parameters, lambda: math.nan, 0.5, queries=3)
    assert torch.equal(loss.vector(), before)
