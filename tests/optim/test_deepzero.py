"""DeepZero: the counts of the paper, masks at their fractions, and what reuse and statistics must not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import CGE, DeepZero, FeatureReuse, layer_fractions
from hzo_hil.optim.grasp import prunable, pruned_fractions
from tests.optim.losses import flat, quadratic
from tests.optim.models import batch, loss_of, residual, same, small_resnet20, state


@pytest.mark.parametrize("ranking", ["abs", "signed"])
def test_resnet_20_has_the_counts_of_the_paper(ranking: str) -> None:
    parameters = list(small_resnet20().parameters())
    assert sum(p.numel() for p in parameters) == 269_722
    weights = [p for p in parameters if prunable(p)]
    assert sum(w.numel() for w in weights) == 268_336
    found = iter(pruned_fractions([torch.randn(w.shape) for w in weights], 0.9, ranking))
    fractions = [next(found) if prunable(p) else 0.0 for p in parameters]
    assert DeepZero(parameters).coordinates == 269_722
    optimizer = DeepZero(parameters, fractions=fractions)
    assert optimizer.coordinates == 28_220
    assert optimizer.queries_per_step == 28_221


class Recording(DeepZero):
    """Keeps the gradient estimates of its steps."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.estimates: list[Tensor] = []

    def _descended(self, at: Any, w: Tensor, gradient: Tensor) -> Tensor:
        self.estimates.append(gradient.clone())
        return super()._descended(at, w, gradient)


def test_masks_hold_their_fractions_and_change_when_due() -> None:
    loss = quadratic(((8, 10), (10,)))
    optimizer = Recording(loss.parameters, fractions=[0.75, 0.0], mask_steps=2, lr=0.01)
    for _ in range(6):
        optimizer.step(loss)
    masks = torch.stack(optimizer.estimates) != 0
    assert (masks[:, :80].sum(1) == 20).all()
    assert masks[:, 80:].all()
    assert torch.equal(masks[0::2], masks[1::2])
    assert len({tuple(mask.tolist()) for mask in masks}) == 3


def test_masked_differences_are_those_of_cge() -> None:
    loss = quadratic()
    dense = flat(CGE(loss.parameters, lr=0.1).estimate(loss))
    sparse = flat(DeepZero(loss.parameters, fractions=[0.5, 0.5]).estimate(loss))
    assert ((sparse == dense) | (sparse == 0)).all()
    assert (sparse != 0).sum() == 5


def test_without_fractions_it_is_cge() -> None:
    one, other = quadratic(), quadratic()
    for loss, optimizer in (
        (one, DeepZero(one.parameters)),
        (other, CGE(other.parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)),
    ):
        optimizer.step(loss)
        optimizer.step(loss)
    assert torch.equal(one.vector(), other.vector())


def trained(model: nn.Module, steps: int = 3, **settings: Any) -> dict[str, Tensor]:
    weights = list(model.parameters())
    fractions = [0.5 if prunable(p) else 0.0 for p in weights]
    optimizer = DeepZero(weights, fractions=fractions, model=model, **settings)
    closure = loss_of(model, *batch())
    for _ in range(steps):
        optimizer.step(closure)
    return state(model)


def test_reuse_changes_no_bit_of_training_and_frees_its_features() -> None:
    reuse = FeatureReuse(residual())
    assert same(trained(residual()), trained(reuse))
    with pytest.raises(BadInput, match="no features are kept"), reuse.perturbed(reuse.model[5].bias):
        pass


def test_running_statistics_advance_once_a_step() -> None:
    model, reference = residual(), residual()
    inputs, labels = batch()
    optimizer = DeepZero(model.parameters(), lr=0.0, weight_decay=0.0, model=model)
    for _ in range(3):
        optimizer.step(loss_of(model, inputs, labels))
        reference(inputs)
    assert same(state(model), state(reference))


def test_a_failed_step_leaves_parameters_and_statistics() -> None:
    model = FeatureReuse(residual())
    before = state(model)
    closure, calls = loss_of(model, *batch()), 0

    def failing() -> Any:
        nonlocal calls
        calls += 1
        return math.nan if calls == 9 else closure()

    optimizer = DeepZero(model.parameters(), model=model)
    with pytest.raises(BadInput, match="loss is nan at evaluation 9"):
        optimizer.step(failing)
    assert same(state(model), before)


def test_a_resumed_run_keeps_its_fractions_and_masks() -> None:
    whole, loss = quadratic(), quadratic()
    straight = DeepZero(whole.parameters, fractions=[0.5, 0.25], mask_steps=2, seed=3)
    begun = DeepZero(loss.parameters, fractions=[0.5, 0.25], mask_steps=2, seed=3)
    for _ in range(5):
        straight.step(whole)
    for _ in range(3):
        begun.step(loss)
    resumed = DeepZero(loss.parameters, mask_steps=2)  # neither the fractions nor the seed
    resumed.load_state_dict(begun.state_dict())
    for _ in range(2):
        resumed.step(loss)
    assert torch.equal(loss.vector(), whole.vector())


def test_settings_out_of_range_are_refused() -> None:
    parameters = quadratic().parameters
    with pytest.raises(BadInput, match="trains 2 parameters and got 1 fractions"):
        DeepZero(parameters, fractions=[0.5])
    with pytest.raises(BadInput, match="fraction of parameter 1 is 1.5: it must be a number, at least 0 and at most 1"):
        DeepZero(parameters, fractions=[0.5, 1.5])
    with pytest.raises(BadInput, match="mask_steps is 0"):
        DeepZero(parameters, mask_steps=0)


def test_what_prepare_finds_is_what_layer_fractions_find() -> None:
    loss = quadratic(((8, 10), (10,)))
    optimizer = DeepZero(loss.parameters, sparsity=0.75, pruning_queries=6, seed=3)
    assert (optimizer.queries_before, optimizer.coordinates) == (14, 20 + 10)
    with pytest.raises(BadInput, match="call prepare"):
        optimizer.step(loss)
    before = flat(loss.parameters)
    optimizer.prepare(loss)
    assert torch.equal(flat(loss.parameters), before)
    found = layer_fractions(loss.parameters, loss, 0.75, queries=6, seed=3)
    assert optimizer.state["fractions"] == found and optimizer.coordinates == 30
    assert optimizer.queries_before == 0 and optimizer.state["queries"] == 14
    again = DeepZero(loss.parameters, sparsity=0.75, pruning_queries=6)
    again.load_state_dict(optimizer.state_dict())
    assert again.queries_before == 0 and again.state["fractions"] == found


def test_one_fraction_is_that_of_each_weight_or_of_all_where_there_are_none() -> None:
    assert DeepZero(quadratic(((8, 10), (10,))).parameters, fractions=0.9).coordinates == 8 + 10
    assert DeepZero(quadratic(((20,), (10,))).parameters, fractions=0.9).coordinates == 2 + 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": 0.5, "fractions": 0.5}, "the one or the other"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": 0.5, "pruning_queries": 0}, "pruning_queries is 0"),
        ({"sparsity": 0.5, "ranking": "least"}, "unknown ranking"),
    ],
)
def test_pruning_that_cannot_be_is_refused_when_it_is_made(settings: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        DeepZero(quadratic(((8, 10), (10,))).parameters, **settings)


def test_sparsity_without_weights_is_refused() -> None:
    with pytest.raises(BadInput, match="two axes or more, and none is trained"):
        DeepZero(quadratic(((20,),)).parameters, sparsity=0.5)
