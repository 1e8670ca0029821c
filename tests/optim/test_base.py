"""What every loss-only method keeps to: restore on error, resume bit for bit, schedulers, refusals."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hzo_hil import optim
from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import CGE, SPSA, LossOnly
from tests.optim.losses import Quadratic, quadratic

Make = Callable[[Any], LossOnly]

METHODS: dict[str, Make] = {
    "SPSA": lambda p: optim.SPSA(p, lr=0.05, directions=2, momentum=0.9),
    "RGE": lambda p: optim.RGE(p, lr=0.05, directions=3),
    "CGE": lambda p: optim.CGE(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "DeepZero": lambda p: optim.DeepZero(p, lr=0.05, fractions=[0.5, 0], mask_steps=2),
    "ZOSAH": lambda p: optim.ZOSAH(p, planes=2, keep=4, eps=0.02),
    "MeZO": lambda p: optim.MeZO(p, lr=0.05, weight_decay=1e-3),
    "HiZOO": lambda p: optim.HiZOO(p, lr=0.05, smooth=0.1, momentum=0.5),
    "SubZero": lambda p: optim.SubZero(p, lr=0.05, rank=1, refresh=2),
    "QuZO": lambda p: optim.QuZO(p, lr=0.05, grid=0.125),
    "MGD walsh": lambda p: optim.MGD(p, lr=0.05, code="walsh", period=6),
    "MGD random": lambda p: optim.MGD(p, lr=0.05, cost_noise=0.1, update_noise=0.1, momentum=0.5),
    "LPP": lambda p: optim.LPP(p, lr=0.05, jacobian=lambda: [FIXED], refresh=3),
    "FLOPS": lambda p: optim.FLOPS(p, lr=0.05),
    "sparse": lambda p: optim.SparseCoordinateDescent(p, coordinates=3, opposite=False, active=0.6),
}
FIXED = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))

each = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def stepped(make: Make, loss: Quadratic, steps: int) -> LossOnly:
    optimizer = make(loss.parameters)
    for _ in range(steps):
        optimizer.step(loss)
    return optimizer


@each
def test_queries_per_step_is_what_is_asked(make: Make) -> None:
    loss = quadratic()
    optimizer = stepped(make, loss, 3)
    assert optimizer.state["queries"] == len(loss.asked) == 3 * optimizer.queries_per_step


@each
def test_the_same_seed_gives_the_same_steps_and_another_device_state_does_not_matter(make: Make) -> None:
    first, second = quadratic(), quadratic()
    stepped(make, first, 3)
    torch.manual_seed(99)
    torch.randn(5)
    stepped(make, second, 3)
    assert torch.equal(first.vector(), second.vector())


@each
def test_a_saved_optimizer_goes_on_bit_for_bit(make: Make) -> None:
    whole = quadratic()
    stepped(make, whole, 5)
    loss = quadratic()
    begun = stepped(make, loss, 2)
    file = io.BytesIO()
    torch.save({"optimizer": begun.state_dict(), "parameters": [p.detach() for p in loss.parameters]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = quadratic()
    for p, value in zip(resumed.parameters, saved["parameters"], strict=True):
        p.data.copy_(value)
    optimizer = make(resumed.parameters)
    optimizer.load_state_dict(saved["optimizer"])
    begun.step(loss)  # an optimizer that goes on beside it shares nothing with it
    for _ in range(3):
        optimizer.step(resumed)
    assert torch.equal(resumed.vector(), whole.vector())
    assert optimizer.state["queries"] == 5 * optimizer.queries_per_step


@each
def test_a_loss_that_is_not_finite_is_named_and_undone(make: Make) -> None:
    loss = quadratic()
    optimizer = stepped(make, loss, 2)
    before, queries = loss.vector(), optimizer.state["queries"]
    at = optimizer.queries_per_step
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        return float("inf") if calls == at else loss()

    with pytest.raises(BadInput, match=f"loss is inf at evaluation {at} of {at} in step 3"):
        optimizer.step(closure)
    assert torch.equal(loss.vector(), before)
    assert optimizer.state["queries"] == queries + at
    undisturbed = quadratic()
    stepped(make, undisturbed, 3)
    optimizer.step(loss)  # as if nothing had happened
    assert torch.equal(loss.vector(), undisturbed.vector())


@each
def test_an_error_of_the_closure_is_passed_on_and_undone(make: Make) -> None:
    loss = quadratic()
    optimizer = make(loss.parameters)
    before = loss.vector()
    asked = 0

    def closure() -> Any:
        nonlocal asked
        asked += 1
        if asked == optimizer.queries_per_step:
            raise KeyboardInterrupt
        return loss()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(loss.vector(), before)


@each
def test_parameters_may_be_of_low_precision(make: Make) -> None:
    loss = quadratic(dtype=torch.bfloat16)
    before = loss.vector()
    stepped(make, loss, 1)
    assert all(p.dtype == torch.bfloat16 for p in loss.parameters)
    assert torch.isfinite(loss.vector()).all()
    assert not torch.equal(loss.vector(), before)


def test_schedulers_drive_the_learning_rate() -> None:
    loss = quadratic()
    optimizer = CGE(loss.parameters, lr=0.1, eps=0.1, central=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for lr in (0.1, 0.05, 0.025):
        w, gradient = loss.vector(), loss.gradient()
        optimizer.step(loss)
        schedule.step()
        torch.testing.assert_close(loss.vector(), w - lr * gradient, rtol=1e-9, atol=1e-9)


def test_frozen_parameters_stay() -> None:
    loss = quadratic()
    loss.parameters[0].requires_grad_(False)
    before = loss.parameters[0].detach().clone()
    optimizer = stepped(METHODS["CGE"], loss, 1)
    assert optimizer.queries_per_step == 1 + loss.parameters[1].numel()
    assert torch.equal(loss.parameters[0], before)


def test_freezing_on_the_way_is_refused() -> None:
    loss = quadratic()
    optimizer = stepped(METHODS["SPSA"], loss, 1)
    loss.parameters[0].requires_grad_(False)
    with pytest.raises(BadInput, match="began with 10 parameters and now has 4"):
        optimizer.step(loss)


def test_another_methods_state_is_refused() -> None:
    with pytest.raises(BadInput, match="saved by CGE: SPSA cannot go on from it"):
        SPSA(quadratic().parameters, lr=0.1).load_state_dict(CGE(quadratic().parameters, lr=0.1).state_dict())


def test_parameters_on_two_devices_are_refused() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2, device="meta"))]
    with pytest.raises(BadInput, match="on cpu and on meta.*Move the model to one device"):
        SPSA(parameters, lr=0.1)


def test_integers_and_complex_numbers_and_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match=r"complex64: only real"):
        SPSA([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))], lr=0.1)
    with pytest.raises(BadInput, match="none of those given has requires_grad"):
        SPSA([torch.zeros(2)], lr=0.1)


@pytest.mark.parametrize(
    ("value", "text"), [(torch.zeros(3), r"shape \(3,\) at evaluation 1 of 2"), (None, "returned None"), ("x", "'x'")]
)
def test_a_closure_must_return_one_number(value: object, text: str) -> None:
    loss = quadratic()
    before = loss.vector()
    with pytest.raises(BadInput, match=text):
        SPSA(loss.parameters, lr=0.1).step(lambda: value)
    assert torch.equal(loss.vector(), before)


def test_a_step_without_a_closure_is_refused() -> None:
    with pytest.raises(BadInput, match="SPSA.step needs a closure"):
        SPSA(quadratic().parameters, lr=0.1).step()


def test_the_loss_is_asked_without_gradients() -> None:
    p = torch.nn.Parameter(torch.zeros(2))

    def closure() -> torch.Tensor:
        loss = (p - 1).square().sum()
        assert not loss.requires_grad
        return loss

    SPSA([p], lr=0.1).step(closure)
