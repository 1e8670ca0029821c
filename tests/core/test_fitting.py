"""What is kept of answers, and what a fit makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hzo_hil.simulators.fitted import FittedMesh
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.mesh_stage import MeshStage
from hzo_hil.updates.fitting import Follow, fit, unexplained
from hzo_hil.updates.replay import Replay

TWO_PI = 2 * math.pi


def measured(settings: int, seed: int = 0) -> tuple[FittedMesh, MeshStage, tuple[torch.Tensor, ...]]:
    """A twin that knows nothing, the mesh it stands for, and its answers to random inputs at random settings."""
    errors = MeshErrors(phase_bias=0.2, coupler_std=0.02, gamma_std=0.002, crosstalk=0.005)
    stage = MeshStage(4, errors=errors, seed=seed)
    rng = np.random.default_rng(seed)
    commanded = rng.uniform(0, TWO_PI, (settings, stage.layout.phases))
    inputs = rng.standard_normal((settings, 6, 4))
    keys = np.arange(6, dtype=np.uint64)
    answers = [
        stage.run(stage.program(stage.named_phases(c), 0), x, keys) for c, x in zip(commanded, inputs, strict=True)
    ]
    return FittedMesh(stage), stage, tuple(torch.as_tensor(v) for v in (commanded.T.copy(), inputs, np.stack(answers)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fit_finds_small_errors_and_predicts_what_it_has_not_seen(seed):
    twin, stage, data = measured(60, seed)
    seen = [t[..., :40] if t.ndim == 2 else t[:40] for t in data]
    other = [t[..., 40:] if t.ndim == 2 else t[40:] for t in data]
    before = unexplained(twin, *other)
    left = fit(twin, *seen, noise=1e-4, iterations=150)
    assert left < 2e-3 and unexplained(twin, *other) < before / 50
    off = np.angle(np.exp(1j * (twin.bias.numpy() - stage.mesh._bias)))
    assert np.sqrt(np.mean(off**2)) < 0.05
    assert float(twin.crosstalk) == pytest.approx(0.005, abs=1e-3)


def test_following_gets_closer_and_its_state_goes_on_to_the_bit():
    twin, _, data = measured(20)
    before = unexplained(twin, *data)
    following = Follow(twin, 0.01)
    for _ in range(30):
        following.step(*data, 0.0)
    assert unexplained(twin, *data) < before / 2
    again, _, _ = measured(20)
    for name in again.expected:
        getattr(again, name).copy_(getattr(twin, name))
    other = Follow(again, 0.01)
    other.load(following.state())
    for one in (following, other):
        one.step(*data, 0.0)
    assert torch.equal(twin.bias, again.bias) and torch.equal(twin.crosstalk, again.crosstalk)


def test_what_is_kept_depends_neither_on_the_order_of_answers_nor_on_how_they_were_split():
    rng = np.random.default_rng(0)
    whole = [((purpose, number, 0), rng.standard_normal(3), rng.standard_normal((6, 2)), rng.standard_normal((6, 2)))
             for purpose, number in (("leaf", 1), ("leaf", 2), ("probes", 0))]  # fmt: skip
    split = [
        ((p, n, first), c, x[first : first + 2], y[first : first + 2])
        for (p, n, _), c, x, y in whole
        for first in (0, 2, 4)
    ]
    kept = []
    for heard in (whole, split, split[::-1]):
        replay = Replay(4, 5)
        for answer in heard:
            replay.hear(*answer)
        replay.keep(2, np.random.default_rng(1))
        kept.append(replay.tensors())
    for other in kept[1:]:
        assert all(torch.equal(a, b) for a, b in zip(kept[0], other, strict=True))
    assert [t.shape for t in kept[0]] == [(3, 2), (2, 5, 2), (2, 5, 2)]


def test_the_oldest_go_and_few_rows_are_repeated():
    replay = Replay(2, 3)
    for step in range(4):
        replay.hear(("forward", 0, 0), np.full(1, step), np.full((1, 1), step), np.full((1, 1), step))
        replay.keep(2, np.random.default_rng(0))
    commanded, inputs, _ = replay.tensors()
    assert commanded.tolist() == [[2, 3]]
    assert inputs.tolist() == [[[2]] * 3, [[3]] * 3]
    replay.hear(("forward", 0, 0), np.zeros(1), np.zeros((1, 1)), np.zeros((1, 1)))
    replay.forget()
    replay.keep(2, np.random.default_rng(0))
    assert replay.tensors()[0].tolist() == [[2, 3]]
