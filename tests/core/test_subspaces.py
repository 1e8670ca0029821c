"""Learned subspaces: exact inside, honest about what is outside, counted, kept with the module."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch

from hzo_hil import Opaque, Stage
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.forecast import forecast
from hzo_hil.probes import probe_set
from hzo_hil.probes.memory import Memory
from hzo_hil.probes.subspace import ENOUGH, Directions, Subspace
from hzo_hil.updates.delta import DeltaRule
from tests.core.nets import Affine, OnHost, affine_opaque, cosine, gradients, inputs, loss_of

WIDTH, SIZE, EXPLORE, SAMPLES = 24, 4, 2, 40


def low_rank(seed: int, rank: int = SIZE, rest: float = 0.0) -> np.ndarray:
    """Targets [samples, width] in the first `rank` of a fixed set of axes, and `rest` of them anywhere."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0][:rank]
    rng = np.random.default_rng([1, seed])
    return rng.normal(size=(SAMPLES, rank)) @ axes + rest * rng.normal(size=(SAMPLES, WIDTH)) / np.sqrt(WIDTH)


def answered(asked, targets: np.ndarray, key: int) -> np.ndarray:
    """What a noise-free device makes of targets through a probe set."""
    directions = asked.directions(WIDTH, key, 0, len(targets))[0]
    return asked.decode(targets @ directions.T, WIDTH, key, 0)


def passes(learner: Subspace, memory: Memory, count: int, first: int = 0, **options: float) -> None:
    for step in range(first, first + count):
        asked = learner.for_step(memory)
        targets = low_rank(step, **options)
        learner.observe(memory, asked, answered(asked, targets, step), step, None)


@pytest.mark.parametrize("grid", [0.0, 0.125])
def test_a_pass_decodes_to_the_projection_on_what_it_asked(grid):
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(WIDTH, SIZE)))[0].T
    asked = Directions(basis, EXPLORE, "subspace", grid)
    rows = asked.directions(WIDTH, 7, 0, 1)[0]
    assert rows.shape == (SIZE + EXPLORE, WIDTH) == (asked.count(WIDTH), WIDTH)
    np.testing.assert_allclose(np.abs(rows).max(axis=1), asked.reach(WIDTH))
    if grid:
        np.testing.assert_allclose(rows / grid, np.rint(rows / grid))
    targets = np.random.default_rng(3).normal(size=(5, WIDTH))
    span = np.linalg.qr(rows.T)[0]
    np.testing.assert_allclose(answered(asked, targets, 7), targets @ span @ span.T, atol=1e-12)


def test_exploring_directions_are_new_in_every_pass_and_outside_what_is_known():
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(WIDTH, SIZE)))[0].T
    asked = Directions(basis, EXPLORE, "subspace")
    first, second = (asked.axes(key)[0] for key in (1, 2))
    np.testing.assert_allclose(first @ first.T, np.eye(SIZE + EXPLORE), atol=1e-12)
    assert np.array_equal(first[:SIZE], basis) and not np.allclose(first[SIZE:], second[SIZE:])
    assert np.array_equal(asked.axes(1)[0], first)


def test_it_begins_in_full_and_then_asks_where_targets_were():
    learner, memory = Subspace.named(f"{SIZE}+{EXPLORE}"), Memory()
    assert learner.for_step(None) is learner.full and learner.for_step(memory) is learner.full
    passes(learner, memory, 1)
    asked = learner.for_step(memory)
    assert asked.count(WIDTH) == SIZE + EXPLORE
    targets = low_rank(9)
    np.testing.assert_allclose(answered(asked, targets, 9), targets, atol=1e-10)
    passes(learner, memory, 3, first=1)
    assert memory.captured == pytest.approx(1.0)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_size_is_that_of_the_targets(rank):
    learner, memory = Subspace(chain=50), Memory()
    passes(learner, memory, 2, rank=rank)
    assert memory.basis is not None and len(memory.basis) == rank


def test_targets_without_leading_directions_are_probed_in_full():
    learner, memory = Subspace.named(f"{SIZE}+{EXPLORE}").placed(probe_set("coordinate"), 4, 0.0), Memory()
    passes(learner, memory, 5, rank=WIDTH)
    assert memory.basis is None


def test_read_noise_is_not_taken_for_captured_energy():
    """Rank 2 under as much noise, declared or not: all of the targets is caught; were noise signal, 54 % would be."""
    learner, memory = Subspace.named("2+2").placed(probe_set("coordinate"), 1, 0.0), Memory()
    rng = np.random.default_rng(5)
    deviation = np.sqrt(2 / WIDTH)
    for step in range(60):
        asked = learner.full
        noisy = low_rank(step, rank=2) + deviation * rng.normal(size=(SAMPLES, WIDTH))
        learner.observe(memory, asked, noisy, step, deviation**2)
    assert memory.captured == pytest.approx(1.0, abs=0.1)
    blind = Memory()
    for step in range(60):
        noisy = low_rank(step, rank=2) + deviation * rng.normal(size=(SAMPLES, WIDTH))
        learner.observe(blind, learner.full, noisy, step, None)
    assert blind.noise * WIDTH == pytest.approx(0.5, abs=0.1)
    assert blind.captured == pytest.approx(1.0, abs=0.1)


def test_exploring_directions_notice_when_targets_go_elsewhere():
    learner, memory = Subspace.named(f"{SIZE}+{EXPLORE}").placed(probe_set("coordinate"), 2, 0.0), Memory()
    passes(learner, memory, 5)
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(WIDTH, WIDTH)))[0]
    asked_in_full = 0
    for step in range(30):
        asked = learner.for_step(memory)
        asked_in_full += asked is learner.full
        learner.observe(memory, asked, answered(asked, low_rank(step) @ turn, step), step, None)
    assert asked_in_full >= 1
    asked, targets = learner.for_step(memory), low_rank(99) @ turn
    assert ((answered(asked, targets, 99) - targets) ** 2).sum() < (1 - ENOUGH ** (1 / 2)) * (targets**2).sum()
    assert memory.captured > ENOUGH ** (1 / 2)


def test_captured_energy_is_estimated_without_bias():
    """70 % inside: the mean over 400 passes is within 6 standard errors (false alarms below 1e-8)."""
    learner = Subspace.named(f"{SIZE}+{EXPLORE}")
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0][:SIZE]
    found = []
    outside = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0][SIZE:]
    for key in range(400):
        rng = np.random.default_rng([4, key])
        targets = np.sqrt(0.7 / SIZE) * rng.normal(size=(SAMPLES, SIZE)) @ basis
        targets += np.sqrt(0.3) * rng.normal(size=(SAMPLES, 1)) * outside[:1]
        asked = Directions(basis, EXPLORE, "subspace")
        along = ((answered(asked, targets, key) @ asked.axes(key)[0].T) ** 2).mean(axis=0)
        found.append(along[SIZE:].mean() * (WIDTH - SIZE))
        memory = Memory(basis=basis, explore=EXPLORE, captured=0.7)
        learner.observe(memory, asked, answered(asked, targets, key), key, 0.0)
        assert 0 <= memory.captured <= 1
    assert abs(np.mean(found) - 0.3) < 6 * np.std(found) / np.sqrt(len(found))


# --- in a module ---------------------------------------------------------------------------------------------------


def trained(module: Opaque, steps: range) -> None:
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)
    for step in steps:
        optimiser.zero_grad()
        loss_of(module(inputs(12, module.network.width(0), seed=step, grad=False))).backward()
        optimiser.step()


@pytest.mark.parametrize("tree", ["chain", "bisect"])
@pytest.mark.parametrize("differences", ["central", "forward"])
def test_the_next_pass_costs_what_is_forecast(tree, differences):
    module = affine_opaque([16, 16, 16, 3], probes="subspace:3+2", tree=tree, differences=differences)
    sizes = set()
    for step in range(5):
        predicted = forecast(module.network, module.next_pass, module.rules, 12).purposes["probes"]
        before = module.ledger.accounts["probes"].queries
        trained(module, range(step, step + 1))
        assert module.ledger.accounts["probes"].queries - before == predicted.queries
        sizes.add(predicted.queries)
    assert len(sizes) > 1  # it began in full and went on with less


def test_gradients_keep_their_direction_at_a_fraction_of_the_queries():
    """A read-out of three numbers: targets of rank 3, nearly the same for all samples while activations are small."""
    module = affine_opaque([32, 32, 32, 3], probes="subspace:6+2", tree="chain")
    trained(module, range(3))
    before = module.ledger.accounts["probes"].queries
    x = 0.1 * inputs(10, 32, seed=50, grad=False)
    masters = list(module.parameters())
    found = torch.autograd.grad(loss_of(module(x)), masters)
    assert module.ledger.accounts["probes"].queries - before == 10 * 2 * 2 * 8
    expected = gradients(OnHost(module, "tanh"), masters, x)[:-1]
    assert cosine(found, expected) > 0.95


def noisy(seed: int = 0) -> Opaque:
    device = FakeDevice.mlp([10] * 4, keyed=True, script=Script(noise=0.01), max_batch=17)
    stages = [Stage(device, k, leaf=DeltaRule("tanh"), twin=Affine()) for k in range(3)]
    return Opaque(stages, probes="subspace:3+1", tree="chain", eps=0.2, seed=seed)


def remembered(module: Opaque) -> list[tuple]:
    return [(at, m.captured, m.noise, m.moment.tobytes()) for at, m in sorted(module.subspaces.memories.items())]


def test_a_resumed_loop_is_bit_identical():
    whole, first = noisy(), noisy()
    trained(whole, range(8))
    trained(first, range(4))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    second = noisy()
    second.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    trained(second, range(4, 8))
    assert any(m.basis is not None for m in whole.subspaces.memories.values())
    assert remembered(whole) == remembered(second)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_copy_learns_for_itself():
    module = noisy()
    trained(module, range(3))
    before = remembered(module)
    twin = copy.deepcopy(module)
    assert remembered(twin) == before
    trained(twin, range(3, 6))
    assert remembered(module) == before != remembered(twin)


def test_it_never_certifies():
    assert Subspace.named("").certified is False


@pytest.mark.parametrize(
    "name", ["subspace:", "subspace:0", "subspace:4+0", "subspace:+3", "subspace:a", "subspace:4+"]
)
def test_a_name_that_says_nothing_is_refused(name):
    with pytest.raises(BadInput, match="subspace"):
        probe_set(name)


def test_a_narrow_boundary_is_probed_in_full():
    module = affine_opaque([4, 4, 4], probes="subspace:3+2")
    trained(module, range(3))
    assert module.ledger.accounts["probes"].queries == 3 * 12 * 2 * 4
