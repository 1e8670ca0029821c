"""Intervals, thresholds and comparisons against what is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from hzo_hil.report.effects import best_against_others, harm_lead, harms, ranked
from hzo_hil.report.findings import findings
from hzo_hil.report.intervals import mean_interval, median_interval
from hzo_hil.report.model import Axis, Material, Metric, Run, Settings, Value
from hzo_hil.report.slices import along, at_rest
from hzo_hil.report.thresholds import crossing, thresholds

SCORE = Metric("score", "test accuracy", "fraction", "higher")
ERROR = Metric("score", "mean squared error", "", "lower")
PHASE = Axis("phase", "phase noise", "rad", "noise", (0.1, 0.0, 0.05))
BITS = Axis("bits", "converter bits", "bit", "noise", (4, None, 8, 6))

Outcome = Callable[[str, float, Value, int], float]


def study(
    outcome: Outcome, methods: Sequence[str] = ("a",), seeds: int = 3, metric: Metric = SCORE,
    tiers: Mapping[str, str] | None = None,
) -> Material:  # fmt: skip
    """A full grid of PHASE and BITS."""
    axes = [PHASE, BITS, Axis("method", "method", "", "method", tuple(methods), tiers or {})]
    axes.append(Axis("seed", "seed", "", "seed", tuple(range(seeds))))
    runs = [
        Run(f"{m}{p}{b}{s}", "done", {"phase": p, "bits": b, "method": m, "seed": s}, {"score": outcome(m, p, b, s)})
        for p in PHASE.levels or ()
        for b in BITS.levels or ()
        for m in methods
        for s in range(seeds)
    ]
    return Material(
        "study", "s", axes, [metric], [r for r in runs if math.isfinite(r.metrics["score"])], Settings([], "")
    )


def test_a_mean_interval_covers_as_often_as_it_says() -> None:
    # 4000 draws: the binomial 5-sigma band around 95 %; false alarm below 1e-6.
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(4000):
        found = mean_interval(list(rng.normal(3, 2, 4)))
        assert found.low is not None and found.high is not None
        hits += found.low < 3 < found.high
    assert abs(hits / 4000 - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 4000)


def test_a_median_interval_covers_at_least_as_often_as_it_says_with_any_distribution() -> None:
    rng = np.random.default_rng(2)
    for n in (3, 5, 9):
        hits = 0
        confidence = 0.0
        for _ in range(3000):
            found = median_interval(list(rng.exponential(1.0, n)))
            assert found.low is not None and found.high is not None
            confidence = found.confidence
            hits += found.low < math.log(2) < found.high
        assert abs(hits / 3000 - confidence) < 5 * math.sqrt(confidence * (1 - confidence) / 3000), n  # 5 sigma
    assert median_interval([1.0, 2.0, math.inf]).confidence == pytest.approx(0.75)
    assert median_interval(list(range(9))).confidence >= 0.95


def test_one_value_has_no_interval_and_equal_ones_neither() -> None:
    assert mean_interval([0.5]).low is None and not mean_interval([0.5]).is_constant
    assert mean_interval([0.3, 0.1 + 0.2, 0.3]).is_constant
    assert not mean_interval([0.3, 0.3]).excludes_zero
    assert math.isnan(mean_interval([]).middle)


def test_intervals_for_all_pairs_at_once_are_wider() -> None:
    one, many = mean_interval([1.0, 2.0, 3.5]), mean_interval([1.0, 2.0, 3.5], comparisons=6)
    assert one.low is not None and many.low is not None and many.low < one.low


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([1.0, 0.96, 0.90], 0.05 + 0.05 / 6),  # between the second and the third level, in proportion
        ([1.0, 0.90, 0.99], 0.025),  # recovering by chance moves nothing
        ([1.0, 0.99, 0.951], math.inf),
        ([1.0, 0.95, 0.95], math.inf),  # just kept
    ],
)
def test_a_threshold_is_where_the_curve_first_falls_below(curve: list[float], expected: float) -> None:
    assert crossing([0.0, 0.05, 0.1], curve, 1, 0.95) == pytest.approx(expected)
    assert crossing([0.0, 0.05, 0.1], [1 / c for c in curve], -1, 0.95) >= 0  # of an error: less is better


def test_thresholds_of_a_linear_loss_are_found_whatever_the_order_of_levels() -> None:
    material = study(lambda m, p, b, s: 0.9 + 0.001 * s - 0.6 * p)
    (found,) = thresholds(material, PHASE, at_rest(material, PHASE).runs, SCORE)
    assert found.at.middle == pytest.approx(0.05 * 0.901 / 0.6)
    assert (found.at.low, found.at.high) == pytest.approx((0.05 * 0.9 / 0.6, 0.05 * 0.902 / 0.6))
    assert found.shown(found.at.middle) == "0.0751 rad" and found.spread() == "0.075 to 0.0752 rad"


def test_of_bits_fewer_are_more_noise_and_none_is_clean() -> None:
    assert BITS.from_clean == (None, 8, 6, 4) and PHASE.from_clean == (0.0, 0.05, 0.1)
    loss = {None: 0.0, 8: 0.01, 6: 0.02, 4: 0.42}
    material = study(lambda m, p, b, s: 1.0 - loss[b])  # type: ignore[index]
    (found,) = thresholds(material, BITS, at_rest(material, BITS).runs, SCORE)
    assert found.shown(found.at.middle) == "5.85 bit"  # 6 - 2 * 0.03 / 0.4
    lost = study(lambda m, p, b, s: 1.0 if b is None else 0.5)
    (found,) = thresholds(lost, BITS, at_rest(lost, BITS).runs, SCORE)
    assert found.shown(found.at.middle) == "not held at 8 bit"
    held = study(lambda m, p, b, s: 1.0)
    (found,) = thresholds(held, BITS, at_rest(held, BITS).runs, SCORE)
    assert found.shown(found.at.middle) == "beyond the range (held at 4 bit)"


def test_one_axis_is_looked_at_with_all_other_noise_at_its_least() -> None:
    material = study(lambda m, p, b, s: 1.0 - p - (0.0 if b is None else 0.5))
    part = at_rest(material, PHASE)
    assert part.held == "converter bits none" and len(part.runs) == 9
    points = along(material, PHASE, part.runs, SCORE)["a"]
    assert [(level, seeds[0,]) for level, seeds in points] == [(0.0, 1.0), (0.05, 0.95), (0.1, 0.9)]


def test_a_design_without_clean_runs_is_averaged_and_says_so() -> None:
    material = study(lambda m, p, b, s: 1.0 - p if (b is None) == (p == 0) else math.nan)
    part = at_rest(material, PHASE)
    assert part.held == "an average over converter bits as they were run" and len(part.runs) == len(material.runs)


def test_an_axis_drawn_from_a_range_is_binned() -> None:
    axis = Axis("x", "x", "", "noise", None)
    runs = [Run(str(i), "done", {"x": i / 600, "seed": 0}, {"score": 1 - i / 600}) for i in range(600)]
    material = Material("study", "s", [axis], [SCORE], runs, Settings([], ""))
    points = along(material, axis, runs, SCORE)[""]
    assert len(points) == 6
    for level, seeds in points:
        assert isinstance(level, float) and seeds[()] == pytest.approx(1 - level, abs=0.01)


def test_a_clear_winner_is_named_and_a_chance_one_is_not() -> None:
    def outcome(m: str, p: float, b: Value, s: int) -> float:
        wobble = 0.01 * (((3 * s + 2) * ("good", "fair", "poor").index(m)) % 5)
        return {"good": 0.9, "fair": 0.895, "poor": 0.5}[m] + wobble - p

    material = study(outcome, ("poor", "good", "fair"))
    assert [name for name, _ in ranked(material, material.runs, SCORE)][-1] == "poor"
    found = {c.second: c.by for c in best_against_others(material, material.runs, SCORE)}
    assert found["poor"].excludes_zero
    assert not next(by for name, by in found.items() if name != "poor").excludes_zero
    words = findings(material, 0.95)[0]
    assert "ahead of poor" in words and "cannot be told apart from" in words


def test_methods_without_any_difference_are_told_apart_at_most_as_often_as_stated() -> None:
    # Two methods, 3 seeds, no difference: named a winner in 5 % of 600 studies; 5-sigma band, false alarm below 1e-6.
    rng = np.random.default_rng(3)
    wins = 0
    for _ in range(600):
        material = study(lambda m, p, b, s: float(rng.normal(0.5, 0.01)), ("a", "b"))
        runs = at_rest(material).runs
        wins += best_against_others(material, runs, SCORE)[0].by.excludes_zero
    assert wins / 600 < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 600)


def test_an_error_is_better_where_it_is_smaller() -> None:
    material = study(
        lambda m, p, b, s: (1.0 if m == "good" else 2.0) + 0.01 * s * len(m) + p, ("bad", "good"), metric=ERROR
    )
    assert ranked(material, material.runs, ERROR)[0][0] == "good"
    assert "good has the lowest mean squared error" in findings(material, 0.95)[0]


def test_the_noise_that_hurts_most_is_named_only_when_seeds_agree() -> None:
    sure = study(lambda m, p, b, s: 0.9 - 4 * p * (1 + 0.01 * s) - (0 if b is None else 0.01))
    found = harms(sure, SCORE)
    assert [h.axis.name for h in found] == ["phase", "bits"]
    lead = harm_lead(found)
    assert lead is not None and lead.excludes_zero and lead.middle == pytest.approx(0.404 - 0.01)
    assert any("phase noise hurts most" in text for text in findings(sure, 0.95))
    even = study(lambda m, p, b, s: 0.9 - (1 + s) * p - (0 if b is None else 0.1 * (3 - s)))
    assert not any("hurts most" in text for text in findings(even, 0.95))
    assert any("cannot be told apart in this" in text for text in findings(even, 0.95))


def test_one_seed_makes_no_claims() -> None:
    material = study(lambda m, p, b, s: (0.9 if m == "a" else 0.5) - p, ("a", "b"), seeds=1)
    text = " ".join(findings(material, 0.95))
    assert "ahead" not in text and "hurts most" not in text and "One seed says nothing of the spread" in text


def test_methods_are_grouped_by_what_the_host_was_told() -> None:
    tiers = {"spsa": "loss", "hzo": "inject", "deployed": "twin"}
    material = study(lambda m, p, b, s: 0.5 + 0.01 * s * len(m), ("hzo", "deployed", "spsa"), tiers=tiers)
    assert material.methods == ["spsa", "hzo", "deployed"]
    assert any(
        text.startswith("Highest mean by what the host was told: loss: spsa") for text in findings(material, 0.95)
    )


def test_what_learnt_nothing_does_not_count_as_robust() -> None:
    material = study(lambda m, p, b, s: 0.1 + 0.001 * s if m == "idle" else 0.9 - p + 0.001 * s, ("idle", "able"))
    text = next(t for t in findings(material, 0.95) if "is kept along phase noise" in t)
    assert "Left out: idle, which learnt little even there" in text
