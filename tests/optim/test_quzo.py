"""QuZO: everything on its grid, and nothing lost on average."""

from __future__ import annotations

import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import QuZO
from tests.optim.losses import quadratic


def on_grid(vector: torch.Tensor, grid: float) -> bool:
    steps = vector / grid
    return bool(((steps - steps.round()).abs() < 1e-6).all())


def test_weights_and_perturbed_weights_lie_on_the_grid() -> None:
    loss = quadratic()
    optimizer = QuZO(loss.parameters, lr=0.05, grid=0.125, bits=3)
    for _ in range(5):
        optimizer.step(loss)
        assert on_grid(loss.vector(), 0.125)
    assert all(on_grid(asked, 0.125) for asked in loss.asked)


def test_directions_have_as_many_levels_as_bits_allow() -> None:
    loss = quadratic(((2000,),), curvature=lambda d: torch.zeros(d, d, dtype=torch.float64))
    w = loss.vector()
    QuZO(loss.parameters, lr=0.0, eps=1.0, bits=3).step(loss)
    levels = (loss.asked[0] - w).round(decimals=9).unique()
    torch.testing.assert_close(levels, torch.arange(-3, 4, dtype=torch.float64))  # 2^(3-1) - 1 = 3 on either side


def test_two_roundings_give_an_unbiased_gradient_and_one_would_not() -> None:
    """Two bits round coarsely. Five standard errors for 4 numbers, 6,000 draws: false alarms about 2e-6."""
    loss = quadratic(((4,),), curved=False)
    gradient, w = loss.gradient(), loss.vector()
    found, squared = [], []
    for seed in range(6000):
        loss.parameters[0].data.copy_(w)
        loss.asked.clear()
        QuZO(loss.parameters, lr=1.0, bits=2, eps=0.1, seed=seed).step(loss)
        found.append(w - loss.vector())
        u = (loss.asked[0] - w) / 0.1
        squared.append((gradient @ u) * u)
    drawn, once = torch.stack(found), torch.stack(squared)
    standard = drawn.std(dim=0) / 6000**0.5
    assert ((drawn.mean(dim=0) - gradient).abs() < 5 * standard).all()
    assert ((once.mean(dim=0) - gradient).abs() > 0.5 * gradient.abs()).all()


def test_updates_smaller_than_the_grid_happen_on_average() -> None:
    """lr g is a tenth of the grid at most; rounding to nearest would never move. Five standard errors, 4,000 draws."""
    loss = quadratic(((1,),), curved=False)
    moves = []
    for seed in range(4000):
        loss.parameters[0].data.fill_(1.0)
        QuZO(loss.parameters, lr=0.001, grid=0.5, bits=8, seed=seed).step(loss)
        moves.append(1.0 - float(loss.vector()))
    drawn = torch.tensor(moves, dtype=torch.float64)
    expected = 0.001 * float(loss.gradient())
    assert set(drawn.tolist()) <= {-0.5, 0.0, 0.5}
    assert abs(float(drawn.mean()) - expected) < 5 * float(drawn.std()) / 4000**0.5


def test_eps_must_be_whole_steps_of_the_grid() -> None:
    with pytest.raises(BadInput, match=r"1\.5 steps of the weights' grid.*multiple of 0\.0333333"):
        QuZO(quadratic().parameters, lr=0.1, grid=0.1, bits=2, eps=0.05)
    QuZO(quadratic().parameters, lr=0.1, grid=0.1, bits=2, eps=0.2 / 3)
    with pytest.raises(BadInput, match="QuZO: bits is 1"):
        QuZO(quadratic().parameters, lr=0.1, bits=1)


def test_groups_may_have_grids_of_their_own() -> None:
    loss = quadratic(((3,), (4,)))
    groups = [{"params": loss.parameters[:1], "grid": 0.25, "eps": 0.25}, {"params": loss.parameters[1:]}]
    QuZO(groups, lr=0.05, bits=3).step(loss)
    assert on_grid(loss.vector()[:3], 0.25)
    assert not on_grid(loss.vector()[3:], 0.25)
