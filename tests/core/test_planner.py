"""The planner against exhaustive search and closed forms, on problems made of numbers: no device, no tensor."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hzo_hil.cutmodel import Chosen, Problem, cost_of, predict
from hzo_hil.devices.errors import BadInput
from hzo_hil.plan import Cut, Tree
from hzo_hil.planner import Goal, fixed, plan_for
from hzo_hil.programme import Programme, best_step


def problem(
    depth: int, *, width: int = 4, noise: float = 0.01, overhead: float = 0.0, curvature: float = 0.0, batch: int = 2,
    alignment: float = -1.0, turned: float = 0.0,
    reach: int | None = None, largest: float = 0.1, top: float = 0.0, floor: float = 0.0,
) -> Problem:  # fmt: skip
    """Isometric stages; a query costs its stages and an overhead. `reach`: the longest segment that can be asked."""
    shape = (depth + 1, depth + 1)
    at, source = np.indices(shape)
    inside = (at < source) & (source - at <= (reach or depth))

    def table(value: object) -> np.ndarray:
        return np.where(inside, value, np.inf)

    def each(value: float) -> np.ndarray:
        return np.array([0.0] + [value] * depth)

    return Problem(
        depth=depth, batch=batch, unit="stage evaluations",
        rows=np.stack([table(2.0 * width)] * 2), decoder=np.stack([table(float(width)), table(1.0)]),
        bend=np.stack([table(1 / width), table(1.0)]), largest=np.full((2, *shape), largest),
        row_cost=table(source - at + overhead), call_cost=np.zeros(shape), call_rows=np.full(shape, 8192.0),
        averages=np.zeros(shape, dtype=bool), common=np.zeros(shape, dtype=bool), read=each(noise**2),
        rounding=each(0.0), inject=np.zeros(shape),
        target=np.ones(depth + 1), gain=np.ones(depth + 1), curvature=np.where(inside, curvature * (source - at), 0.0),
        alignment=alignment, turned=np.where(inside, turned, 0.0),
        own=each(1.0), shared=each(0.0), floor=each(floor), top_error=top, step=np.zeros(depth), most=4096,
    )  # fmt: skip


def every_tree(first: int, last: int) -> list[list[Cut]]:
    """Cuts of all binary trees over stages first..last with the target at `last` known, parents first."""
    if first >= last:
        return [[]]
    return [
        [Cut(k, last), *left, *right]
        for k in range(first, last)
        for left in every_tree(first, k)
        for right in every_tree(k + 1, last)
    ]


@pytest.mark.parametrize("overhead", [0.0, 2.0, 30.0])
@pytest.mark.parametrize("multiplier", [1e-2, 1.0, 1e4])
@pytest.mark.parametrize("depth", [3, 5, 6])
def test_the_programme_finds_the_best_of_all_trees(depth, multiplier, overhead):
    p = problem(depth, overhead=overhead, curvature=0.3)
    tables = Programme(p, 1.0, np.zeros(depth + 1))

    def value(cuts: list[Cut]) -> float:
        # A cut reaches the stages down to the lowest that hangs on it.
        total = 0.0
        for c in cuts:
            lowest = 1 + max((o.at for o in cuts if o.at < c.at and o.source >= c.source), default=0)
            i, k, j = (np.array([v]) for v in (lowest, c.at, c.source))
            total += min(float(tables._contribution(w, i, k, j, multiplier)[0][0]) for w in (0, 1))
        return total

    best = min(every_tree(1, depth), key=value)
    found = tables.best(multiplier)
    assert found is not None
    assert math.isclose(value([c.cut for c in found]), value(best), rel_tol=1e-12)
    Tree(depth, tuple(c.cut for c in found))  # parents come first


@pytest.mark.parametrize("depth", [4, 8, 16])
def test_without_overhead_and_with_much_noise_balanced_halving_is_best(depth):
    p = problem(depth, noise=0.1)
    chain = cost_of(p, fixed(p, "chain"))
    assert plan_for(p, Goal(budget=200 * chain)).tree.name == "bisect"


def test_where_a_fixed_cost_per_query_dominates_direct_is_best():
    p = problem(8, noise=0.1, overhead=1e5)
    assert plan_for(p, Goal(budget=200 * cost_of(p, fixed(p, "chain")))).tree.name == "direct"


@pytest.mark.parametrize("depth", [2, 9, 16])
@pytest.mark.parametrize("overhead", [0.0, 10.0])
def test_without_noise_it_costs_what_the_chain_costs(depth, overhead):
    p = problem(depth, noise=0.0, overhead=overhead, curvature=0.5)
    planned = plan_for(p, Goal(tolerance=0.01))
    assert planned.prediction.cost == pytest.approx(cost_of(p, fixed(p, "chain")), rel=1e-12)
    assert planned.prediction.error < 1e-6


def test_it_is_never_worse_than_a_named_tree_beside_it():
    for noise, overhead in ((1e-3, 0.0), (0.02, 3.0), (0.2, 50.0)):
        p = problem(12, noise=noise, overhead=overhead, curvature=0.4)
        planned = plan_for(p, Goal(budget=8 * cost_of(p, fixed(p, "chain"))))
        beside = [found.error for found in planned.beside.values() if found is not None]
        assert beside and planned.prediction.error <= min(beside) * (1 + 1e-3)


@pytest.mark.parametrize("tolerance", [0.03, 0.1, 0.3])
def test_a_tolerance_is_met_and_costs_less_when_it_is_loose(tolerance):
    p = problem(10, noise=0.02, overhead=2.0, curvature=0.4, largest=1.0)
    tight, loose = (plan_for(p, Goal(tolerance=t)).prediction for t in (tolerance, 2 * tolerance))
    assert tight.error <= tolerance and loose.error <= 2 * tolerance
    assert loose.cost <= tight.cost


@pytest.mark.parametrize("times", [1.0, 3.0, 20.0])
def test_a_budget_is_kept_and_used(times):
    p = problem(10, noise=0.05, overhead=2.0, curvature=0.4)
    budget = times * cost_of(p, fixed(p, "chain"))
    planned = plan_for(p, Goal(budget=budget))
    assert planned.prediction.cost <= budget * (1 + 1e-9)
    assert planned.prediction.cost >= 0.85 * budget


def test_only_segments_that_can_be_asked_are_cut():
    p = problem(9, noise=0.1, reach=1)
    planned = plan_for(p, Goal(budget=30 * cost_of(p, fixed(p, "chain"))))
    assert planned.tree.name == "chain"
    assert planned.beside["bisect"] is None and planned.beside["direct"] is None
    assert all(len(c.cut) <= 3 for c in plan_for(problem(9, noise=0.1, reach=3), Goal(tolerance=0.5)).chosen)


def test_a_step_limit_brings_hadamard_probes():
    """Where the amplitude of an element is the limit, M times less noise; at equal noise coordinate truncates less."""
    p = problem(6, noise=0.02, largest=0.02)
    assert all(c.way == 1 for c in plan_for(p, Goal(budget=10 * cost_of(p, fixed(p, "chain")))).chosen)
    for way, expected in ((0, 4.0), (1, 1.0)):
        found = predict(p, fixed(p, "direct", way, 0.02))
        # Closed form: five of six stages have a target of their own, each with error decoder s^2 / (2 eps^2).
        assert found.error**2 == pytest.approx(5 / 6 * expected * 0.02**2 / (2 * 0.02**2), rel=1e-9)


def test_large_errors_compound_and_small_ones_add():
    """1 + e_k = (1 + e_j)(1 + v): closed form for the chain of isometric stages."""
    depth, noise, eps = 5, 0.3, 0.5
    p = problem(depth, noise=noise)
    p = replace(p, largest=np.full_like(p.largest, eps))
    v = 4 * noise**2 / (2 * eps**2)
    expected = [(1 + v) ** (depth - k) - 1 for k in range(1, depth + 1)]
    found = predict(p, fixed(p, "chain", 0, eps))
    np.testing.assert_allclose(np.square(found.target_error), expected, rtol=1e-9)
    assert found.error**2 == pytest.approx(float(np.mean(expected)), rel=1e-9)


@pytest.mark.parametrize(
    ("alignment", "energy"),
    [(-1.0, lambda n, b: (1 - np.exp(-n * b)) ** 2), (1.0, lambda n, b: (np.exp(n * b) - 1) ** 2),
     (0.0, lambda n, b: n * b**2)],
)  # fmt: skip
def test_truncation_along_the_target_adds_in_phase_and_across_as_energy(alignment, energy):
    p = problem(4, noise=0.0, curvature=0.5, largest=1.0, alignment=alignment)
    once, often = (predict(p, fixed(p, "chain", 1, 0.2, n)) for n in (1, 100))
    assert once.truncation == pytest.approx(float(np.mean(energy(np.arange(4), 0.5 * 0.2**2))), rel=1e-9)
    assert often.truncation == pytest.approx(once.truncation, rel=1e-12)


def test_a_saturating_chain_loses_its_targets_and_no_more():
    p = problem(40, noise=0.0, curvature=1.0, largest=1.0)
    assert 0.9 < predict(p, fixed(p, "chain", 1, 1.0)).error < 1


def test_turned_jacobians_add_to_every_tree_what_no_probe_removes():
    p = problem(4, noise=0.0, turned=0.01)
    found = {tree: predict(p, fixed(p, tree, 1, 0.1, 1000)) for tree in ("chain", "direct")}
    # By boundary from the top: three cuts in a row, or one.
    assert found["chain"].forward == pytest.approx(0.01 * (3 + 2 + 1) / 4, rel=1e-9)
    assert found["direct"].forward == pytest.approx(0.01 * 3 / 4, rel=1e-9)


def test_error_shared_by_samples_does_not_average_and_independent_error_does():
    alone, alike = problem(4, batch=16), problem(4, batch=16)
    alike = replace(alike, shared=alike.own)
    first, second = (predict(q, fixed(q, "chain", 0, 0.1)) for q in (alone, alike))
    assert first.noise / second.noise == pytest.approx(16, rel=1e-9)


def test_with_the_step_chosen_repeats_give_two_thirds_of_a_power():
    noise, bend = 3e-4, 7.0
    errors = []
    for n in (1, 8):
        eps = best_step(noise / n, bend)
        errors.append(noise / n / eps**2 + bend * eps**4)
        for off in (0.9, 1.1):
            assert noise / n / (off * eps) ** 2 + bend * (off * eps) ** 4 > errors[-1]
    assert errors[0] / errors[1] == pytest.approx(8 ** (2 / 3), rel=1e-9)


def test_steps_are_whole_converter_steps_within_the_limit():
    p = problem(6, noise=0.05, curvature=2.0, largest=0.09)
    p = replace(p, step=np.full(6, 0.03))
    for c in plan_for(p, Goal(budget=8 * cost_of(p, fixed(p, "chain")))).chosen:
        assert c.eps / 0.03 == pytest.approx(round(c.eps / 0.03), abs=1e-9)
        assert 0.03 - 1e-12 <= c.eps <= 0.09 + 1e-12


def test_calls_are_counted_whole():
    p = problem(2)
    p = replace(p, call_cost=np.full_like(p.call_cost, 5.0), call_rows=np.full_like(p.call_rows, 6.0))
    # 2 samples x 8 rows x 3 shots: two rows fit into a call with their shots, eight calls.
    assert cost_of(p, [Chosen(Cut(1, 2), 0, 0.1, 3)]) == 16 * 3 * 1 + 5 * 8


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [{}, {"tolerance": 0.1, "budget": 5.0}])
def test_one_goal_is_needed(goal):
    with pytest.raises(BadInput, match="one of a tolerance and a budget"):
        Goal(**goal)


@pytest.mark.parametrize("name", ["tolerance", "budget"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_goals_are_positive_and_finite(name, value):
    with pytest.raises(BadInput, match=f"{name} is .*: it must be above zero and finite"):
        Goal(**{name: value})


def test_a_tolerance_out_of_reach_says_what_is_in_reach_and_what_limits_it():
    with pytest.raises(BadInput, match=r"best predicted is 0\.7\d.*What limits it: noise of the forward pass"):
        plan_for(problem(4, floor=0.5), Goal(tolerance=0.1))
    coarse = replace(problem(4, noise=1e-6, curvature=1.0, largest=0.5), step=np.full(4, 0.5))
    with pytest.raises(BadInput, match="What limits it: truncation at the smallest step"):
        plan_for(coarse, Goal(tolerance=1e-3))
    few = replace(problem(4, noise=1.0), most=2)
    with pytest.raises(BadInput, match="What limits it: noise of the probes .*most repeats"):
        plan_for(few, Goal(tolerance=0.01))


def test_a_budget_below_the_cheapest_plan_says_what_that_costs():
    p = problem(5, noise=0.01)
    with pytest.raises(BadInput, match="the cheapest needs 64 for its probes"):
        plan_for(p, Goal(budget=10.0))
