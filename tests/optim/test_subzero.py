"""SubZero: directions of the stated rank, in bases that last, and an unbiased projection."""

from __future__ import annotations

import torch

from hzo_hil.optim import SubZero
from hzo_hil.optim.flat import Flat
from tests.optim.losses import flat, quadratic


def test_directions_have_the_rank_and_lie_in_the_bases_until_these_are_drawn_anew() -> None:
    loss = quadratic(((6, 5), (4, 2, 3), (3,)))
    optimizer = SubZero(loss.parameters, lr=0.0, eps=0.5, rank=2, refresh=3)
    w = loss.vector()
    seen = []
    for _ in range(4):
        bases = optimizer.bases(Flat(optimizer.param_groups))
        loss.asked.clear()
        optimizer.step(loss)
        z = (loss.asked[0] - w) / 0.5
        for (rows, columns, start), basis in zip([(6, 5, 0), (4, 6, 30)], bases[:2], strict=True):
            assert basis is not None
            left, right = basis
            matrix = z[start : start + rows * columns].view(rows, columns)
            assert torch.linalg.matrix_rank(matrix, atol=1e-9) == 2
            torch.testing.assert_close(left @ left.T @ matrix @ right @ right.T, matrix)
            torch.testing.assert_close(left.T @ left, torch.eye(2, dtype=torch.float64))
        assert bases[2] is None
        seen.append(bases)
    assert torch.equal(seen[0][0][0], seen[2][0][0])  # type: ignore[index]
    assert not torch.equal(seen[2][0][0], seen[3][0][0])  # type: ignore[index]


def test_the_estimate_averages_to_the_gradients_projection() -> None:
    """Five standard errors for 30 numbers, 2,000 steps: false alarms about 2e-5."""
    loss = quadratic(((6, 5),), curved=False)
    optimizer = SubZero(loss.parameters, lr=0.0, rank=2, refresh=10_000)
    found = []
    for _ in range(2000):
        found.append(flat(optimizer.estimate(loss)))
        optimizer.step(loss)
    drawn = torch.stack(found)
    ((left, right),) = optimizer.bases(Flat(optimizer.param_groups))  # type: ignore[misc]
    expected = (left @ left.T @ loss.gradient().view(6, 5) @ right @ right.T).reshape(-1)
    assert ((drawn.mean(dim=0) - expected).abs() < 5 * drawn.std(dim=0) / 2000**0.5).all()
