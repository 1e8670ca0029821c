"""The same estimates as torchzero's, along the same directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hzo_hil.optim import SPSA, MeZO, mezo, spsa
from hzo_hil.optim.flat import Flat
from tests.optim.losses import Quadratic, quadratic

tz = pytest.importorskip("torchzero", reason="torchzero is not installed")


def torchzero_step(loss: Quadratic, *modules: Any) -> torch.Tensor:
    """One step of lr 0.1; the parameters it began from."""
    optimizer = tz.Optimizer(loss.parameters, *modules, tz.m.LR(0.1))
    w = loss.vector()

    def closure(backward: bool = True) -> torch.Tensor:
        assert not backward
        return loss()

    optimizer.step(closure)
    return w


@pytest.mark.parametrize("formula", ["central", "forward"])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_spsa(formula: str, distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = quadratic(), quadratic()
    eps = 0.05
    # Left alone, torchzero asks once more at w, for the loss it returns.
    settings = {"formula": formula, "distribution": distribution, "seed": 4, "return_approx_loss": True}
    w = torchzero_step(theirs, tz.m.SPSA(h=eps, **settings))
    asked = theirs.asked[0] if formula == "central" else theirs.asked[1]
    direction = (asked - w) / eps
    monkeypatch.setattr(spsa, "draw", lambda kind, at, generator: direction.clone())
    SPSA(ours.parameters, lr=0.1, eps=eps, two_sided=formula == "central").step(ours)
    torch.testing.assert_close(ours.vector(), theirs.vector(), rtol=1e-9, atol=1e-9)
    assert not torch.equal(ours.vector(), w)
    assert len(ours.asked) == len(theirs.asked)


def test_mezo(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = quadratic(), quadratic()
    eps = 0.05
    w = torchzero_step(theirs, tz.m.MeZO(h=eps, distribution="gaussian"))
    direction = (theirs.asked[0] - w) / eps
    monkeypatch.setattr(
        mezo.MeZO, "_direction", lambda self, at: iter(Flat(self.param_groups).pieces(direction.clone()))
    )
    MeZO(ours.parameters, lr=0.1, eps=eps).step(ours)
    torch.testing.assert_close(ours.vector(), theirs.vector(), rtol=1e-9, atol=1e-9)
    assert not torch.equal(ours.vector(), w)
