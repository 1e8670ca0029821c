"""Forward parallelism: replicas share out the probes and change no bit; what fails in one is undone in all."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import DeepZero, FeatureReuse
from tests.optim.models import batch, loss_of, residual, same, state


def trained(copies: int, reused: bool, steps: int = 3) -> tuple[dict[str, Tensor], DeepZero]:
    models: list[nn.Module] = [FeatureReuse(m) if reused else m for m in [residual(k) for k in range(1 + copies)]]
    model, *others = models
    optimizer = DeepZero(model.parameters(), fractions=[0.3] * 18, model=model, replicas=others, mask_steps=2)
    closures = [loss_of(m, *batch()) for m in models]
    for _ in range(steps):
        optimizer.step(*closures)
    return state(model), optimizer


@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("copies", [1, 3])
def test_replicas_change_no_bit_whatever_they_held(copies: int, reused: bool) -> None:
    alone, single = trained(0, reused)
    shared, several = trained(copies, reused)
    assert same(alone, shared)
    assert several.state["queries"] == 3 * several.queries_per_step == single.state["queries"] + 3 * copies


def test_what_is_not_trained_follows_the_model_too() -> None:
    model, other = residual(0), residual(1)
    for net in (model, other):
        net[4].requires_grad_(False)
    optimizer = DeepZero([p for p in model.parameters() if p.requires_grad], model=model, replicas=[other])
    closures = [loss_of(net, *batch()) for net in (model, other)]
    shared = optimizer.estimate(*closures)
    alone = DeepZero([p for p in model.parameters() if p.requires_grad]).estimate(closures[0])
    assert all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))


def test_probes_are_asked_at_the_same_time() -> None:
    model = residual()
    other = copy.deepcopy(model)
    met = threading.Barrier(2, timeout=60)  # a step that asked one after the other would break it

    def closure(of: nn.Module) -> Any:
        loss = loss_of(of, *batch())

        def asked() -> Tensor:
            met.wait()
            return loss()

        return asked

    fractions = [1.0] * 17 + [1 / 3]  # two biases of the last layer, one for each
    DeepZero(model.parameters(), fractions=fractions, model=model, replicas=[other]).step(
        closure(model), closure(other)
    )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_failure_anywhere_stops_all_and_is_undone(which: int) -> None:
    models = [FeatureReuse(residual()) for _ in range(3)]
    optimizer = DeepZero(models[0].parameters(), model=models[0], replicas=models[1:])
    before = state(models[0])
    closures: list[Any] = [loss_of(m, *batch()) for m in models]
    good = closures[which]
    calls = 0

    def failing() -> Any:
        nonlocal calls
        calls += 1
        return math.inf if calls == 5 else good()

    closures[which] = failing
    with pytest.raises(BadInput, match="loss is inf at evaluation 5"):
        optimizer.step(*closures)
    assert same(state(models[0]), before)
    assert 0 < optimizer.state["queries"] < optimizer.queries_per_step
    closures[which] = good
    optimizer.step(*closures)
    straight = FeatureReuse(residual())
    DeepZero(straight.parameters(), model=straight).step(loss_of(straight, *batch()))
    assert same(state(models[0]), state(straight))


def test_what_is_no_replica_is_refused() -> None:
    model = residual()
    with pytest.raises(BadInput, match="replicas are copies of a model"):
        DeepZero(model.parameters(), replicas=[model])
    with pytest.raises(BadInput, match="replica 1 shares parameter 0.weight with the model"):
        DeepZero(model.parameters(), model=model, replicas=[model])
    with pytest.raises(BadInput, match="replica 2 is no copy of the model"):
        DeepZero(model.parameters(), model=model, replicas=[residual(), nn.Sequential(nn.Linear(1, 1))])
    with pytest.raises(BadInput, match="wrap the model and all replicas in FeatureReuse, or none"):
        DeepZero(model.parameters(), model=model, replicas=[FeatureReuse(residual())])
    with pytest.raises(BadInput, match="one trained is not"):
        DeepZero([nn.Parameter(torch.zeros(1))], model=model, replicas=[residual()])
    frozen = residual()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(BadInput, match="replica 1 has no parameter 0.weight of the model's shape, dtype and"):
        DeepZero(model.parameters(), model=model, replicas=[frozen])
    optimizer = DeepZero(model.parameters(), model=model, replicas=[residual()])
    with pytest.raises(BadInput, match="there are 1 replicas and closures for 0"):
        optimizer.step(loss_of(model, *batch()))
