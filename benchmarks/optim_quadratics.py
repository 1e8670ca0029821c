"""Coordinates against random directions at equal queries: CGE and RGE, in error, in time, and in what a network learns.

Quadratics: the gradient estimate's error with d + 1 queries each. A network 16-8-10, tanh, of 226 parameters on digits
of 4 x 4 (momentum 0.9, batch 128, constant rate out of a grid, chosen for each method by a seed of its own at a third
of the budget): test accuracy after the same number of queries, medians of seeds. DeepZero's claim (fig. 1) is CGE above
RGE with d directions each; RGE with 10 directions spends the same budget on more and poorer steps. Times are the
process's own, not the wall's.
"""

from __future__ import annotations

import _one_thread  # noqa: F401 - before numpy and torch

import _rows  # isort: skip

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _timing import in_turn, middle, ratio, spread
from torch import nn

from hzo_hil.datasets.bundled import digits
from hzo_hil.optim import CGE, RGE, LossOnly

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
BATCH = 128
EPS = 5e-3

Make = Callable[..., LossOnly]


def methods(size: int) -> dict[str, Make]:
    return {
        "CGE": partial(CGE, eps=EPS),
        "RGE, d directions": partial(RGE, eps=EPS, directions=size),
        "RGE, 10 directions": partial(RGE, eps=EPS, directions=10),
    }


def quadratics(rows: _rows.Rows, rounds: int) -> None:
    for size in (100, 1000):
        rng = torch.Generator().manual_seed(size)
        root = torch.randn(size, size, generator=rng)
        curvature, slope = root @ root.T / size, torch.randn(size, generator=rng)
        w = nn.Parameter(torch.randn(size, generator=rng))
        true = (curvature @ w + slope).detach()
        loss = partial(quadratic, w, curvature, slope)
        calls = {}
        for name, make in list(methods(size).items())[:2]:
            optimizer = make([w], lr=0.0)
            (found,) = optimizer.estimate(loss)  # type: ignore[attr-defined]
            error = float((found - true).norm() / true.norm())
            rows.row(f"gradient of a quadratic, d = {size}, {name}", error, "relative error", queries=size + 1)
            calls[name] = own_time(optimizer)
        seconds = in_turn(calls, rounds, best_of=1)
        rows.row(
            f"time of {size + 1} queries, d = {size}, CGE", 1e6 * middle(seconds, "CGE") / (size + 1),
            "us a loss call", against="RGE, d directions", ratio=ratio(seconds, "CGE", "RGE, d directions"),
            target="<= 1.0", quartiles=spread(seconds, "CGE", "RGE, d directions"),
        )  # fmt: skip


def quadratic(w: torch.Tensor, curvature: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return w @ curvature @ w / 2 + slope @ w


def own_time(optimizer: LossOnly) -> Callable[[], float]:
    """Of a step on a loss that costs nothing: what is compared is the optimisers."""

    def call() -> float:
        start = time.process_time()
        optimizer.step(lambda: 0.0)
        return time.process_time() - start

    return call


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 10))


def trained(make: Make, rate: float, budget: int, seed: int, data: Any) -> float:
    """Test accuracy after at most `budget` queries."""
    model = network(seed)
    optimizer = make(model.parameters(), lr=rate, momentum=0.9, seed=seed)
    order = torch.Generator().manual_seed(seed)
    x, y = pooled(data.x_train), torch.as_tensor(data.y_train)
    for _ in range(budget // optimizer.queries_per_step):
        batch = torch.randint(0, len(x), (BATCH,), generator=order)
        xb, yb = x[batch], y[batch]
        optimizer.step(lambda xb=xb, yb=yb: nn.functional.cross_entropy(model(xb), yb))  # type: ignore[misc]
    with torch.no_grad():
        found = model(pooled(data.x_test)).argmax(dim=1)
    return float((found == torch.as_tensor(data.y_test)).float().mean())


def pooled(images: Any) -> torch.Tensor:
    """8 x 8 pixels to 4 x 4, [n, 16]."""
    return nn.functional.avg_pool2d(torch.as_tensor(images).view(-1, 1, 8, 8), 2).flatten(1)


def networks(rows: _rows.Rows, steps: int, seeds: int) -> None:
    data = digits()
    size = sum(p.numel() for p in network(0).parameters())
    budget = steps * (size + 1)
    reached: dict[str, float] = {}
    for name, make in methods(size).items():
        tried = {rate: trained(make, rate, budget // 3, 1000, data) for rate in RATES}
        best = max(tried, key=lambda rate: tried[rate])
        accuracies = [trained(make, best, budget, seed, data) for seed in range(seeds)]
        reached[name] = statistics.median(accuracies)
        rows.row(
            f"digits, {size} parameters, {name}", reached[name], "test accuracy", queries=budget, lr=best,
            lowest=min(accuracies), highest=max(accuracies), seeds=seeds,
        )  # fmt: skip
    gain = reached["CGE"] - reached["RGE, d directions"]
    rows.row("digits, CGE above RGE with d directions", gain, "accuracy", target=">= 0", queries=budget)
    few = reached["CGE"] - reached["RGE, 10 directions"]
    rows.row("digits, CGE above RGE with 10 directions", few, "accuracy", queries=budget)


def main() -> None:
    arguments = _rows.arguments(__doc__)
    rows = _rows.Rows()
    rows.environment()
    quadratics(rows, 3 if arguments.quick else 9)
    networks(rows, 20 if arguments.quick else 80, 2 if arguments.quick else 5)
    rows.exit()


if __name__ == "__main__":
    main()
