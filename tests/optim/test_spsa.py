"""Random-direction estimates against their known mean and variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import FLOPS, RGE, SPSA
from tests.optim.losses import flat, quadratic

SPREAD = {"rademacher": -1, "sphere": -1, "gaussian": 1}
"""E |g - grad|^2 = (d + this) / q |grad|^2 for a linear loss."""


def estimates(loss: object, seeds: int, **settings: object) -> Tensor:
    found = []
    for seed in range(seeds):
        optimizer = SPSA(loss.parameters, lr=0.1, seed=seed, **settings)  # type: ignore[attr-defined]
        found.append(flat(optimizer.estimate(loss)))
    return torch.stack(found)


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("kind", list(SPREAD))
def test_linear_loss_gives_the_known_mean_and_variance(kind: str, two_sided: bool) -> None:
    """Five standard errors: each of the 11 means of 1,500 strays that far with probability about 6e-7."""
    loss = quadratic(((3, 2), (4,)), curved=False)
    gradient = loss.gradient()
    q = 3
    found = estimates(loss, 1500, directions=q, two_sided=two_sided, distribution=kind)
    errors = found - gradient
    standard = errors.std(dim=0) / len(errors) ** 0.5
    assert (errors.mean(dim=0).abs() < 5 * standard).all()
    energy = (errors**2).sum(dim=1)
    expected = (len(gradient) + SPREAD[kind]) / q * gradient.square().sum()
    assert abs(energy.mean() - expected) < 5 * energy.std() / len(energy) ** 0.5


def test_one_sign_direction_in_one_dimension_is_the_central_difference() -> None:
    loss = quadratic(((),))
    (found,) = SPSA(loss.parameters, lr=0.1, eps=0.3).estimate(loss)
    torch.testing.assert_close(found, loss.gradient()[0].to(found), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("settings", "queries"), [({"directions": 4}, 8), ({"directions": 4, "two_sided": False}, 5)])
def test_queries_are_counted(settings: dict[str, object], queries: int) -> None:
    loss = quadratic()
    optimizer = SPSA(loss.parameters, lr=0.1, **settings)  # type: ignore[arg-type]
    for _ in range(3):
        optimizer.step(loss)
    assert optimizer.queries_per_step == queries
    assert optimizer.state["queries"] == len(loss.asked) == 3 * queries


def test_rge_is_one_sided_and_normal() -> None:
    loss, same = quadratic(), quadratic()
    RGE(loss.parameters, lr=0.1, directions=5).step(loss)
    SPSA(same.parameters, lr=0.1, directions=5, two_sided=False, distribution="gaussian").step(same)
    assert torch.equal(loss.vector(), same.vector())


def test_flops_is_one_sided_with_its_published_settings() -> None:
    loss, same = quadratic(), quadratic()
    FLOPS(loss.parameters, lr=0.1).step(loss)
    SPSA(same.parameters, lr=0.1, eps=0.1, directions=20, two_sided=False, distribution="gaussian").step(same)
    assert torch.equal(loss.vector(), same.vector())
    assert len(loss.asked) == 21


def test_each_group_is_perturbed_by_its_own_eps_and_divided_by_it() -> None:
    loss = quadratic(((2,), (3,)), curved=False)
    groups = [{"params": loss.parameters[:1], "eps": 0.5}, {"params": loss.parameters[1:]}]
    optimizer = SPSA(groups, lr=0.1, eps=0.01)
    w = loss.vector()
    optimizer.estimate(loss)
    moved = (loss.asked[0] - w).abs()
    torch.testing.assert_close(moved, torch.tensor([0.5, 0.5, 0.01, 0.01, 0.01], dtype=torch.float64))
    # Without noise a linear loss shows no eps: the estimate's projection on the gradient stays unbiased.
    found = torch.stack([flat(SPSA(groups, lr=0.1, eps=0.01, seed=s).estimate(loss)) for s in range(1500)])
    errors = found - loss.gradient()
    assert (errors.mean(dim=0).abs() < 5 * errors.std(dim=0) / 1500**0.5).all()  # false alarms: about 3e-6


def test_step_descends_a_quadratic() -> None:
    loss = quadratic(curvature=lambda d: torch.eye(d, dtype=torch.float64))
    before = loss.gradient().norm()
    optimizer = SPSA(loss.parameters, lr=0.05, directions=5)
    for _ in range(200):
        optimizer.step(loss)
    assert loss.gradient().norm() < 1e-2 * before


@pytest.mark.parametrize(
    "settings",
    [{"eps": 0.0}, {"eps": float("nan")}, {"directions": 0}, {"directions": 1.5}, {"lr": -1.0}, {"momentum": 1.0},
     {"weight_decay": -0.1}, {"distribution": "cauchy"}],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=f"SPSA: .*{next(iter(settings))}"):
        SPSA(quadratic().parameters, **{"lr": 0.1, **settings})  # type: ignore[arg-type]
