"""What differs and how sure that is: methods against each other, and what each noise costs. Numbers, no sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hzo_hil.report.intervals import Interval, mean_interval
from hzo_hil.report.model import Axis, Material, Metric, Run, Value
from hzo_hil.report.slices import BySeed, Seed, along, at_rest, paired, per_seed, values

Cell = tuple[Value, ...]


@dataclass(frozen=True)
class Comparison:
    """How much better `first` is than `second`, paired by seed, each seed averaged over `cells` settings at most."""

    first: str
    second: str
    by: Interval
    cells: int


def ranked(material: Material, runs: Sequence[Run], metric: Metric) -> list[tuple[str, float]]:
    """Methods by their mean over the cells that all of them have, best first."""
    table = _cells(material, runs, metric)
    full = [c for c in table.values() if len(c) == len(material.methods)] or list(table.values())
    means = {m: [float(np.mean(list(c[m].values()))) for c in full if m in c] for m in material.methods}
    found = [(m, float(np.mean(v))) for m, v in means.items() if v]
    return sorted(found, key=lambda pair: -metric.sign * pair[1])


def best_against_others(material: Material, runs: Sequence[Run], metric: Metric) -> list[Comparison]:
    """The best on average against each other method; intervals hold for all pairs at once, as the best was picked."""
    order = ranked(material, runs, metric)
    table = _cells(material, runs, metric)
    pairs = len(order) * (len(order) - 1) // 2
    found = []
    for other, _ in order[1:]:
        by_seed: dict[Seed, list[float]] = defaultdict(list)
        cells = 0
        for methods in table.values():
            first, second = methods.get(order[0][0], {}), methods.get(other, {})
            common = [s for s in first if s in second]
            cells += bool(common)
            for seed in common:
                by_seed[seed].append(metric.sign * (first[seed] - second[seed]))
        differences = [float(np.mean(d)) for d in by_seed.values()]
        found.append(Comparison(order[0][0], other, mean_interval(differences, pairs), cells))
    return found


def _cells(material: Material, runs: Sequence[Run], metric: Metric) -> dict[Cell, dict[str, BySeed]]:
    """By setting of everything but method and seed, by method, what each seed gave."""
    axes = [a.name for a in material.axes if a.role in ("noise", "setting")]
    groups: dict[Cell, list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(run.at.get(name) for name in axes)].append(run)
    return {cell: values(material, group, metric) for cell, group in groups.items()}


@dataclass(frozen=True)
class Harm:
    """What the strongest level of one noise takes from the outcome, by method and averaged over methods."""

    axis: Axis
    span: tuple[Value, Value]
    held: str
    methods: dict[str, Interval]
    seeds: BySeed
    """Averaged over the methods, by seed."""


def harms(material: Material, metric: Metric) -> list[Harm]:
    """Of every noise axis with at least two levels, the most harmful first."""
    found = []
    for axis in material.of_role("noise"):
        levels = axis.from_clean
        if len(levels) < 2:
            continue
        part = at_rest(material, axis)
        lost: dict[str, BySeed] = {}
        for method, rows in along(material, axis, part.runs, metric).items():
            table = dict(rows)
            if levels[0] in table and levels[-1] in table:
                clean, noisy = table[levels[0]], table[levels[-1]]
                lost[method] = {s: metric.sign * (clean[s] - noisy[s]) for s in clean if s in noisy}
        lost = {m: t for m, t in lost.items() if t}
        if lost:
            intervals = {m: mean_interval(list(t.values())) for m, t in lost.items()}
            found.append(Harm(axis, (levels[0], levels[-1]), part.held, intervals, per_seed(lost.values())))
    return sorted(found, key=lambda h: -(float(np.mean(list(h.seeds.values()))) if h.seeds else -np.inf))


def harm_lead(found: Sequence[Harm]) -> Interval | None:
    """How much more the first noise takes than the second, paired by seed; None where there are not two."""
    if len(found) < 2:
        return None
    differences = paired(found[0].seeds, found[1].seeds)
    return mean_interval(differences, len(found) * (len(found) - 1) // 2) if differences else None
