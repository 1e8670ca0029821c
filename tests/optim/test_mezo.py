"""MeZO: no drift, the same direction drawn twice, the step it is published with."""

from __future__ import annotations

import pytest
import torch

from hzo_hil.optim import MeZO
from tests.optim.losses import quadratic


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_do_not_drift(dtype: torch.dtype) -> None:
    """With lr 0 a hundred steps leave every bit as it was; walking +eps, -2 eps, +eps does not."""
    loss = quadratic(((30, 20), (5,)), dtype=dtype)
    before = [p.detach().clone() for p in loss.parameters]
    optimizer = MeZO(loss.parameters, lr=0.0)
    walked = before[0].clone()
    for step in range(100):
        optimizer.step(loss)
        z = torch.randn(walked.shape, generator=torch.Generator().manual_seed(step)).to(dtype)
        walked.add_(z, alpha=1e-3).sub_(z, alpha=2e-3).add_(z, alpha=1e-3)
    assert all(torch.equal(p, b) for p, b in zip(loss.parameters, before, strict=True))
    assert not torch.equal(walked, before[0])


def test_both_probes_and_the_step_lie_along_one_direction() -> None:
    loss = quadratic()
    w = loss.vector()
    MeZO(loss.parameters, lr=0.1, eps=0.01).step(loss)
    plus, minus = loss.asked
    z = (plus - w) / 0.01
    torch.testing.assert_close(minus, w - 0.01 * z)
    c = loss.gradient_at(w) @ z  # two-sided: exact on a quadratic
    torch.testing.assert_close(loss.vector(), w - 0.1 * c * z, rtol=1e-8, atol=1e-8)


def test_weight_decay_shrinks_as_in_sgd() -> None:
    loss, decayed = quadratic(), quadratic()
    w = loss.vector()
    MeZO(loss.parameters, lr=0.1).step(loss)
    MeZO(decayed.parameters, lr=0.1, weight_decay=0.5).step(decayed)
    torch.testing.assert_close(decayed.vector(), loss.vector() - 0.1 * 0.5 * w)
