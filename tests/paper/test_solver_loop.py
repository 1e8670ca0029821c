"""The solvers, their copies and their fine solutions; and that HZO trains through a solver as autograd does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import _advection
import _burgers
import numpy as np
import pytest
import torch
from _advection import advection
from _burgers import burgers
from _loop import Problem, Rollout, mean_absolute_error
from _loop_methods import ByLosses, FirstOrder, Hzo, Task, WithoutSolver, measured, step_calls

import hzo_hil
from hzo_hil.devices.errors import CapabilityError

SETTINGS: dict[str, Any] = {
    "train": 3, "test": 2, "horizon": 5, "unroll": 3, "batch": 2, "channels": 3, "pretrain": 2, "pretrain_lr": 3e-3,
    "steps": 2, "lr": 1e-3, "deepzero_eps": 1e-3, "deepzero_sparsity": 0.9,
}  # fmt: skip
both = pytest.mark.parametrize("make", [burgers, advection])
Make = Callable[[], Problem]


def states(problem: Problem, samples: int = 6) -> torch.Tensor:
    """Such as solvers meet: fine solutions after a few steps, and some that a bad corrector might leave."""
    truth = torch.as_tensor(problem.truth(problem.draw(np.random.default_rng(3), samples), 3))[:, -1]
    return torch.cat([truth, truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(4))])


@both
def test_the_differentiable_copy_is_the_solver(make: Make) -> None:
    problem = make()
    x = states(problem)
    np.testing.assert_allclose(problem.copy(x).numpy(), problem.step(x.numpy()), rtol=0, atol=1e-14)


@both
def test_a_solver_keeps_constants_and_the_sum(make: Make) -> None:
    problem = make()
    constant = np.full((1, problem.width), 0.7)
    np.testing.assert_allclose(problem.step(constant), constant, atol=1e-13)
    x = states(problem).numpy()
    np.testing.assert_allclose(problem.step(x).sum(axis=1), x.sum(axis=1), atol=1e-11)


@both
def test_what_the_host_is_told_of_a_solver_is_true(make: Make) -> None:
    problem = make()
    opaque = hzo_hil.Opaque(problem.device(structure=problem.reach, linear=problem.linear))
    hzo_hil.check_structure(opaque, states(problem))


def test_burgers_is_not_linear() -> None:
    opaque = hzo_hil.Opaque(burgers().device(linear=True))
    with pytest.raises(CapabilityError, match="linear"):
        hzo_hil.check_structure(opaque, states(burgers()))


@both
def test_the_fine_solution_does_not_depend_on_its_grid(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What remains is the mean of few points in place of that over a cell: (k h)^2 / 24 of wave k."""
    problem = make()
    start = problem.draw(np.random.default_rng(0), 2)
    finer = start
    for axis in range(1, start.ndim):  # the same trigonometric polynomial at twice the points, half a point inwards
        finer = _twice(finer, axis)
    coarse = problem.truth(start, 6)
    for module in (_burgers, _advection):
        monkeypatch.setattr(module, "SUBSTEPS", 4 * module.SUBSTEPS)
    fine = problem.truth(finer, 6)
    assert np.abs(coarse - fine).max() < 5e-3 * np.abs(coarse).max()


def _twice(values: np.ndarray, axis: int) -> np.ndarray:
    """Values at (i + 1/2) h resampled at (i + 1/2) h / 2."""
    points = values.shape[axis]
    waves = np.fft.rfft(values, axis=axis)
    shape = [-1 if k == axis else 1 for k in range(values.ndim)]
    shift = np.exp(-2j * np.pi * np.arange(waves.shape[axis]) / points / 4).reshape(shape)
    return 2 * np.fft.irfft(waves * shift, 2 * points, axis=axis)


def test_a_small_wave_of_burgers_decays_as_heat_does() -> None:
    x = (np.arange(192) + 0.5) * 2 * np.pi / 192
    found = _burgers.truth(1e-5 * np.sin(2 * x)[None], 10)
    expected = np.exp(-_burgers.NU * 4 * _burgers.DT * 10)
    assert np.abs(found[0, -1]).max() / np.abs(found[0, 0]).max() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (burgers, ()),
        (burgers, ("stencil",)),
        (advection, ()),
        (advection, ("stencil",)),
        (advection, ("stencil", "linear")),
    ],
)
def test_hzo_through_the_solver_is_the_gradient_of_the_copy(make: Make, told: tuple[str, ...]) -> None:
    problem = make()
    task = Task(problem, 0, SETTINGS)

    def gradient(solver: Any) -> torch.Tensor:
        loss = task.unrolled(Rollout(solver, task.beginning))(0)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(task.beginning.parameters()))])

    known = {"stencil": {"structure": problem.reach}, "linear": {"linear": True}}
    solver = task.solver(**{k: v for name in told for k, v in known[name].items()})
    wanted = gradient(problem.copy)
    # A kink of the upwind flux may lie within a probe's reach; the corrector is float32.
    assert (gradient(solver) - wanted).norm() / wanted.norm() < 1e-4


@both
def test_calls_are_those_allowed(make: Make) -> None:
    task = Task(make(), 0, SETTINGS)
    calls = 2 * step_calls(task, task.solver(structure=task.problem.reach))
    assert measured(task, Hzo(("stencil",)), calls)["calls"] == calls
    first = measured(task, FirstOrder(), calls)
    assert calls - 2 * task.states < first["calls"] <= calls
    assert measured(task, WithoutSolver(), calls)["calls"] == 3 * 5  # each training state, once
    losses = measured(task, ByLosses(1e-3), 10 * calls)
    assert 0 < losses["calls"] <= 10 * calls


@both
def test_training_lowers_the_error_of_the_solver(make: Make) -> None:
    settings = SETTINGS | {"train": 8, "batch": 8, "channels": 4, "pretrain": 40, "horizon": 8}
    task = Task(make(), 0, settings)
    alone = mean_absolute_error(Rollout(task.solver(), None), task.data.test)
    assert mean_absolute_error(Rollout(task.solver(), task.beginning), task.data.test) < 0.9 * alone


def test_a_rate_that_is_too_high_is_a_failure_and_no_number() -> None:
    found = measured(Task(burgers(), 0, SETTINGS), ByLosses(1e12), 5000)
    assert found["mae"] is None and "NaN or infinite" in found["failed"]
