"""`plan="auto"`: what the user asks for, and the ordinary plan that the planner makes of it for a network.

Pure: from declarations and a calibration; sends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hzo_hil.calibration import Calibration
from hzo_hil.cutmodel import Chosen, Prediction, Problem, cost_of
from hzo_hil.cuttables import problem_of
from hzo_hil.devices.errors import BadInput
from hzo_hil.forecast import forecast
from hzo_hil.network import Network
from hzo_hil.plan import Plan
from hzo_hil.planner import Goal, Planned, at_input, fixed, plan_for
from hzo_hil.resolve import resolve
from hzo_hil.updates import LeafRule

GOALS = ("tolerance", "queries_per_step", "seconds_per_step")


@dataclass(frozen=True)
class Outcome:
    """A plan, what is predicted of it and of the named trees at the same goal, and the cut at the input if needed."""

    plan: Plan
    planned: Planned
    problem: Problem
    first: Chosen | None = None

    @property
    def cost(self) -> float:
        """Of the probes of one step, that at the input included where the input needs a gradient."""
        return self.prediction.cost + (cost_of(self.problem, [self.first]) if self.first is not None else 0.0)

    @property
    def prediction(self) -> Prediction:
        return self.planned.prediction


@dataclass(frozen=True)
class Auto:
    """One goal. `largest`: a step per element that no probe may exceed, in activation units. `shared`: as `Plan`'s."""

    tolerance: float | None = None
    queries_per_step: float | None = None
    seconds_per_step: float | None = None
    largest: float = math.inf
    shared: bool = True

    @classmethod
    def of(
        cls, plan: Any, given: Mapping[str, Any], tolerance: float | None, queries: float | None, seconds: float | None
    ) -> Auto | None:
        """From the arguments of a module: None for a plan of the caller's own. Raises BadInput for contradictions."""
        goals = {n: v for n, v in zip(GOALS, (tolerance, queries, seconds), strict=True) if v is not None}
        if plan is None or isinstance(plan, Plan):
            if goals:
                raise BadInput(f"{', '.join(goals)} is a goal for the planner: give plan='auto' with it")
            return None
        if plan != "auto":
            raise BadInput(f"unknown plan {plan!r}: give plan='auto' with {' or '.join(GOALS)}, or a Plan(...)")
        given = dict(given)
        shared = given.pop("shared", True)
        if given:
            raise BadInput(
                f"plan='auto' chooses {', '.join(given)} itself: leave {'them' if len(given) > 1 else 'it'} out, or"
                " leave plan='auto' out"
            )
        if len(goals) != 1:
            raise BadInput(f"plan='auto' needs exactly one of {', '.join(GOALS)} (given: {', '.join(goals) or 'none'})")
        ((name, value),) = goals.items()
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"{name} is {value:g}: it must be above zero and finite")
        return cls(**{name: value}, shared=shared)

    def plan(
        self,
        network: Network,
        rules: Sequence[LeafRule | None],
        found: Calibration,
        batch: int,
        needs_input: bool = False,
    ) -> Outcome:
        """`needs_input`: the input needs a gradient, and the cut there is paid from the same budget. Raises BadInput
        where nothing reaches the goal.
        """
        problem = self.problem(network, found, batch)
        if self.tolerance is not None:
            planned = plan_for(problem, Goal(tolerance=self.tolerance))
            first = at_input(problem, _repeats_above(planned))
        else:
            left = self._left(network, rules, problem, batch)
            once = cost_of(problem, [at_input(problem)]) if needs_input else 0.0
            # A cut like the others: its share of the budget is that of its cost in the cheapest plan.
            share = max(once, left * once / (once + _cheapest(problem))) if once else 0.0
            planned = plan_for(problem, Goal(budget=max(left - share, 1e-9 * left)))
            first = at_input(problem)
            if needs_input:
                first = _most(problem, left - planned.prediction.cost, _repeats_above(planned))
        return Outcome(
            replace(planned.plan(first), shared=self.shared), planned, problem, first if needs_input else None
        )

    def problem(self, network: Network, found: Calibration, batch: int) -> Problem:
        """The tables that plans for this goal are judged by."""
        count = "queries" if self.queries_per_step is not None else "seconds"
        return problem_of(network, found, batch, count=count, largest=self.largest, share=self.shared)

    def _left(self, network: Network, rules: Sequence[LeafRule | None], problem: Problem, batch: int) -> float:
        """What a step's budget leaves for probes, after its forward pass and leaf rules."""
        tree = Plan("bisect" if network.reachable(0, network.depth) else "chain")
        rest = [a for p, a in forecast(network, resolve(network, tree), rules, batch).purposes.items() if p != "probes"]
        if self.queries_per_step is not None:
            total, spent, unit = self.queries_per_step, float(sum(a.queries for a in rest)), "queries"
        else:
            assert self.seconds_per_step is not None
            if problem.unit != "device seconds":
                raise BadInput(
                    "seconds_per_step: these devices declare no seconds (latency_s, query_s) and none could be"
                    " measured. Give queries_per_step or a tolerance"
                )
            total, spent, unit = self.seconds_per_step, sum(a.device_seconds for a in rest), "device seconds"
        if total <= spent:
            raise BadInput(
                f"{total:g} {unit} a step leave nothing for probes: the forward pass and the leaf rules of a batch of"
                f" {batch} take {spent:g}. Raise the budget or lower the batch size"
            )
        return total - spent


def _repeats_above(planned: Planned) -> int:
    """Repeats of the cut next to the input."""
    return next((c.repeats for c in planned.chosen if c.cut.at == 1), 1)


def _cheapest(problem: Problem) -> float:
    return cost_of(problem, fixed(problem, "chain") or ())


def _most(problem: Problem, left: float, wanted: int) -> Chosen:
    """The cut at the input with at most `wanted` repeats that what is left of the budget pays for."""
    repeats = wanted
    while repeats > 1 and cost_of(problem, [at_input(problem, repeats)]) > left * (1 + 1e-12):
        repeats -= 1
    return at_input(problem, repeats)
