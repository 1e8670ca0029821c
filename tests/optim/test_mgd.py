"""MGD: orthogonal codes, the code in time as CGE, noise where it is said to be."""

from __future__ import annotations

import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import CGE, MGD
from hzo_hil.optim.codes import period, signal
from hzo_hil.optim.flat import Flat
from tests.optim.losses import flat, quadratic


@pytest.mark.parametrize("size", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("code", ["time", "walsh", "frequency"])
@pytest.mark.parametrize("start", [0, 3])
def test_codes_are_orthogonal_over_their_period_wherever_it_begins(code: str, size: int, start: int) -> None:
    at = Flat([{"params": [torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))]}])
    times = period(code, size)
    found = torch.stack([signal(code, at, start * times + t, torch.Generator()) for t in range(times)])
    energy = {"time": 1.0, "walsh": times, "frequency": times / 2}[code]
    torch.testing.assert_close(found.T @ found, energy * torch.eye(size, dtype=torch.float64))
    assert found.abs().max() <= 1
    if code != "time":  # the mean cost is no gradient
        torch.testing.assert_close(found.sum(dim=0), torch.zeros(size, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_code_in_time_is_cge() -> None:
    ours, theirs = quadratic(), quadratic()
    for _ in range(3):
        mgd = MGD(ours.parameters, lr=0.1, eps=0.05, code="time")
        cge = CGE(theirs.parameters, lr=0.1, eps=0.05)
        mgd.step(ours)
        cge.step(theirs)
    torch.testing.assert_close(ours.vector(), theirs.vector(), rtol=1e-10, atol=1e-10)
    assert mgd.state["queries"] == cge.state["queries"] == 11


@pytest.mark.parametrize("code", ["time", "walsh", "frequency"])
def test_a_whole_period_gives_the_exact_gradient_of_a_linear_loss(code: str) -> None:
    loss = quadratic(curved=False)
    found = flat(MGD(loss.parameters, lr=0.1, eps=0.5, code=code).estimate(loss))
    torch.testing.assert_close(found, loss.gradient(), rtol=1e-9, atol=1e-9)


def test_random_signs_average_to_the_gradient() -> None:
    """Five standard errors for 10 numbers, 1,500 draws: false alarms about 6e-6. The variance of a mean over p time
    steps of a linear loss is (|g|^2 - g_i^2) / p."""
    loss = quadratic(curved=False)
    found = torch.stack(
        [flat(MGD(loss.parameters, lr=0.1, period=5, seed=seed).estimate(loss)) for seed in range(1500)]
    )
    g = loss.gradient()
    expected = (g.square().sum() - g**2) / 5
    assert ((found.mean(dim=0) - g).abs() < 5 * (expected / 1500).sqrt()).all()


def test_a_short_period_goes_on_where_it_stopped() -> None:
    loss = quadratic(((6,),), curved=False)
    optimizer = MGD(loss.parameters, lr=0.1, eps=0.5, code="time", period=2)
    before, gradient = loss.vector(), loss.gradient()
    for step in range(3):
        optimizer.step(loss)
        moved = (loss.vector() - before) / -0.1
        expected = gradient.clone()
        expected[2 * step + 2 :] = 0
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


def test_update_noise_is_of_the_stated_size_and_leaves_costs_alone() -> None:
    loss = quadratic(((3000,),), curvature=lambda d: torch.zeros(d, d, dtype=torch.float64))
    loss.slope = loss.slope * 0
    before = loss.vector()
    MGD(loss.parameters, lr=0.1, period=1, update_noise=0.2).step(loss)
    moved = loss.vector() - before
    assert abs(float(moved.std()) / 0.2 - 1) < 5 / (2 * 3000) ** 0.5  # false alarms: about 6e-7


def test_cost_noise_is_of_the_stated_size() -> None:
    """On a flat loss a period of one random code gives |dC| / eps, dC of twice the variance of one cost."""
    loss = quadratic(((1,),), curved=False)
    loss.slope = loss.slope * 0
    found = [
        float(MGD(loss.parameters, lr=0.1, eps=1.0, period=1, cost_noise=0.3, seed=s).estimate(loss)[0])
        for s in range(3000)
    ]
    assert abs(torch.tensor(found).std() / (0.3 * 2**0.5) - 1) < 5 / (2 * 3000) ** 0.5  # false alarms: about 6e-7


@pytest.mark.parametrize(
    "settings", [{"code": "morse"}, {"period": 0}, {"cost_noise": -1.0}, {"update_noise": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=f"MGD: .*{next(iter(settings))}"):
        MGD(quadratic().parameters, lr=0.1, **settings)  # type: ignore[arg-type]
