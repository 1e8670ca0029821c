"""LPP: perturbations with the stated covariance, refreshed when stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import LPP
from tests.optim.losses import flat, quadratic


def jacobians(*sizes: int, seed: int = 3) -> Callable[[], list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    fixed = [torch.randn(6, n, generator=rng, dtype=torch.float64) for n in sizes]
    return lambda: fixed


def covariance(jacobian: torch.Tensor, rho: float) -> torch.Tensor:
    metric = jacobian.T @ jacobian
    metric = metric / metric.diagonal().mean()
    identity = torch.eye(len(metric), dtype=metric.dtype)
    return (1 + rho) * torch.linalg.inv(metric + rho * identity)


def test_perturbations_have_the_covariance_and_the_step_is_preconditioned_by_it() -> None:
    """Two groups, uncorrelated with one another. Five standard errors for 25 + 5 numbers, 3,000 draws: 2e-5."""
    loss = quadratic(((3,), (2,)), curved=False)
    source = jacobians(3, 2)
    groups = [{"params": [p]} for p in loss.parameters]
    w = loss.vector()
    deltas, steps = [], []
    for seed in range(3000):
        loss.asked.clear()
        steps.append(flat(LPP(groups, lr=0.1, jacobian=source, rho=0.2, eps=0.5, seed=seed).estimate(loss)))
        deltas.append((loss.asked[1] - w) / 0.5)
    expected = torch.block_diag(*(covariance(j, 0.2) for j in source()))
    drawn = torch.stack(deltas)
    products = drawn[:, :, None] * drawn[:, None, :]
    assert ((products.mean(dim=0) - expected).abs() < 5 * products.std(dim=0) / 3000**0.5).all()
    found = torch.stack(steps)
    assert ((found.mean(dim=0) - expected @ loss.gradient()).abs() < 5 * found.std(dim=0) / 3000**0.5).all()


def test_the_model_is_asked_at_the_start_and_at_every_refresh() -> None:
    loss = quadratic(((3,),))
    asked: list[torch.Tensor] = []
    source = jacobians(3)

    def jacobian() -> Any:
        asked.append(loss.vector())
        return source()

    optimizer = LPP(loss.parameters, lr=0.01, jacobian=jacobian, refresh=3)
    held = []
    for _ in range(4):
        held.append(loss.vector())
        optimizer.step(loss)
    assert len(asked) == 2
    assert torch.equal(asked[0], held[0])
    assert torch.equal(asked[1], held[3])


def test_the_metric_is_a_running_mean() -> None:
    loss = quadratic(((3,),))
    first, second = jacobians(3, seed=1)(), jacobians(3, seed=2)()
    answers = iter([first, second])
    optimizer = LPP(loss.parameters, lr=0.01, jacobian=lambda: next(answers), refresh=1, rate=0.25)
    optimizer.step(loss)
    optimizer.step(loss)
    a, b = (j[0].T @ j[0] for j in (first, second))
    expected = 0.75 * a / a.diagonal().mean() + 0.25 * b / b.diagonal().mean()
    torch.testing.assert_close(optimizer.state["metric.0"], expected)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([torch.zeros(4, 2)], r"finite matrix \[outputs, 3\]; it is \(4, 2\)"),
        ([torch.full((4, 3), float("nan"))], "not finite"),
        ([torch.zeros(4, 3)] * 2, "2 matrices for 1 parameter groups"),
        (torch.zeros(4, 3), "returned Tensor for 1 parameter groups"),
        (None, "returned NoneType for 1 parameter groups"),
    ],
)
def test_jacobians_that_do_not_fit_are_refused_before_any_loss_is_asked(answer: Any, text: str) -> None:
    loss = quadratic(((3,),))
    with pytest.raises(BadInput, match=text):
        LPP(loss.parameters, lr=0.1, jacobian=lambda: answer).step(loss)
    assert not loss.asked


def test_a_model_that_sees_no_parameter_leaves_them_uncorrelated() -> None:
    loss = quadratic(((3,),))
    optimizer = LPP(loss.parameters, lr=0.1, jacobian=lambda: [torch.zeros(4, 3)])
    optimizer.step(loss)
    assert torch.equal(optimizer.state["metric.0"], torch.eye(3, dtype=torch.float64))
