"""What was found, in sentences: never more than the runs support, always with how many seeds stand behind it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hzo_hil.report.effects import Comparison, best_against_others, harm_lead, harms, ranked
from hzo_hil.report.intervals import Interval, mean_interval
from hzo_hil.report.model import Axis, Material, Metric, Run, listed
from hzo_hil.report.slices import at_rest, values
from hzo_hil.report.thresholds import Threshold, thresholds

BESIDE = {
    "score_deployed": "trained on the ideal twin and written to the device",
    "score_physics_aware": "physics-aware training",
    "score_ideal": "the ideal twin itself, noise-free",
}
LITTLE_LEARNT = 0.5  # of the best method's clean outcome: below, what a method keeps of its own says little


def findings(material: Material, keep: float) -> list[str]:
    """Sentences for the top of a report, the most important first. Plain text."""
    metric = material.outcomes[0]
    parts = [_single(material, metric)] if material.kind == "run" else _compared(material, metric)
    if material.kind == "study":
        parts += _noise(material, metric) + _kept(material, metric, keep)
    parts += _predictions(material)
    return [p for p in [*parts, _lost_runs(material), _seeds(material)] if p]


def _single(material: Material, metric: Metric) -> str:
    run = material.runs[0]
    spent = [
        f"{run.metrics[name]:,.0f} {word}" if name != "device_seconds" else f"{run.metrics[name]:,.1f} {word}"
        for name, word in (
            ("queries", "queries"), ("stage_evaluations", "stage evaluations"), ("device_seconds", "device seconds")
        )
        if name in run.metrics
    ]  # fmt: skip
    if metric.name not in run.metrics:
        return f"The run gave no {metric.label}: {run.error or 'nothing was evaluated'}."
    text = f"The run reached {metric.shown(run.metrics[metric.name])} {metric.label} with {', '.join(spent)}."
    beside = [f"{word} {metric.shown(run.metrics[name])}" for name, word in BESIDE.items() if name in run.metrics]
    return f"{text} Beside it, one run of each: {'; '.join(beside)}." if beside else text


def _compared(material: Material, metric: Metric) -> list[str]:
    if len(material.methods) < 2:
        return [_alone(material, metric)]
    rest = at_rest(material)
    noise = [a for a in material.axes if a.role in ("noise", "setting")]
    where = f"With {rest.held}" if rest.held else "On average over seeds"
    found = [_winner(material, metric, best_against_others(material, rest.runs, metric), rest.runs, where)]
    if noise and len(rest.runs) < len(material.done):
        every = best_against_others(material, material.done, metric)
        cells = max((c.cells for c in every), default=0)
        text = f"On average over the {cells} settings of {listed([a.label for a in noise])}"
        found.append(_winner(material, metric, every, material.done, text))
    return found + _tier_winners(material, metric)


def _alone(material: Material, metric: Metric) -> str:
    rest = at_rest(material)
    found = next(iter(values(material, rest.runs, metric).values()), {})
    where = f" with {rest.held}" if rest.held else ""
    return f"Mean {metric.label}{where}: {_with_interval(metric, mean_interval(list(found.values())))}."


def _winner(material: Material, metric: Metric, found: Sequence[Comparison], runs: Sequence[Run], start: str) -> str:
    order = dict(ranked(material, runs, metric))
    if not found:
        return ""
    first = found[0].first
    sure = [c for c in found if c.by.excludes_zero]
    alike = [c for c in found if c.by.is_constant and c.by.middle > 0]
    unsure = [c for c in found if c not in sure and c not in alike]
    word = "highest" if metric.sign > 0 else "lowest"
    text = f"{start}, {first} has the {word} {metric.label}: {metric.shown(order[first])}."
    if sure:
        parts = [f"{c.second} by {_span(metric, c.by)}" for c in sure]
        text += f" It is ahead of {listed(parts)}."
    if alike:
        parts = [f"{c.second} by {metric.difference(c.by.middle)}" for c in alike]
        text += f" In each of {_count(alike[0].by.count, 'seed')} alike it is ahead of {listed(parts)}."
    if unsure:
        parts = [f"{c.second} ({metric.shown(order[c.second])})" for c in unsure]
        seeds = max(c.by.count for c in unsure)
        why = f"With {_count(seeds, 'seed')}" if seeds else "As they share no seed,"
        text += f" {why} it cannot be told apart from {listed(parts)}."
    return text


def _tier_winners(material: Material, metric: Metric) -> list[str]:
    tiers = list(dict.fromkeys(t for m in material.methods if (t := material.tier(m))))
    if len(tiers) < 2:
        return []
    order = dict(ranked(material, material.done, metric))
    parts = []
    for tier in tiers:
        names = [m for m in order if material.tier(m) == tier]
        if names:
            parts.append(f"{tier}: {names[0]} ({metric.shown(order[names[0]])})")
    return [f"Highest mean by what the host was told: {'; '.join(parts)}."]


def _noise(material: Material, metric: Metric) -> list[str]:
    found = [h for h in harms(material, metric) if h.seeds]
    if not found:
        return []
    costs = [
        f"{h.axis.label} ({h.axis.span(*h.span)}): {_lost(metric, mean_interval(list(h.seeds.values())))}"
        for h in found
    ]
    text = f"What the strongest level takes from the {metric.label}, mean of the methods: {'; '.join(costs)}."
    lead = harm_lead(found)
    if lead is not None and lead.excludes_zero:
        text = f"Over the ranges studied {found[0].axis.label} hurts most. {text}"
    elif lead is not None and lead.is_constant and lead.middle > 0:
        text = f"Over the ranges studied {found[0].axis.label} takes most, in every seed alike. {text}"
    elif lead is not None:
        seeds = _count(lead.count, "seed")
        text += f" With {seeds} {found[0].axis.label} and {found[1].axis.label} cannot be told apart in this."
    return [text]


def _lost(metric: Metric, lost: Interval) -> str:
    if lost.middle < 0 and lost.excludes_zero:
        gained = Interval(-lost.middle, _minus(lost.high), _minus(lost.low), lost.count)
        return f"nothing: it gains {_span(metric, gained)}"
    return _span(metric, lost) + ("" if lost.excludes_zero or lost.low is None else ", not told from nothing")


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _kept(material: Material, metric: Metric, keep: float) -> list[str]:
    found = []
    for axis in material.of_role("noise"):
        rows = thresholds(material, axis, at_rest(material, axis).runs, metric, keep)
        if rows:
            found.append(_kept_of(axis, rows, metric, keep))
    return found


def _kept_of(axis: Axis, rows: Sequence[Threshold], metric: Metric, keep: float) -> str:
    best = max(metric.sign * t.clean for t in rows)
    useful = [t for t in rows if metric.sign < 0 or t.clean >= LITTLE_LEARNT * best]
    parts = []
    for t in useful:
        name = f"{t.method} " if t.method else ""
        spread = f" (of the seeds {t.spread()})" if t.spread() and math.isfinite(t.at.middle) else ""
        word = "" if math.isinf(t.at.middle) else "down to " if axis.counts_bits else "up to "
        parts.append(f"{name}{word}{t.shown(t.at.middle)}{spread}")
    first = rows[0].levels[0]
    clean = "noise-free" if first in (0, None) else f"least-noise ({axis.shown(first)})"
    text = f"{100 * keep:g} % of the {clean} {metric.label} is kept along {axis.label}: {'; '.join(parts)}."
    if len(useful) < len(rows):
        others = [t.method for t in rows if t not in useful]
        text += f" Left out: {listed(others)}, which learnt little even there."
    return text


def _predictions(material: Material) -> list[str]:
    pairs = prediction_pairs(material)
    ratios = [m / p for points in pairs.values() for p, m in points]
    if not ratios:
        return []
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    if len(ratios) < 5:
        return [f"Noise of the gradient, measured over predicted: {', '.join(f'{r:.2f}' for r in ratios)}."]
    return [
        f"Noise of the gradient, measured over predicted: median {middle:.2f}, from {low:.2f} to {high:.2f} in the"
        f" middle 80 % of {len(ratios)} runs."
    ]


def prediction_pairs(material: Material) -> dict[str, list[tuple[float, float]]]:
    """By method, (predicted, measured) noise of the gradient of each run that has both."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in material.done:
        predicted = run.metrics.get("gradient_noise_predicted")
        measured = run.metrics.get("gradient_error_measured")
        if predicted and measured and predicted > 0 and measured > 0:
            found.setdefault(material.method(run), []).append((predicted, measured))
    return found


def _lost_runs(material: Material) -> str:
    count: Counter[str] = Counter(r.status for r in material.runs)
    if count["done"] == len(material.runs):
        return ""
    parts = [f"{count[s]} {word}" for s, word in (("failed", "failed"), ("missing", "are missing")) if count[s]]
    text = f"Of {len(material.runs)} runs {count['done']} are done, {listed(parts)}; only those that are done count."
    by_method = Counter(material.method(r) for r in material.runs if r.status == "failed")
    if len(by_method) and len(material.methods) > 1:
        names = [f"{m} {n}" for m, n in by_method.most_common()]
        text += f" Failed by method: {', '.join(names)}. A method that fails where it is hard looks better than it is."
    return text


def _seeds(material: Material) -> str:
    n = len(material.seeds)
    if n < 2:
        subject = "One run" if material.kind == "run" else "One seed"
        return (
            f"{subject} says nothing of the spread between seeds and chips: no difference is more than an observation."
        )
    return (
        f"In brackets: 95 % t-intervals over {n} seeds. Methods, and noises, are compared seed by seed, with intervals"
        " that hold for all pairs at once."
    )


def _with_interval(metric: Metric, found: Interval) -> str:
    text = metric.shown(found.middle)
    if found.low is None or found.high is None:
        return text
    return f"{text} ({metric.shown(found.low)} to {metric.shown(found.high)})"


def _span(metric: Metric, found: Interval) -> str:
    text = metric.difference(found.middle)
    if found.low is None or found.high is None:
        return f"{text} (alike in {_count(found.count, 'seed')})" if found.is_constant else text
    return f"{text} ({metric.bare(found.low)} to {metric.bare(found.high)})"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
