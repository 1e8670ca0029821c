"""Coordinate-wise estimates against closed forms."""

from __future__ import annotations

import pytest
import torch

from hzo_hil.optim import CGE
from tests.optim.losses import flat, quadratic


def test_central_differences_are_exact_on_a_quadratic() -> None:
    loss = quadratic()
    found = flat(CGE(loss.parameters, lr=0.1, eps=0.1, central=True).estimate(loss))
    torch.testing.assert_close(found, loss.gradient().to(found), rtol=1e-10, atol=1e-10)


def test_forward_differences_are_off_by_half_the_curvature_times_eps() -> None:
    loss = quadratic()
    found = flat(CGE(loss.parameters, lr=0.1, eps=0.1).estimate(loss))
    expected = loss.gradient() + 0.05 * loss.curvature.diagonal()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_step_is_that_of_sgd_on_the_exact_gradient() -> None:
    ours, theirs = quadratic(), quadratic()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    optimizer = CGE(ours.parameters, eps=0.1, central=True, **settings)  # type: ignore[arg-type]
    reference = torch.optim.SGD(theirs.parameters, **settings)  # type: ignore[arg-type]
    for _ in range(5):
        optimizer.step(ours)
        start = 0
        for p in theirs.parameters:
            p.grad = theirs.gradient()[start : start + p.numel()].view_as(p).clone()
            start += p.numel()
        reference.step()
    torch.testing.assert_close(ours.vector(), theirs.vector(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("central", "queries"), [(False, 11), (True, 20)])
def test_queries(central: bool, queries: int) -> None:
    loss = quadratic()
    optimizer = CGE(loss.parameters, lr=0.1, central=central)
    optimizer.step(loss)
    assert optimizer.queries_per_step == optimizer.state["queries"] == len(loss.asked) == queries


def test_one_element_at_a_time_is_moved_whatever_the_layout() -> None:
    loss = quadratic(((3, 2), (), (2, 2)))
    loss.parameters[0] = torch.nn.Parameter(loss.parameters[0].detach().t().contiguous().t())
    assert not loss.parameters[0].is_contiguous()
    w = loss.vector()
    found = flat(CGE(loss.parameters, lr=0.1, eps=0.25, central=True).estimate(loss))
    for index, (plus, minus) in enumerate(zip(loss.asked[::2], loss.asked[1::2], strict=True)):
        step = torch.zeros_like(w)
        step[index] = 0.25
        torch.testing.assert_close(plus - w, step)
        torch.testing.assert_close(minus - w, -step)
    torch.testing.assert_close(found, loss.gradient(), rtol=1e-10, atol=1e-10)


def test_low_precision_divides_by_the_step_it_really_made() -> None:
    """In bfloat16 a step of 0.005 at 1 becomes 1/128: dividing by what was asked for would be 56 % off."""
    loss = quadratic(((4,),), dtype=torch.bfloat16, curved=False)
    loss.parameters[0].data.fill_(1.0)
    found = flat(CGE(loss.parameters, lr=0.1, eps=5e-3).estimate(loss))
    torch.testing.assert_close(found.double(), loss.gradient(), rtol=1e-5, atol=1e-5)


def test_a_step_that_the_dtype_swallows_gives_zero_and_not_nan() -> None:
    loss = quadratic(((4,),), dtype=torch.bfloat16, curved=False)
    loss.parameters[0].data.fill_(100.0)
    assert not flat(CGE(loss.parameters, lr=0.1, eps=1e-3).estimate(loss)).any()
