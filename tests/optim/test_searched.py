"""Searches of nevergrad and evotorch behind the step: the same points as the bare library asks, resumed, undone."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import Evolution, Nevergrad, PatternSearch
from hzo_hil.optim.searched import Searched
from tests.optim.losses import Quadratic, quadratic

ng = pytest.importorskip("nevergrad", reason="the extra baselines is not installed")
evotorch = pytest.importorskip("evotorch", reason="the extra baselines is not installed")

SEARCHES = {
    "OnePlusOne": lambda p: Nevergrad(p, lr=0.2, asks=3, seed=5),
    "DE": lambda p: Nevergrad(p, lr=0.2, method="DE", asks=7, seed=5),
    "PatternSearch": lambda p: PatternSearch(p, lr=0.2, asks=5),
    "SNES": lambda p: Evolution(p, lr=0.2, seed=5),
    "CMAES": lambda p: Evolution(p, lr=0.2, method="CMAES", population=6, seed=5),
}
each = pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)


def stepped(make: Any, loss: Quadratic, steps: int) -> Searched:
    optimizer: Searched = make(loss.parameters)
    for _ in range(steps):
        optimizer.step(loss)
    return optimizer


def bowl() -> Quadratic:
    return quadratic(curvature=lambda d: torch.eye(d, dtype=torch.float64))


@each
def test_queries_are_those_stated(make: Any) -> None:
    loss = quadratic()
    optimizer = stepped(make, loss, 3)
    assert len(loss.asked) == optimizer.state["queries"] == 3 * optimizer.queries_per_step


@each
def test_the_loss_goes_down(make: Any) -> None:
    loss = bowl()
    before = loss.gradient().norm()
    optimizer: Searched = make(loss.parameters)
    for _ in range(600 // optimizer.queries_per_step):
        optimizer.step(loss)
    assert loss.gradient().norm() < 0.7 * before


@each
def test_a_saved_search_goes_on_bit_for_bit_without_asking_again(make: Any) -> None:
    whole, loss, resumed = quadratic(), quadratic(), quadratic()
    stepped(make, whole, 6)
    begun = stepped(make, loss, 3)
    saved = copy.deepcopy(begun.state_dict())
    np.random.seed(7)  # noqa: NPY002 - the global state must not matter
    torch.manual_seed(7)
    optimizer = make(resumed.parameters)
    optimizer.load_state_dict(saved)
    for _ in range(3):
        optimizer.step(resumed)
    assert torch.equal(resumed.vector(), whole.vector())
    assert len(resumed.asked) == 3 * optimizer.queries_per_step
    assert all(torch.equal(a, b) for a, b in zip(resumed.asked, whole.asked[len(loss.asked) :], strict=True))


@each
def test_a_lost_step_leaves_no_trace(make: Any) -> None:
    whole, loss = quadratic(), quadratic()
    stepped(make, whole, 3)
    optimizer = stepped(make, loss, 2)
    before = loss.vector()
    with pytest.raises(BadInput, match="nan at evaluation 1 of"):
        optimizer.step(lambda: float("nan"))
    assert torch.equal(loss.vector(), before)
    optimizer.step(loss)
    assert torch.equal(loss.vector(), whole.vector())


def test_nevergrad_asks_for_what_it_asks_for_bare() -> None:
    loss, bare = quadratic(), quadratic()
    stepped(SEARCHES["OnePlusOne"], loss, 4)
    space = ng.p.Array(init=bare.vector().numpy()).set_mutation(sigma=0.2)
    space.random_state = np.random.RandomState(5)
    search = ng.optimizers.OnePlusOne(space, budget=None, num_workers=1)
    for asked in loss.asked:
        candidate = search.ask()
        np.testing.assert_allclose(candidate.value, asked.numpy(), rtol=1e-12)
        w = torch.as_tensor(candidate.value)
        search.tell(candidate, float(w @ bare.curvature @ w / 2 + bare.slope @ w))


def test_evotorch_asks_for_what_it_asks_for_bare() -> None:
    loss, bare = quadratic(), quadratic()
    stepped(SEARCHES["SNES"], loss, 4)
    asked: list[torch.Tensor] = []

    def objective(x: torch.Tensor) -> torch.Tensor:
        w = x.as_subclass(torch.Tensor)  # type: ignore[arg-type]
        asked.append(w.clone())
        return w @ bare.curvature @ w / 2 + bare.slope @ w

    problem = evotorch.Problem(
        "min", objective, solution_length=10, initial_bounds=(-1, 1), dtype=torch.float64, seed=5
    )
    search = evotorch.algorithms.SNES(problem, stdev_init=0.2, center_init=bare.vector())
    search.run(4)
    torch.testing.assert_close(torch.stack(asked), torch.stack(loss.asked), rtol=1e-12, atol=1e-12)


def test_pattern_search_moves_one_coordinate_at_a_time() -> None:
    loss = quadratic()
    w = loss.vector()
    PatternSearch(loss.parameters, lr=0.2, asks=3).step(loss)
    changed = [(asked - w).abs() > 1e-9 for asked in loss.asked[1:3]]
    assert all(int(c.sum()) == 1 for c in changed)


def test_a_search_that_does_not_repeat_itself_is_not_resumed() -> None:
    """Here, because it is another method of the same library."""
    loss = quadratic()
    optimizer = stepped(SEARCHES["OnePlusOne"], loss, 3)
    other = Nevergrad(quadratic().parameters, lr=0.2, method="DE", asks=3, seed=5)
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(BadInput, match="asks for other points than it did"):
        other.step(loss)


def test_the_spread_may_differ_from_group_to_group() -> None:
    for kind in (Nevergrad, Evolution):
        loss = quadratic(((50,), (50,)), curved=False)
        w = loss.vector()
        groups = [{"params": loss.parameters[:1], "lr": 1e-3}, {"params": loss.parameters[1:]}]
        optimizer = kind(groups, lr=1.0)
        for _ in range(3):
            optimizer.step(loss)
        moved = torch.stack(loss.asked) - w
        assert moved[:, :50].std() < 0.01 * moved[:, 50:].std()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: Nevergrad(p, method="Nelder"), "unknown method 'Nelder': nevergrad.optimizers.registry"),
        (lambda p: Nevergrad(p, asks=0), "Nevergrad: asks is 0"),
        (lambda p: Evolution(p, method="NES"), "unknown method 'NES': choose SNES"),
        (lambda p: Evolution(p, lr=0.0), "Evolution: lr is 0.0"),
        (lambda p: Evolution(p, method="CEM").step(lambda: 0.0), "evotorch refuses the options of CEM.*parenthood"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        make(quadratic().parameters)


@pytest.mark.parametrize(("name", "make"), [("nevergrad", Nevergrad), ("evotorch", Evolution)])
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str, make: Any) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match=rf"{name} is not installed: pip install 'hzo-hil\[baselines\]'"):
        make(quadratic().parameters)
