"""A learned corrector between the steps of a coarse solver: the problem, the network and how far off it is.

u(t + 1) = S(u(t)) + C(S(u(t))), S the solver, C a small convolutional network on the host (Um et al., "Solver-in-the-
loop", 2020). It knows neither which equation the solver is for nor how the corrector is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hzo_hil.devices.adapters.function import FunctionDevice
from hzo_hil.devices.api import Local

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """An equation on a periodic grid. States are rows of cell averages, flat: [rows, width].

    `step`: the coarse solver in numpy, which is all that a method may call. `copy`: the same in torch, for the
    first-order reference alone. `truth(start [samples, width_fine], steps)`: cell averages [samples, steps + 1, width]
    of a fine solution. `draw(rng, samples)`: such starts. `known` [channels, *shape]: what the corrector is told
    besides the state. `linear`: whether the step is linear in the state.
    """

    name: str
    shape: tuple[int, ...]
    step: Callable[[Array], Array]
    copy: Callable[[Tensor], Tensor]
    draw: Callable[[np.random.Generator, int], Array]
    truth: Callable[[Array, int], Array]
    linear: bool = False
    known: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    @property
    def reach(self) -> Local:
        """A cell follows itself and its neighbours."""
        return Local.conv(1, 1, self.shape, 3, padding=1, circular=True)

    def device(self, **declared: Any) -> FunctionDevice:
        """The solver behind the device contract; `declared`: what the host is told of it, besides that it is exact."""
        return FunctionDevice(
            self.step, self.width, self.width, dtype="float64", identity=f"coarse {self.name}", read_noise=0.0,
            **declared,
        )  # fmt: skip


class Corrector(nn.Module):
    """Three circular convolutions in float32. State [samples, width] to its correction, of the state's dtype."""

    def __init__(self, problem: Problem, channels: int) -> None:
        super().__init__()
        self.shape = problem.shape
        flat = len(problem.shape) == 1
        make, kernel = (nn.Conv1d, 5) if flat else (nn.Conv2d, 3)
        self.register_buffer("known", problem.known.float())
        widths = [1 + len(problem.known), channels, channels, 1]
        layers: list[nn.Module] = []
        for inside, outside in zip(widths, widths[1:], strict=False):
            conv = make(inside, outside, kernel, padding=kernel // 2, padding_mode="circular")
            layers += [conv, nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, state: Tensor) -> Tensor:
        fields = state.float().view(len(state), 1, *self.shape)
        if len(self.known):
            fields = torch.cat([fields, self.known.expand(len(state), *self.known.shape)], dim=1)
        return self.layers(fields).reshape(state.shape).to(state)


class Rollout(nn.Module):
    """Solver and corrector in turn. `corrector` None: the solver alone."""

    def __init__(self, solver: nn.Module | Callable[[Tensor], Tensor], corrector: nn.Module | None) -> None:
        super().__init__()
        self.solver, self.corrector = solver, corrector

    def forward(self, state: Tensor, steps: int) -> Tensor:
        """From states [samples, width] to those after each step, [samples, steps, width]."""
        found = []
        for _ in range(steps):
            state = self.solver(state)
            if self.corrector is not None:
                state = state + self.corrector(state)
            found.append(state)
        return torch.stack(found, dim=1)


@dataclass(frozen=True)
class Data:
    """Fine solutions as the coarse grid sees them, [samples, steps + 1, width]."""

    train: Tensor
    test: Tensor

    @classmethod
    def of(cls, problem: Problem, seed: int, train: int, test: int, steps: int) -> Data:
        """`seed`: of the starts to train on; those of the test set are the same for all."""
        made = []
        for key, samples in ((seed, train), (2**32, test)):
            start = problem.draw(np.random.default_rng(key), samples)
            made.append(torch.as_tensor(problem.truth(start, steps)))
        return cls(*made)


@torch.no_grad()
def mean_absolute_error(rollout: Rollout, truth: Tensor) -> float:
    """Over cells, samples and all steps from the start of the fine solution on."""
    rollout.eval()
    steps = truth.shape[1] - 1
    return float((rollout(truth[:, 0], steps) - truth[:, 1:]).abs().mean())
