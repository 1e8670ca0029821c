"""What loss-only optimisers cost beside the loss: seconds per loss call, against torchzero, nevergrad and evotorch.

The loss is the next number of a list: it reads no parameter, so that what is timed is the optimiser. All calls of a
case take turns in the same run. torchzero is told to return its approximate loss: it asks as often as ours then. The
libraries called bare copy what they ask into the model's parameters, as any user's loss must; `unset_ratio` compares
with a bare call that leaves even that out. Times are the process's own, not the wall's: nothing
here waits, and other users of a shared machine do not count.
"""

from __future__ import annotations

import _one_thread  # noqa: F401 - before numpy and torch

import _rows  # isort: skip

import itertools
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import evotorch
import nevergrad
import numpy as np
import torch
import torchzero
from _timing import in_turn, middle, ratio, spread
from evotorch.algorithms import SNES

from hzo_hil.optim import CGE, SPSA, Evolution, MeZO, Nevergrad

SHAPES = {
    "one vector of 100": [(100,)],
    "digits 64-32-32-32-10": [(32, 64), (32,), (32, 32), (32,), (32, 32), (32,), (10, 32), (10,)],
}
NUMBERS = np.random.default_rng(0).normal(size=1009).tolist()
TENSORS = [torch.tensor(number) for number in NUMBERS]
METHODS = ("OnePlusOne", "DSbase", "TBPSA", "CMA")


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]


def closure() -> Callable[..., torch.Tensor]:
    turn = itertools.cycle(TENSORS)
    return lambda backward=True: next(turn)


def stepping(optimizer: Any, steps: int) -> Callable[[], None]:
    loss = closure()

    def call() -> None:
        for _ in range(steps):
            optimizer.step(loss)

    return call


def peer(shapes: list[tuple[int, ...]], module: Any) -> Any:
    return torchzero.Optimizer(parameters(shapes), module, torchzero.m.LR(1e-3))


def against_torchzero(rows: _rows.Rows, rounds: int) -> None:
    tz = torchzero.m
    for name, shapes in SHAPES.items():
        size = sum(math.prod(s) for s in shapes)
        # method, ours, theirs, queries a step, steps a call
        cases: list[tuple[str, Any, Any, int, int]] = [
            ("SPSA", SPSA(parameters(shapes), lr=1e-3), tz.SPSA(return_approx_loss=True), 2, 30),
            ("SPSA, 10 directions", SPSA(parameters(shapes), lr=1e-3, directions=10),
             tz.SPSA(n_samples=10, return_approx_loss=True), 20, 5),
            ("MeZO", MeZO(parameters(shapes), lr=1e-3),
             tz.MeZO(distribution="gaussian", return_approx_loss=True), 2, 30),
            ("CGE", CGE(parameters(shapes), lr=1e-3), tz.FDM(formula="forward"), size + 1, max(1, 300 // size)),
        ]  # fmt: skip
        for method, ours, theirs, queries, steps in cases:
            calls = {"ours": stepping(ours, steps), "torchzero": stepping(peer(shapes, theirs), steps)}
            report(rows, f"{method}, {name}", calls, "ours", "torchzero", queries * steps, rounds, "<= 1.0")


def against_bare(rows: _rows.Rows, rounds: int) -> None:
    name, shapes = "one vector of 100", SHAPES["one vector of 100"]
    for method in METHODS:
        asks = 40
        calls = {
            "wrapped": stepping(Nevergrad(parameters(shapes), method=method, asks=asks, budget=10**6), 1),
            "bare": bare_nevergrad(method, asks, parameters(shapes)),
            "unset": bare_nevergrad(method, asks, []),
        }
        report(rows, f"nevergrad {method}, {name}", calls, "wrapped", "bare", asks, rounds, "<= 1.1")
    for name, shapes in SHAPES.items():
        optimizer = Evolution(parameters(shapes))
        queries = optimizer.queries_per_step
        size = sum(math.prod(s) for s in shapes)
        calls = {
            "wrapped": stepping(optimizer, 3),
            "bare": bare_evotorch(size, queries, 3, parameters(shapes)),
            "unset": bare_evotorch(size, queries, 3, []),
        }
        report(rows, f"evotorch SNES, {name}", calls, "wrapped", "bare", 3 * queries, rounds, "<= 1.1")


def setting(model: list[torch.nn.Parameter]) -> Callable[[Any], float]:
    """A loss of a vector that sets a model's parameters to it."""
    turn = itertools.cycle(NUMBERS)
    sizes = [p.numel() for p in model]

    @torch.no_grad()
    def loss(vector: Any) -> float:
        if model:
            parts = torch.as_tensor(vector).split(sizes)
            for p, part in zip(model, parts, strict=True):
                p.copy_(part.view(p.shape))
        return next(turn)

    return loss


def bare_nevergrad(method: str, asks: int, model: list[torch.nn.Parameter]) -> Callable[[], None]:
    space = nevergrad.p.Array(init=np.ones(100)).set_mutation(sigma=0.1)
    space.random_state = np.random.RandomState(0)
    search = nevergrad.optimizers.registry[method](space, budget=10**6, num_workers=1)
    loss = setting(model)

    def call() -> None:
        for _ in range(asks):
            candidate = search.ask()
            search.tell(candidate, loss(candidate.value))
        _ = search.provide_recommendation().value

    return call


def bare_evotorch(size: int, population: int, generations: int, model: list[torch.nn.Parameter]) -> Callable[[], None]:
    problem = evotorch.Problem(
        "min", setting(model), solution_length=size, initial_bounds=(-1, 1), seed=0, dtype=torch.float32,
        eval_dtype=torch.float64,
    )  # fmt: skip
    search = SNES(problem, stdev_init=0.1, center_init=torch.ones(size), popsize=population)

    def call() -> None:
        for _ in range(generations):
            search.step()

    return call


def timed(call: Callable[[], None]) -> Callable[[], float]:
    def own_seconds() -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    return own_seconds


def report(
    rows: _rows.Rows, case: str, calls: dict[str, Callable[[], None]], ours: str, base: str, queries: int, rounds: int,
    target: str,
) -> None:  # fmt: skip
    seconds = in_turn({name: timed(call) for name, call in calls.items()}, rounds)
    rows.row(
        case, 1e6 * middle(seconds, ours) / queries, "us a loss call", against=base,
        ratio=ratio(seconds, ours, base), target=target, quartiles=spread(seconds, ours, base),
        base_us=1e6 * middle(seconds, base) / queries,
        **({"unset_ratio": ratio(seconds, ours, "unset")} if "unset" in calls else {}),
    )  # fmt: skip


def main() -> None:
    arguments = _rows.arguments(__doc__)
    logging.getLogger("evotorch").setLevel(logging.WARNING)
    rounds = 5 if arguments.quick else 11
    rows = _rows.Rows()
    rows.environment()
    against_torchzero(rows, rounds)
    against_bare(rows, rounds)
    rows.exit()


if __name__ == "__main__":
    main()
