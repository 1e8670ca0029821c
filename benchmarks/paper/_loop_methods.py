"""How the corrector of `_loop` is trained on: without the solver, by the copy's gradients, by HZO or by DeepZero.

All begin with the same corrector, trained a step at a time on states of the fine solution, and see the same
minibatches. A solver call is one state through one step. Every way but the first order's asks the solver as a device,
and its calls are those of the ledger; the copy is charged two calls a state and step, one forward and one backward. It
knows no equation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from _descend import Loss, descend
from _loop import Corrector, Data, Problem, Rollout, mean_absolute_error
from torch import Tensor
from torch.nn import functional

from hzo_hil import BadInput, Ledger, Opaque
from hzo_hil.forecast import rows_of
from hzo_hil.ledger import recording
from hzo_hil.optim import DeepZero
from hzo_hil.streams import stream_key, torch_generator

DIFFERENCES = "forward"


@dataclass(frozen=True, eq=False)
class Task:
    """One problem and seed. `settings`: see `solver_loop`."""

    problem: Problem
    seed: int
    settings: dict[str, Any]

    @cached_property
    def data(self) -> Data:
        s = self.settings
        return Data.of(self.problem, self.seed, s["train"], s["test"], s["horizon"])

    @cached_property
    def beginning(self) -> Corrector:
        """What every method trains on. Before its own training its answers are a tenth of what torch's initial values
        give, so that a roll-out stays in its range.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_key(self.seed, "corrector") % 2**63)
            found = Corrector(self.problem, self.settings["channels"])
        with torch.no_grad():
            for p in found.layers[-1].parameters():
                p *= 0.1
        descend(self.single_steps(found, "before"), self.adam(found, "pretrain_lr"), self.settings["pretrain"])
        return found

    def solver(self, credit: str = "hzo", **declared: Any) -> Opaque:
        """Noise-free in float64: one-sided differences err by 1e-8 and cost half."""
        device = self.problem.device(**declared)
        return Opaque(device, differences=DIFFERENCES, name="solver", seed=self.seed, credit=credit)

    @property
    def states(self) -> int:
        """Of one minibatch: solver calls of its forward pass."""
        return self.settings["batch"] * self.settings["unroll"]

    def adam(self, corrector: Corrector, rate: str = "lr") -> torch.optim.Optimizer:
        return torch.optim.Adam(corrector.parameters(), lr=self.settings[rate])

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """What the solver makes of each state of the fine solution, asked once, and what the corrector is to add."""
        fine, width = self.data.train, self.problem.width
        with torch.no_grad():
            coarse = self.solver()(fine[:, :-1].reshape(-1, width))
        return coarse, fine[:, 1:].reshape(-1, width) - coarse

    def single_steps(self, corrector: Corrector, purpose: str) -> Loss:
        """Mean squared error of one step from states of the fine solution."""
        coarse, wanted = self.pairs

        def loss(step: int) -> Tensor:
            random = torch_generator(self.seed, "solver loop pairs", purpose, step)
            chosen = torch.randint(len(coarse), (self.states,), generator=random)
            return functional.mse_loss(corrector(coarse[chosen]), wanted[chosen])

        return loss

    def unrolled(self, rollout: Rollout) -> Loss:
        """Mean squared error over `unroll` steps of solver and corrector, from any time of the fine solution."""
        s, fine = self.settings, self.data.train

        def loss(step: int) -> Tensor:
            random = torch_generator(self.seed, "solver loop batch", step)
            rows = torch.randint(len(fine), (s["batch"], 1), generator=random)
            times = torch.randint(fine.shape[1] - s["unroll"], (s["batch"], 1), generator=random)
            chosen = fine[rows, times + torch.arange(s["unroll"] + 1)]
            return functional.mse_loss(rollout(chosen[:, 0], s["unroll"]), chosen[:, 1:])

        return loss


# --- the methods: the steps that so many calls are enough for, and their training ------------------------------------


@dataclass(frozen=True)
class FirstOrder:
    """Autograd through the torch copy. `steps`: None for as many as the calls are enough for."""

    steps: int | None = None

    def train(self, task: Task, corrector: Corrector, calls: int) -> dict[str, Any]:
        steps = calls // (2 * task.states) if self.steps is None else self.steps
        descend(task.unrolled(Rollout(task.problem.copy, corrector)), task.adam(corrector), steps)
        return {"steps": steps, "calls": 2 * task.states * steps}


class WithoutSolver:
    """A step at a time as before, for as many steps as the first order makes: more data would cost fine solutions."""

    def train(self, task: Task, corrector: Corrector, calls: int) -> dict[str, Any]:
        steps = calls // (2 * task.states)
        descend(task.single_steps(corrector, "after"), task.adam(corrector), steps)
        return {"steps": steps}


@dataclass(frozen=True)
class Hzo:
    """The target at the solver's input by probing it. `told`: what of the problem the host is told. A step that is told
    to be linear is measured once for all; it makes no more steps than the first order.
    """

    told: tuple[str, ...] = ()

    def train(self, task: Task, corrector: Corrector, calls: int) -> dict[str, Any]:
        known: dict[str, dict[str, Any]] = {
            "stencil": {"structure": task.problem.reach}, "linear": {"linear": True},
        }  # fmt: skip
        solver = task.solver(**{k: v for name in self.told for k, v in known[name].items()})
        steps = calls // (2 * task.states)
        if "linear" not in self.told:
            steps = max(1, calls // step_calls(task, solver))
        descend(task.unrolled(Rollout(solver, corrector)), task.adam(corrector), steps)
        return {"steps": steps}


def step_calls(task: Task, solver: Opaque) -> int:
    """Of one step of HZO that probes every state: the target at the first one is not needed."""
    probes = rows_of(solver.network, solver.resolved.at[0])
    return task.states + (task.states - task.settings["batch"]) * probes


@dataclass(frozen=True)
class ByLosses:
    """DeepZero: coordinates of the corrector, each by the loss of a whole roll-out. `lr`: its own."""

    lr: float

    def train(self, task: Task, corrector: Corrector, calls: int) -> dict[str, Any]:
        parameters = list(corrector.parameters())
        optimizer = DeepZero(
            parameters, lr=self.lr, eps=task.settings["deepzero_eps"], weight_decay=0.0, seed=task.seed,
            fractions=[task.settings["deepzero_sparsity"] if p.dim() > 1 else 0.0 for p in parameters],
        )  # fmt: skip
        steps = max(1, calls // (optimizer.queries_per_step * task.states))
        rollout = Rollout(task.solver(credit="loss"), corrector).train()
        descend(task.unrolled(rollout), optimizer, steps)
        return {"steps": steps}


Method = FirstOrder | WithoutSolver | Hzo | ByLosses


def measured(task: Task, method: Method, calls: int) -> dict[str, Any]:
    """After training on by a method with so many solver calls: `mae` on the test set, `steps`, `calls` they took."""
    corrector, ledger = copy.deepcopy(task.beginning), Ledger()
    try:
        with recording(ledger):
            found = method.train(task, corrector, calls)
        return {"calls": ledger.total.queries} | found | {"mae": error(task, corrector)}
    except BadInput as failed:  # DeepZero's, of a rate that is too high: states run away, in training or in the test
        return {"mae": None, "calls": ledger.total.queries, "failed": str(failed)}


def error(task: Task, corrector: Corrector | None) -> float:
    """Mean absolute error on the test set over its whole length; None: of the solver alone."""
    return mean_absolute_error(Rollout(task.solver(), corrector), task.data.test)
