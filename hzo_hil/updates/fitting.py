"""Fitting a twin's unknowns to measurements, on the host: at once with a quasi-Newton method, or a little each step.

What is minimised is squares of what the twin leaves unexplained over the noise, plus squares of the unknowns over their
expected size (biases apart, which may be anything). Knows twins by the few members below, and no device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

Array = NDArray[Any]
FREE = "bias"
"""The unknown that no expected size holds back."""


class Fittable(Protocol):
    """A twin of one stage with unknown errors: parameters named in `expected`, each with its expected size.

    `commanded(values)` makes one array `[values]` of a stage's values by name, `named` the reverse; `outputs(commanded
    [values, settings], inputs [settings, rows, in])` is `[settings, rows, out]`, differentiable in the unknowns.
    `questions(base)` are settings `[settings, values]` whose answers to unit inputs `start` turns into a first guess.
    """

    expected: dict[str, float]

    def commanded(self, values: Mapping[str, Any]) -> Tensor: ...
    def named(self, commanded: Any) -> dict[str, Any]: ...
    def outputs(self, commanded: Tensor, inputs: Tensor) -> Tensor: ...
    def questions(self, base: Any) -> Any: ...
    def start(self, commanded: Any, answers: Any) -> None: ...


def unknowns(twin: Fittable) -> dict[str, Tensor]:
    return {name: getattr(twin, name) for name in twin.expected}


def unexplained(twin: Fittable, commanded: Tensor, inputs: Tensor, outputs: Tensor) -> float:
    """Root mean square of what the twin leaves unexplained, in output units."""
    with torch.no_grad():
        return float((twin.outputs(commanded, inputs) - outputs).square().mean().sqrt())


def fit(
    twin: Fittable, commanded: Tensor, inputs: Tensor, outputs: Tensor, noise: float, iterations: int, rounds: int = 2
) -> float:
    """Fit all unknowns in place by L-BFGS, in `rounds` of `iterations`; what stays unexplained after it.

    `noise`: standard deviation of a reading, a floor: each round takes what the last left unexplained for its noise, so
    that expected sizes count for more while the twin is still far off.
    """
    found = unknowns(twin)
    sizes = [v.numel() for v in found.values()]
    left = unexplained(twin, commanded, inputs, outputs)

    def take(x: Array) -> None:
        with torch.no_grad():
            for (name, value), part in zip(found.items(), np.split(x, np.cumsum(sizes)[:-1]), strict=True):
                value.copy_(torch.as_tensor(part) * twin.expected[name])

    def loss(x: Array, variance: float) -> tuple[float, Array]:
        take(x)
        total, slopes, _ = _loss(twin, commanded, inputs, outputs, variance)
        scaled = [g * twin.expected[n] for n, g in slopes.items()]
        return total, torch.cat(scaled).numpy()

    for _ in range(rounds):
        variance = max(left, noise, 1e-9) ** 2
        x = np.concatenate([v.numpy() / twin.expected[n] for n, v in found.items()])
        best = minimize(
            loss, x, (variance,), jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 30}
        )
        take(best.x)
        left = unexplained(twin, commanded, inputs, outputs)
    return left


def _loss(
    twin: Fittable, commanded: Tensor, inputs: Tensor, outputs: Tensor, variance: float
) -> tuple[float, dict[str, Tensor], float]:
    """What is minimised, divided by the number of measurements; its slope by unknown; and what is left unexplained."""
    found = unknowns(twin)
    for value in found.values():
        value.requires_grad_(True)
    try:
        with torch.enable_grad():
            squares = (twin.outputs(commanded, inputs) - outputs).square().mean()
            held = torch.stack([((v / twin.expected[n]) ** 2).sum() for n, v in found.items() if n != FREE]).sum()
            total = (squares / variance + held / outputs.numel()) / 2
            slopes = torch.autograd.grad(total, list(found.values()))
    finally:
        for value in found.values():
            value.requires_grad_(False)
    return float(total.detach()), dict(zip(found, slopes, strict=True)), math.sqrt(float(squares.detach()))


class Follow:
    """Adam on the unknowns, a few steps whenever there are new measurements. `rate`: step in expected sizes."""

    def __init__(self, twin: Fittable, rate: float) -> None:
        self.twin = twin
        self.rate = rate
        self.steps = 0
        self.left = 1.0
        """What the twin left unexplained when last looked at, in output units."""
        self.moments = {n: (torch.zeros_like(v), torch.zeros_like(v)) for n, v in unknowns(twin).items()}

    def step(self, commanded: Tensor, inputs: Tensor, outputs: Tensor, noise: float) -> None:
        _, slopes, self.left = _loss(self.twin, commanded, inputs, outputs, max(self.left, noise, 1e-9) ** 2)
        self.steps += 1
        for name, value in unknowns(self.twin).items():
            size = self.twin.expected[name]
            slope = slopes[name] * size
            mean, square = self.moments[name]
            mean.lerp_(slope, 0.1)
            square.lerp_(slope**2, 0.001)
            even, width = 1 - 0.9**self.steps, 1 - 0.999**self.steps
            # No faster than the noise in the slopes allows: 1e-12 keeps unknowns still that nothing depends on.
            value.sub_(self.rate * size * (mean / even) / ((square / width).sqrt() + 1e-12))

    def state(self) -> dict[str, Any]:
        moments = {n: [m.clone() for m in ms] for n, ms in self.moments.items()}
        return {"steps": self.steps, "left": self.left, "moments": moments}

    def load(self, state: Mapping[str, Any]) -> None:
        self.steps, self.left = state["steps"], state["left"]
        self.moments = {n: (ms[0].clone(), ms[1].clone()) for n, ms in state["moments"].items()}
