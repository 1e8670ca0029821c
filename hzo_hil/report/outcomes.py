"""What was reached: methods, outcome against each axis, pairs of noise, thresholds, what each noise takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from hzo_hil.report.drawing import Line, heat_map, lines
from hzo_hil.report.effects import harms
from hzo_hil.report.figures import Figure
from hzo_hil.report.intervals import Interval, mean_interval
from hzo_hil.report.model import COSTS, Axis, Material, Metric, Run, Value, first_upper, is_number, sentence, show
from hzo_hil.report.sections import Section, Table, cells
from hzo_hil.report.slices import along, at_rest, values
from hzo_hil.report.style import styled
from hzo_hil.report.thresholds import thresholds

MOST_IN_ONE = 8  # lines in a figure; more methods are drawn by tier


def groups(material: Material) -> list[tuple[str, list[str]]]:
    """Methods for one figure each: all together, or by tier where there are too many."""
    methods = material.methods
    tiers = list(dict.fromkeys(material.tier(m) for m in methods))
    if len(methods) <= MOST_IN_ONE or len(tiers) < 2:
        return [("", methods)]
    return [(t or "other", [m for m in methods if material.tier(m) == t]) for t in tiers]


def shown_name(material: Material, method: str) -> str:
    tier = material.tier(method)
    return f"{method} [{tier}]" if tier else method


def bounded(metric: Metric, found: Interval) -> tuple[float | None, float | None]:
    """The interval within what the metric can be."""
    if not metric.is_fraction or found.low is None or found.high is None:
        return found.low, found.high
    return max(found.low, 0.0), min(found.high, 1.0)


def against_axes(material: Material) -> Section:
    """A figure for each axis and outcome."""
    section = Section("Against each axis")
    for axis in material.axes:
        if axis.role not in ("noise", "setting"):
            continue
        part = at_rest(material, axis)
        for metric in material.outcomes:
            for tier, methods in groups(material):
                figure = _against(material, axis, metric, part.runs, part.held, tier, methods)
                if figure is not None:
                    section.figures.append(figure)
    return section


def _against(
    material: Material, axis: Axis, metric: Metric, runs: Sequence[Run], held: str, tier: str, methods: list[str]
) -> Figure | None:
    found = along(material, axis, runs, metric)
    series, rows = [], []
    for method in methods:
        points = [(level, mean_interval(list(seeds.values()))) for level, seeds in found.get(method, []) if seeds]
        spans = [bounded(metric, i) for _, i in points]
        if not points:
            continue
        series.append(
            Line(
                shown_name(material, method), material.methods.index(method), [v for v, _ in points],
                [i.middle for _, i in points], [s[0] for s in spans], [s[1] for s in spans],
            )
        )  # fmt: skip
        for (level, i), (low, high) in zip(points, spans, strict=True):
            rows.append(
                {axis.name: level, "method": method, metric.name: i.middle, "low": low, "high": high, "seeds": i.count}
            )
    levels = _in_order(axis, [v for s in series for v in s.x])
    if len(levels) < 2:
        return None
    name = file_name("outcome", metric.name, axis.name, tier)
    with styled(name):
        drawing = lines(series, levels if axis.levels else None, axis.title, metric.title, fraction=metric.is_fraction)
    seeds = max(int(r["seeds"]) for r in rows if is_number(r["seeds"]))
    title = f"{first_upper(metric.label)} against {axis.label}" + (f", {tier}" if tier else "")
    return Figure(name, title, _caption(axis, seeds, held), drawing, rows)


def _in_order(axis: Axis, met: Sequence[Value]) -> list[Value]:
    levels = axis.from_clean if axis.role == "noise" else axis.levels or ()
    if not axis.levels:
        return sorted(set(met), key=lambda v: float(v) if is_number(v) else 0.0)
    return [v for v in levels if v in met]


def _caption(axis: Axis, seeds: int, held: str) -> str:
    shown = f"Points: mean of {seeds} seeds; bands: 95 % t-interval of the mean." if seeds > 1 else "Points: one seed."
    drawn = "" if axis.levels else " The axis was drawn from a range: each point is the median of a bin of runs."
    note = f" {axis.label}: {axis.note}." if axis.note else ""
    return f"{shown}{sentence(held)}{drawn}{note}"


def pairs(material: Material) -> Section:
    """Heat maps of pairs of noise axes, one for each method."""
    section = Section("Two noises at once")
    metric = material.outcomes[0]
    axes = [a for a in material.of_role("noise") if len(a.levels or ()) > 1]
    for x, y in combinations(axes, 2):
        part = at_rest(material, x, y)
        for method in material.methods:
            runs = [r for r in part.runs if material.method(r) == method]
            figure = _map(material, metric, x, y, runs, method, part.held)
            if figure is not None:
                section.figures.append(figure)
    if section.figures:
        section.words = (
            "Each cell is the mean over seeds; colours have the same meaning in all maps, a dash was not run or failed."
        )
    return section


def _map(
    material: Material, metric: Metric, x: Axis, y: Axis, runs: Sequence[Run], method: str, held: str
) -> Figure | None:
    table = np.full((len(y.from_clean), len(x.from_clean)), np.nan)
    rows = []
    for row, below in enumerate(y.from_clean):
        for column, left in enumerate(x.from_clean):
            cell = [r for r in runs if r.at.get(x.name) == left and r.at.get(y.name) == below]
            seeds = list(next(iter(values(material, cell, metric).values()), {}).values())
            if seeds:
                table[row, column] = float(np.mean(seeds))
                rows.append({x.name: left, y.name: below, metric.name: table[row, column], "seeds": len(seeds)})
    if np.isfinite(table).sum(axis=0).max(initial=0) < 2 or np.isfinite(table).sum(axis=1).max(initial=0) < 2:
        return None
    every = [r.metrics[metric.name] for r in material.done if metric.name in r.metrics]
    span = (min(every), max(every))
    name = file_name("map", x.name, y.name, method)
    with styled(name):
        drawing = heat_map(
            table, [show(v) for v in x.from_clean], [show(v) for v in y.from_clean], x.title, y.title, metric.title,
            span, metric.scale,
        )  # fmt: skip
    of = f", {method}" if method else ""
    count = max(int(r["seeds"]) for r in rows)
    word = "seed" if count == 1 else "seeds"
    caption = f"Mean {metric.label} of {count} {word}{of}; clean is at the lower left.{sentence(held)}"
    return Figure(name, f"{first_upper(x.label)} and {y.label}{of}", caption, drawing, rows)


def threshold_section(material: Material, keep: float) -> Section:
    """How much of each noise every method stands."""
    metric = material.outcomes[0]
    section = Section("Thresholds")
    rows = []
    for axis in material.of_role("noise"):
        for t in thresholds(material, axis, at_rest(material, axis).runs, metric, keep):
            spread = f"{t.spread()} ({100 * t.at.confidence:.0f} %)" if t.spread() else "-"
            direction = "" if t.at.middle in (float("inf"), float("-inf")) else "≥ " if axis.counts_bits else "≤ "
            rows.append(
                cells(
                    axis.label, shown_name(material, t.method) or "-", metric.shown(t.clean),
                    f"{direction}{t.shown(t.at.middle)}", spread, str(t.at.count),
                )
            )  # fmt: skip
    if rows:
        caption = (
            f"The level up to which {100 * keep:g} % of the outcome at the least noise is kept: where it first falls"
            " below, linear between levels; median of the seeds. Interval: two of the seeds, which hold the median with"
            " the probability given, whatever the distribution. All other noise at its least."
        )
        head = ["noise", "method", f"least-noise {metric.label}", "kept to", "interval", "seeds"]
        section.tables.append(Table(caption, head, rows))
    return section


def harm_section(material: Material) -> Section:
    """What the strongest level of each noise takes, by method."""
    metric = material.outcomes[0]
    section = Section("What each noise takes")
    rows = []
    for h in harms(material, metric):
        span = h.axis.span(*h.span)
        for method, found in h.methods.items():
            interval = "-" if found.low is None or found.high is None else _range(metric, found)
            rows.append(
                cells(
                    h.axis.label, span, shown_name(material, method) or "-", metric.difference(found.middle), interval
                )
            )
    if rows:
        caption = (
            f"{first_upper(metric.label)}: least noise minus strongest level of one noise, all other noise at its"
            " least, seed by seed; 95 % t-interval over seeds. It compares the ranges that were run, not the noises."
        )
        section.tables.append(Table(caption, ["noise", "range", "method", "taken", "95 % interval"], rows))
    return section


def _range(metric: Metric, found: Interval) -> str:
    assert found.low is not None and found.high is not None
    return f"{metric.bare(found.low)} to {metric.bare(found.high)}"


def method_section(material: Material) -> Section:
    """Every method at the least noise, grouped by what the host was told."""
    section = Section("Methods")
    rest = at_rest(material)
    metrics = [*material.outcomes, *(m for m in material.metrics if m.name in ("queries", "device_seconds"))]
    rows = []
    for method in material.methods:
        texts = []
        for metric in metrics:
            seeds = values(material, rest.runs, metric).get(method, {})
            found = mean_interval(list(seeds.values()))
            low, high = bounded(metric, found)
            text = metric.shown(found.middle)
            spread = "" if low is None or metric.name in COSTS else f" ({metric.shown(low)} to {metric.shown(high)})"
            texts.append(text + spread)
        count = len({material.seed(r) for r in rest.runs if material.method(r) == method})
        rows.append(cells(material.tier(method) or "-", method or "-", *texts, str(count)))
    if not any(material.tier(m) for m in material.methods):
        rows = [r[1:] for r in rows]
    head = (
        ["host was told", "method", *(m.label if m.is_fraction else m.title for m in metrics), "seeds"][-len(rows[0]) :]
        if rows
        else []
    )
    section.tables.append(Table(f"Mean over seeds with its 95 % t-interval.{sentence(rest.held)}", head, rows))
    return section


def file_name(*parts: str) -> str:
    """Letters, digits and underscores of the parts, unlike for unlike parts."""
    import hashlib

    text = "_".join("".join(c if c.isalnum() and c.isascii() else "_" for c in p) for p in parts if p)[:80]
    plain = "_".join(p for p in parts if p)
    return text if text == plain else f"{text}_{hashlib.sha256(plain.encode()).hexdigest()[:6]}"
