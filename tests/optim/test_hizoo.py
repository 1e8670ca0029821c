"""HiZOO's diagonal against the closed form, and its step."""

from __future__ import annotations

import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import HiZOO
from tests.optim.losses import quadratic

DIAGONAL = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def diagonal(size: int) -> torch.Tensor:
    assert size == len(DIAGONAL)
    return torch.diag(DIAGONAL)


def test_what_is_mixed_in_averages_to_the_closed_form() -> None:
    """A + H tr(A / H) / 2 at H = 1; five standard errors of 4,000 draws for 4 numbers: false alarms about 2e-6."""
    loss = quadratic(((4,),), curvature=diagonal)
    smooth = 0.5
    found = []
    for seed in range(4000):
        w = loss.vector()
        optimizer = HiZOO(loss.parameters, lr=0.0, eps=0.1, smooth=smooth, seed=seed)
        optimizer.step(loss)
        assert torch.equal(loss.vector(), w)
        found.append((optimizer.state["hessian"] - (1 - smooth)) / smooth)
    drawn = torch.stack(found)
    expected = DIAGONAL + DIAGONAL.sum() / 2
    assert ((drawn.mean(dim=0) - expected).abs() < 5 * drawn.std(dim=0) / len(drawn) ** 0.5).all()


def test_the_diagonal_settles_in_the_hessians_proportions() -> None:
    """H -> (1 + d/2) A, within 15 %: the running mean over 1/0.002 draws of relative spread below 2 has 6 % at most."""
    loss = quadratic(((4,),), curvature=diagonal)
    optimizer = HiZOO(loss.parameters, lr=0.0, eps=0.1, smooth=0.002)
    total = torch.zeros(4, dtype=torch.float64)
    for step in range(12_000):
        optimizer.step(loss)
        if step >= 6000:
            total += optimizer.state["hessian"] / 6000
    torch.testing.assert_close(total, 3 * DIAGONAL, rtol=0.15, atol=0)


def test_a_step_is_along_the_scaled_direction_and_asks_at_w_first() -> None:
    loss = quadratic(((4,),), curvature=diagonal)
    optimizer = HiZOO(loss.parameters, lr=0.1, eps=0.01, smooth=0.3)
    optimizer.step(loss)
    hessian = optimizer.state["hessian"].clone()
    w = loss.vector()
    loss.asked.clear()
    optimizer.step(loss)
    base, plus, minus = loss.asked
    assert torch.equal(base, w)
    u = (plus - minus) / 0.02
    torch.testing.assert_close(loss.vector(), w - 0.1 * (loss.gradient_at(w) @ u) * u, rtol=1e-7, atol=1e-7)
    z = u * hessian.sqrt()
    seen = (u @ (DIAGONAL * u)) / 2 * hessian * z**2
    torch.testing.assert_close(optimizer.state["hessian"], 0.7 * hessian + 0.3 * seen, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smooth", [-0.1, 1.0])
def test_smooth_is_a_fraction(smooth: float) -> None:
    with pytest.raises(BadInput, match="HiZOO: smooth"):
        HiZOO(quadratic().parameters, lr=0.1, smooth=smooth)
