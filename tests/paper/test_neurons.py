"""The Hodgkin-Huxley layer: against published rates, and as a stage that HZO trains through."""

from __future__ import annotations

import _neurons
import numpy as np
import pytest
import torch
from _firing import Curve, Surrogate, layer
from _neurons import rates


def test_neurons_fire_from_a_current_on_and_then_at_fifty_hertz_or_more() -> None:
    """Rinzel & Miller (Math. Biosci. 49, 27, 1980): repetitive firing between about 6 and 154 uA/cm^2, at 50 Hz at
    least.
    """
    found = _neurons.RATE * rates(np.array([[0.0, 4.0, 10.0, 20.0, 80.0]]))[0]
    assert found[:2].tolist() == [0, 0]
    assert found[2] == pytest.approx(68, abs=3)  # the textbook's example, 10 uA/cm^2
    assert (np.diff(found[2:]) > 0).all() and found[-1] < 150


def test_half_the_step_gives_the_same_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    currents = np.linspace(10, 80, 8)[None]
    coarse = rates(currents)
    monkeypatch.setattr(_neurons, "STEP_MS", _neurons.STEP_MS / 2)
    np.testing.assert_allclose(rates(currents), coarse, atol=2e-4)


@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_a_row_answers_alone_as_in_company(gap: float) -> None:
    currents = np.random.default_rng(0).uniform(_neurons.LOWEST, 40, (5, 4))
    np.testing.assert_allclose(rates(currents[2:3], gap), rates(currents, gap)[2:3], rtol=1e-9)


def test_coupled_neurons_follow_their_neighbours_and_separate_ones_do_not() -> None:
    currents = np.array([[12.0, 9.0, 12.0, 9.0], [30.0, 9.0, 12.0, 9.0]])
    alone, together = rates(currents), rates(currents, 0.05)
    assert (alone[0, 1:] == alone[1, 1:]).all()
    assert abs(together[0, 1] - together[1, 1]) > 1e-3


def test_hzo_told_nothing_or_that_neurons_are_separate_finds_the_slope_of_their_rates() -> None:
    currents = torch.tensor([[12.0, 20.0], [30.0, 15.0]], dtype=torch.float64)
    eps = 0.5
    slope = (rates(currents.numpy() + eps) - rates(currents.numpy() - eps)) / (2 * eps)
    for structure in ("dense", "diagonal"):
        opaque = layer(2, 0.0, structure, eps, seed=0)
        given = currents.clone().requires_grad_()
        opaque(given).sum().backward()
        np.testing.assert_allclose(given.grad.numpy(), slope, atol=1e-9)
        assert opaque.ledger.accounts["probes"].queries == (8 if structure == "dense" else 4)


def test_a_surrogate_answers_as_the_neurons_and_slopes_as_the_curve() -> None:
    opaque = layer(2, 0.0, "diagonal", 0.5, seed=0)
    curve = Curve.measured(opaque)
    currents = torch.tensor([[12.3, 40.2]], dtype=torch.float64, requires_grad=True)
    found = Surrogate(opaque, curve)(currents)
    np.testing.assert_allclose(found.detach().numpy(), rates(currents.detach().numpy()), rtol=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), currents)
    (wanted,) = torch.autograd.grad(curve(currents).sum(), currents)
    assert torch.equal(slope, wanted) and (slope > 0).all()
    np.testing.assert_allclose(curve(currents).detach().numpy(), found.detach().numpy(), atol=5e-3)


def test_an_integration_that_went_wrong_is_an_error() -> None:
    with pytest.raises(ArithmeticError, match="integration failed"), np.errstate(all="ignore"):
        rates(np.array([[-60.0]]))
