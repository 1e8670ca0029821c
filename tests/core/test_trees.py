"""Trees cover the network in every order, and cost what the method says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil import Opaque, Stage
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.forecast import forecast
from hzo_hil.plan import Cut, Plan, Tree
from hzo_hil.updates.delta import DeltaRule
from tests.core.nets import affine_opaque, inputs

depths = st.integers(1, 40)
orders = depths.flatmap(lambda depth: st.tuples(st.just(depth), st.permutations(list(range(1, depth)))))


@given(orders)
def test_any_order_covers_every_boundary_once_parents_first(case):
    depth, order = case
    tree = Tree.from_order(order, depth)
    assert tree.order == list(order)
    known = {depth}
    for cut in tree.cuts:
        assert cut.source == min(k for k in known if k > cut.at)
        known.add(cut.at)
    assert known == set(range(1, depth + 1))


@pytest.mark.parametrize("depth", range(1, 34))
def test_named_trees_are_what_their_names_say(depth):
    chain, direct, bisect = (Tree.named(n, depth) for n in ("chain", "direct", "bisect"))
    assert [len(c) for c in chain.cuts] == [1] * (depth - 1)
    assert all(c.source == depth for c in direct.cuts) and direct.order == list(range(1, depth))
    assert sorted(bisect.order) == list(range(1, depth))
    sources = {c.at: c.source for c in bisect.cuts}
    for at in sources:
        hops, here = 0, at
        while here != depth:
            here, hops = sources[here], hops + 1
        assert hops <= math.ceil(math.log2(depth)) + 1
    if depth > 1:
        assert bisect.cuts[0] == Cut((1 + depth) // 2, depth)


@given(orders, st.data())
def test_pruning_keeps_what_the_wanted_targets_stand_on_and_no_more(case, data):
    depth, order = case
    tree = Tree.from_order(order, depth)
    needed = data.draw(st.sets(st.integers(1, depth)))
    kept = tree.pruned(needed)
    assert needed - {depth} <= set(kept.order)
    assert set(kept.cuts) <= set(tree.cuts)
    ends = {c.source for c in kept.cuts}
    assert all(c.at in needed or c.at in ends for c in kept.cuts)


def test_the_input_is_cut_from_the_first_boundary():
    assert Tree.named("direct", 3).with_input().cuts[-1] == Cut(0, 1)
    assert Tree.named("chain", 1).with_input().cuts == (Cut(0, 1),)


@pytest.mark.parametrize(
    ("depth", "order", "words"),
    [
        (
            4,
            [1, 3],
            r"the tree \[1, 3\] does not cover the network: 4 stages have inner boundaries 1\.\.3; missing \[2\]",
        ),
        (3, [1, 2, 3], r"not inner boundaries \[3\]"),
        (3, [1, 1, 2], r"repeated \[1\]"),
        (3, [], r"missing \[1, 2\]"),
    ],
)
def test_an_order_that_does_not_cover_the_network_is_refused(depth, order, words):
    with pytest.raises(BadInput, match=words):
        Tree.from_order(order, depth)
    with pytest.raises(BadInput, match=words):
        Opaque(FakeDevice.mlp([2] * (depth + 1)), tree=order)


def test_a_tree_object_must_cover_the_network_too():
    device = FakeDevice.mlp([2] * 5)
    with pytest.raises(BadInput, match=r"does not cover the network: .*missing \[1, 3\]"):
        Opaque(device, tree=Tree(4, (Cut(2, 4),)))
    with pytest.raises(BadInput, match=r"the tree is for 3 stages and does not cover the network, which has 4 stages"):
        Opaque(device, tree=Tree.named("chain", 3))
    with pytest.raises(BadInput, match=r"the cut at 1 starts from boundary 2, whose target is not known by then"):
        Tree(4, (Cut(1, 2), Cut(2, 4)))
    with pytest.raises(BadInput, match=r"cut at 4 must lie below its source 4"):
        Tree(4, (Cut(4, 4),))


# ---- what trees cost

DEPTH, WIDTH = 64, 16


@pytest.mark.parametrize(("tree", "evaluations"), [("chain", 2_016), ("bisect", 6_144), ("direct", 64_512)])
def test_64_stages_of_16_cost_what_the_method_says(tree, evaluations):
    """2 M (L - 1) = 2,016 queries a sample for every tree; stage evaluations of method.md, section 2."""
    device = FakeDevice.mlp([WIDTH] * (DEPTH + 1), dtype="float64")
    module = affine_opaque([WIDTH] * (DEPTH + 1), device=device, tree=tree)
    predicted = forecast(module.network, module.resolved, module.rules, 1)
    assert predicted.queries_per_sample == 2_016
    assert predicted.stage_evaluations_per_sample == evaluations


@pytest.mark.parametrize(("tree", "evaluations"), [("chain", 2_016), ("bisect", 6_144), ("direct", 64_512)])
def test_and_the_device_is_asked_just_that(tree, evaluations):
    device = FakeDevice.mlp([WIDTH] * (DEPTH + 1))
    rule = DeltaRule("tanh")
    module = Opaque([Stage(device, k, leaf=rule) for k in range(DEPTH)], tree=tree)
    module(inputs(1, WIDTH, grad=False).float()).sum().backward()
    probes = module.ledger.accounts["probes"]
    assert (probes.queries, probes.stage_evaluations) == (2_016, evaluations)
    asked = sum(c.rows * len(c.segment) for c in device.calls)
    assert asked == evaluations + DEPTH  # and one forward


def test_no_tree_is_bisect_where_the_device_allows_it():
    assert Opaque(FakeDevice.mlp([2] * 5)).resolved.tree.name == "bisect"
    assert Plan().tree is None
