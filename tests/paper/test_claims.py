"""What the scripts for the paper's theorems rest on: bounds that are reached, and trees that no other tree beats."""

from __future__ import annotations

import _growth as growth
import _layers as layers
import _noisetree as trees
import numpy as np
import pytest
import torch

from hzo_hil.plan import NAMED_TREES, Tree


@pytest.mark.parametrize("lip", [0.9, 1.0, 1.1])
def test_the_chain_in_the_worst_case_reaches_the_first_order_bound(lip: float) -> None:
    limits = growth.bounds("worst", lip, 10, 3, 1e-3)
    found = growth.error("worst", lip, 10, "chain", 3, 1e-3, seed=0)
    assert found == pytest.approx(limits["first order"], rel=1e-3)
    assert (found > 1.01 * limits["eq25"]) == (lip > 1)  # there the paper's equation is below the truth


@pytest.mark.parametrize("lip", [0.9, 1.0, 1.1])
def test_rotations_stay_below_the_first_order_bound(lip: float) -> None:
    for seed in range(3):
        found = growth.error("typical", lip, 8, "chain", 5, 1e-3, seed=seed)
        assert 0 < found < growth.bounds("typical", lip, 8, 5, 1e-3)["first order"]


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_without_overhead_bisection_is_the_best_tree(depth: int) -> None:
    assert trees.of_tree("bisect", depth, 0) == pytest.approx(trees.least(depth, 0)[0])


@pytest.mark.parametrize("overhead", [0, 3, 1000])
def test_no_named_tree_beats_the_best_and_its_cuts_are_a_tree(overhead: float) -> None:
    value, order = trees.least(12, overhead)
    assert len(Tree.from_order(order, 12).cuts) == 11
    assert all(trees.of_tree(name, 12, overhead) >= value * (1 - 1e-12) for name in NAMED_TREES)


def test_with_much_overhead_direct_is_the_best_tree() -> None:
    assert trees.of_tree("direct", 12, 1e6) == pytest.approx(trees.least(12, 1e6)[0])


def test_normed_layers_have_sums_of_deviation_one() -> None:
    chain = layers.chain_of(layers.Layer(32, "relu", layers.images(2, 4)), 5)
    x, _ = layers.batch_of(3, 32, seed=1)
    values = x.numpy()
    for layer, weight in zip(chain, layers.normed(chain, layers.drawn(chain, "he", 1), x), strict=True):
        assert layer.sums(weight, values).std() == pytest.approx(1)
        values = layer.ideal(np, {"weight": weight}, values)


@pytest.mark.parametrize("curve", ["relu", "gelu", "tanh", "sin"])
def test_the_device_and_its_exact_copy_compute_the_same(curve: str) -> None:
    chain = layers.chain_of(layers.Layer(6, curve, skip=0.5, branch=0.7), 3)
    x, _ = layers.batch_of(4, 6, seed=2)
    opaque = layers.module_of(chain, layers.drawn(chain, "he", 2))
    expected = layers.forward(chain, [p.detach() for p in opaque.parameters()], x)
    assert torch.allclose(opaque(x), expected, rtol=0, atol=1e-12)


def test_a_gradient_that_points_nowhere_is_aligned_with_nothing() -> None:
    aligned = layers.alignment
    exact = [torch.ones(2, dtype=torch.float64)] * 2
    assert aligned([torch.zeros(2), torch.ones(2)], exact)["first"] == 0
    assert aligned([torch.full((2,), torch.nan), torch.ones(2)], exact)["whole"] == 0
    assert aligned([1e-200 * torch.ones(2, dtype=torch.float64)] * 2, exact)["whole"] == pytest.approx(1)
