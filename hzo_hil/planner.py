"""The planner: the cheapest plan that meets a tolerance, or the most accurate one for a budget. Pure.

`programme` finds the best tree for a multiplier where errors are sums. Two things are none: truncation adds as an
amplitude along a path, and large errors compound. So it is run for several assumed path lengths, and once more with the
errors found; every candidate, and every named tree with steps and repeats of its own, is then judged by the exact error
and cost of `cutmodel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.cutmodel import SETS, Chosen, Prediction, Problem, predict, snapped
from hzo_hil.devices.errors import BadInput
from hzo_hil.plan import NAMED_TREES, Cut, Plan, Tree
from hzo_hil.programme import Programme

Array = NDArray[Any]
_ROUNDS = 18


@dataclass(frozen=True)
class Goal:
    """Exactly one: `tolerance` on the root mean square of the relative gradient error, or what the probes of one step
    may cost, in the problem's unit.
    """

    tolerance: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if (self.tolerance is None) == (self.budget is None):
            raise BadInput("the planner needs one of a tolerance and a budget, not both or neither")
        for name, value in (("tolerance", self.tolerance), ("budget", self.budget)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise BadInput(f"{name} is {value:g}: it must be above zero and finite")


@dataclass(frozen=True)
class Planned:
    """What the planner chose, and what it predicts of it; `beside`: the named trees at the same goal, by name, and what
    is predicted of each (None where the devices do not allow the tree, or no steps and repeats reach the goal).
    """

    chosen: tuple[Chosen, ...]
    prediction: Prediction
    beside: dict[str, Prediction | None]
    depth: int
    unit: str

    @property
    def tree(self) -> Tree:
        cuts = tuple(c.cut for c in self.chosen)
        same = [n for n in NAMED_TREES if set(Tree.named(n, self.depth).cuts) == set(cuts)]
        # The chain has its name where several names fit: it is what the others fall together with.
        return Tree(self.depth, cuts, "chain" if "chain" in same else same[0] if same else "auto")

    def plan(self, first: Chosen) -> Plan:
        """As an ordinary plan. `first`: the cut at the input, which is asked only where the input needs a gradient."""
        every = [*self.chosen, first]
        return Plan(
            self.tree,
            {c.cut.at: SETS[c.way] for c in every},
            {c.cut.at: c.eps for c in every},
            "central",
            {c.cut.at: c.repeats for c in every},
        )


def plan_for(problem: Problem, goal: Goal) -> Planned:
    """Raises BadInput where no plan reaches the goal, with the best that can be reached and what limits it."""
    if problem.depth == 1:
        return Planned((), predict(problem, ()), dict.fromkeys(NAMED_TREES, predict(problem, ())), 1, problem.unit)
    search = _Search(problem, goal)
    beside = {name: search.within(_only(problem, Tree.named(name, problem.depth))) for name in NAMED_TREES}
    found = [c for c in beside.values() if c is not None]
    open_ = search.within(np.isfinite(problem.rows[0]))
    found += [] if open_ is None else [open_]
    if not found:
        raise BadInput(search.unreachable())
    best = min(found, key=search.rank)
    judged = {n: None if c is None else predict(problem, c) for n, c in beside.items()}
    return Planned(best, predict(problem, best), judged, problem.depth, problem.unit)


def at_input(problem: Problem, repeats: int = 1) -> Chosen:
    """The cut at the input with the step that is best for so many repeats. No gradient of the network hangs on it."""
    single = Programme(problem, 1.0, np.zeros(problem.depth + 1))
    return single.decided(Cut(0, 1), problem.own[1] / max(problem.target[1], 1e-300), problem.whole[1], repeats)


def fixed(
    problem: Problem, tree: str, way: int | None = None, eps: float | None = None, repeats: int = 1
) -> tuple[Chosen, ...] | None:
    """A named tree with one set of probes, step and number of repeats for all cuts; None where it cannot be asked.

    `way` None: coordinate. `eps` None: the best for each cut.
    """
    tables = Programme(problem, 1.0, np.zeros(problem.depth + 1))
    found = []
    for cut in Tree.named(tree, problem.depth).cuts:
        w = way or 0
        if not np.isfinite(problem.rows[w, cut.at, cut.source]):
            w = 0
        if not np.isfinite(problem.rows[w, cut.at, cut.source]):
            return None
        best = tables.step(w, cut, repeats) if eps is None else eps
        found.append(Chosen(cut, w, snapped(problem, w, cut, best), repeats))
    return tuple(found)


def _only(problem: Problem, tree: Tree) -> Array:
    allowed = np.zeros_like(problem.rows[0], dtype=bool)
    for cut in tree.cuts:
        allowed[cut.at, cut.source] = np.isfinite(problem.rows[0, cut.at, cut.source])
    return allowed


# --- the search ------------------------------------------------------------------------------------------------


class _Search:
    """Multipliers, assumed path lengths and compounding: every candidate within what is allowed, judged exactly."""

    def __init__(self, problem: Problem, goal: Goal) -> None:
        self.problem = problem
        self.goal = goal
        self.nearest: tuple[Chosen, ...] | None = None
        self._judged: dict[tuple[Chosen, ...], Prediction] = {}

    def judge(self, chosen: tuple[Chosen, ...]) -> Prediction:
        if chosen not in self._judged:
            self._judged[chosen] = predict(self.problem, chosen)
        return self._judged[chosen]

    def meets(self, chosen: tuple[Chosen, ...]) -> bool:
        found = self.judge(chosen)
        if self.goal.budget is not None:
            return found.cost <= self.goal.budget * (1 + 1e-12)
        return found.error <= self.goal.tolerance  # type: ignore[operator]

    def rank(self, chosen: tuple[Chosen, ...]) -> tuple[float, float]:
        """Smaller is better. Below a thousandth two errors or costs are the same: then the other decides."""
        found = self.judge(chosen)
        first, second = (found.error, found.cost) if self.goal.budget is not None else (found.cost, found.error)
        return (float(f"{first:.3g}"), second)

    def within(self, allowed: Array) -> tuple[Chosen, ...] | None:
        best: tuple[Chosen, ...] | None = None
        excess = np.zeros(self.problem.depth + 1)
        for _ in range(2):
            for path in self._paths():
                for chosen in self._along(Programme(self.problem, path, excess, allowed)):
                    self._remember(chosen)
                    if self.meets(chosen) and (best is None or self.rank(chosen) < self.rank(best)):
                        best = chosen
            if best is not None:
                for chosen in self._tuned(best):
                    if self.meets(chosen) and self.rank(chosen) < self.rank(best):
                        best = chosen
            known = best or self.nearest
            if known is None:
                return None
            target = self.judge(known).target_error
            excess = np.array([0.0, *(min(t, 10.0) ** 2 for t in target)])
            if float(excess.max()) < 0.01:
                break
        return best

    def _paths(self) -> list[float]:
        depth = self.problem.depth
        return sorted(
            {1.0, math.ceil(math.log2(depth)) * 1.0, math.ceil(math.sqrt(depth)) * 1.0, (depth + 1) // 2 * 1.0}
        )

    def _along(self, tables: Programme) -> Iterator[tuple[Chosen, ...]]:
        """Plans at multipliers that close in on the goal from both sides."""
        low, high = -8.0, 14.0  # log10; costs and errors are in units of the cheapest plan and of the gradient
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            chosen = tables.best(10.0**middle)
            if chosen is None:
                return
            yield chosen
            # More weight on the error costs more: stop below the budget, or above the tolerance.
            enough = not self.meets(chosen) if self.goal.budget is not None else self.meets(chosen)
            low, high = (low, middle) if enough else (middle, high)

    def _tuned(self, chosen: tuple[Chosen, ...]) -> Iterator[tuple[Chosen, ...]]:
        """The same with all steps a little larger or smaller: truncation as it adds along this very tree."""
        for factor in (0.5, 0.6, 0.7, 0.85, 1.2, 1.4, 1.7, 2.0):
            yield tuple(replace(c, eps=snapped(self.problem, c.way, c.cut, c.eps * factor)) for c in chosen)

    def _remember(self, chosen: tuple[Chosen, ...]) -> None:
        measure: Callable[[tuple[Chosen, ...]], float] = lambda c: (  # noqa: E731
            self.judge(c).cost if self.goal.budget is not None else self.judge(c).error
        )
        if self.nearest is None or measure(chosen) < measure(self.nearest):
            self.nearest = chosen

    def unreachable(self) -> str:
        if self.nearest is None:
            return "no tree covers this network: some of its boundaries cannot be driven or read"
        found = self.judge(self.nearest)
        unit = self.problem.unit
        if self.goal.budget is not None:
            return (
                f"a budget of {self.goal.budget:g} {unit} a step is not enough for any plan: the cheapest needs"
                f" {found.cost:g} for its probes. Raise the budget, lower the batch size, or freeze stages"
            )
        parts = {
            "noise of the forward pass, which no probe removes (average in the device, or raise the signal)":
                found.forward,
            "truncation at the smallest step the input converters allow": found.truncation,
            "noise of the probes at the largest step the device's range and curvature allow, with the most repeats that"
            " fit into a call": found.noise,
        }  # fmt: skip
        limit = max(parts, key=lambda name: parts[name])
        return (
            f"no plan within the device's limits reaches a tolerance of {self.goal.tolerance:g}: the best predicted is"
            f" {found.error:.3g} ({found.cost:g} {unit} a step). What limits it: {limit}. Ask for at least"
            f" {found.error * 1.05:.2g}, or use a larger batch"
        )
