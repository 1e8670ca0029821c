"""Solver in the loop: a corrector between the steps of a coarse solver that nobody can differentiate.

DeepZero's figures 6 and 7 (Chen et al., 2024) on two equations that a laptop can do: Burgers in one dimension,
advection and diffusion in two. Mean absolute error against a fine solution over `horizon` steps from unseen starts,
four times the `unroll` of training, for: the coarse solver alone; a corrector trained without the solver; and that one
trained on in the loop, by HZO told nothing, the stencil, or (where it is true) also that a step is linear; by DeepZero,
the best of its rates on the test set, in its favour; and by autograd through a torch copy of the solver.

All have the solver calls that HZO with the stencil takes for `steps` steps. What was trained without the solver needs
none in training and gets the first order's number of steps.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch
from _advection import advection
from _burgers import burgers
from _loop_methods import ByLosses, FirstOrder, Hzo, Method, Task, WithoutSolver, error, measured, step_calls
from _result import Result, begun, go

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL = {
    "seeds": 3, "train": 64, "test": 32, "horizon": 32, "unroll": 8, "batch": 16, "channels": 8,
    "pretrain": 1500, "pretrain_lr": 3e-3, "steps": 600, "lr": 1e-3,
    "deepzero_lr": [0.01, 0.03, 0.1], "deepzero_eps": 1e-5, "deepzero_sparsity": 0.9,
}  # fmt: skip
SMOKE = {
    "seeds": 1, "train": 4, "test": 2, "horizon": 4, "unroll": 2, "batch": 2, "channels": 2, "pretrain": 4, "steps": 2,
    "deepzero_lr": [0.1],
}  # fmt: skip
ALONE, BEFORE, AFTER = "no corrector", "trained without the solver", "trained on without the solver"
STENCIL, LINEAR, DENSE = "HZO, told the stencil", "HZO, told the stencil and that it is linear", "HZO, told nothing"
SAME, FIRST, DEEPZERO = "first order, as many steps", "first order", "DeepZero"


def main() -> None:
    torch.set_num_threads(1)
    result = begun("solver_loop", __doc__, FULL, SMOKE)
    drawn: dict[str, dict[str, list[float]]] = {}
    for make in (burgers, advection):
        problem = make()
        tasks = [Task(problem, seed, result.config) for seed in result.seeds]
        calls = result.config["steps"] * step_calls(tasks[0], tasks[0].solver(structure=problem.reach))
        found = [_of_seed(result, task, calls) for task in tasks]
        drawn[problem.name] = _judged(result, problem.name, found, calls)
    result.finish(lambda figure: _draw(figure, drawn))


def _of_seed(result: Result, task: Task, calls: int) -> dict[str, dict[str, Any]]:
    """By method, what it came to; `mae` None where it failed."""

    def part(name: str, measure: Any) -> dict[str, Any]:
        return result.part(f"{task.problem.name}/{name}/{task.seed}", measure)

    methods: dict[str, Method] = {
        AFTER: WithoutSolver(), STENCIL: Hzo(("stencil",)), DENSE: Hzo(), FIRST: FirstOrder(),
        SAME: FirstOrder(result.config["steps"]),
    }  # fmt: skip
    if task.problem.linear:
        methods[LINEAR] = Hzo(("stencil", "linear"))
    found = {
        ALONE: part(ALONE, lambda: {"mae": error(task, None), "steps": 0, "calls": 0}),
        BEFORE: part(
            BEFORE,
            lambda: {
                "mae": error(task, task.beginning),
                "steps": task.settings["pretrain"],
                "calls": task.data.train[:, 1:, 0].numel(),
            },
        ),
    }
    for name, method in methods.items():
        found[name] = part(name, lambda method=method: measured(task, method, calls))
    tried = [
        part(f"{DEEPZERO}, rate {lr:g}", lambda lr=lr: measured(task, ByLosses(lr), calls))
        for lr in result.config["deepzero_lr"]
    ]
    found[DEEPZERO] = min(tried, key=lambda f: float("inf") if f["mae"] is None else f["mae"])
    return found


def _judged(result: Result, problem: str, found: list[dict[str, dict[str, Any]]], calls: int) -> dict[str, list[float]]:
    """Rows of a problem; the errors behind them, by method."""
    result.row(f"{problem}: solver calls allowed", calls, "states through one step")
    errors = {name: [f[name]["mae"] for f in found] for name in found[0]}
    errors = {name: values for name, values in errors.items() if None not in values}
    for name, values in errors.items():
        result.row(
            f"{problem}: {name}", statistics.fmean(values), "mean absolute error", seeds=values,
            steps=found[0][name]["steps"], calls=found[0][name]["calls"],
        )  # fmt: skip
    best = LINEAR if LINEAR in errors else STENCIL
    for name, other, target in (
        (STENCIL, SAME, "<= 1.1"), (best, FIRST, "<= 1.1"), (best, AFTER, None), (best, DEEPZERO, None),
        (FIRST, ALONE, None),
    ):  # fmt: skip
        if other in errors:
            ratio = statistics.fmean(a / b for a, b in zip(errors[name], errors[other], strict=True))
            result.row(f"{problem}: {name}", ratio, "of its error", against=other, ratio=ratio, target=target)
    return errors


def _draw(figure: Figure, drawn: dict[str, dict[str, list[float]]]) -> None:
    """One panel a problem, a bar a method, a dot a seed."""
    for axes, (problem, errors) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        names = sorted(errors, key=lambda name: -statistics.fmean(errors[name]))
        axes.barh(names, [statistics.fmean(errors[n]) for n in names], color="#0072B2", alpha=0.5)
        for place, name in enumerate(names):
            axes.plot(errors[name], [place] * len(errors[name]), "o", color="#D55E00", markersize=3)
        axes.set_title(problem, fontsize=10)
        axes.set_xlabel("mean absolute error")
        axes.tick_params(axis="y", labelsize=7)


if __name__ == "__main__":
    go(main)
