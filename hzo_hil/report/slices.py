"""Which runs are compared with which: one axis is varied, all others stand still.

Knows the design, not what is made of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hzo_hil.report.model import Axis, Material, Metric, Run, Value, listed

Seed = tuple[Value, ...]
BySeed = dict[Seed, float]
BINS = 6  # of an axis that was drawn from a range


@dataclass(frozen=True)
class Slice:
    """Runs, and in words how the axes that are not looked at stand."""

    runs: Sequence[Run]
    held: str


def at_rest(material: Material, *free: Axis) -> Slice:
    """Runs along `free` with all other noise at its least and every other setting at its first value.

    Axes drawn from a range cannot be held; where a constrained design has no such runs, all are taken, and `held` says
    so.
    """
    names = {a.name for a in free}
    others = [a for a in material.axes if a.name not in names and a.role in ("noise", "setting")]
    fixed = {a.name: (a.from_clean if a.role == "noise" else a.levels)[0] for a in others if a.levels}
    drawn = [a.label for a in others if not a.levels]
    runs = [r for r in material.done if all(r.at.get(name) == level for name, level in fixed.items())]
    if not _varied(runs, free):
        runs, fixed, drawn = list(material.done), {}, [a.label for a in others]
    parts = [f"{a.label} {a.shown(fixed[a.name])}" for a in others if a.name in fixed]
    if drawn:
        parts.append(f"an average over {' and '.join(drawn)} as they were run")
    return Slice(runs, listed(parts))


def _varied(runs: Sequence[Run], free: Iterable[Axis]) -> bool:
    return bool(runs) and all(len({r.at.get(a.name) for r in runs}) > 1 for a in free)


def values(material: Material, runs: Iterable[Run], metric: Metric) -> dict[str, BySeed]:
    """By method and seed, the mean of the runs."""
    found: dict[str, dict[Seed, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if metric.name in run.metrics:
            found[material.method(run)][material.seed(run)].append(run.metrics[metric.name])
    return {m: {s: float(np.mean(v)) for s, v in seeds.items()} for m, seeds in found.items()}


def along(material: Material, axis: Axis, runs: Sequence[Run], metric: Metric) -> dict[str, list[tuple[Value, BySeed]]]:
    """By method, the levels of `axis` from clean to noisy with what each seed gave there."""
    levels = axis.from_clean if axis.role == "noise" else axis.levels
    if levels:
        groups: list[tuple[Value, list[Run]]] = [(v, [r for r in runs if r.at.get(axis.name) == v]) for v in levels]
    else:
        groups = _binned(axis, runs)
    found: dict[str, list[tuple[Value, BySeed]]] = {m: [] for m in material.methods}
    for level, group in groups:
        for method, seeds in values(material, group, metric).items():
            found[method].append((level, seeds))
    return {m: rows for m, rows in found.items() if rows}


def _binned(axis: Axis, runs: Sequence[Run]) -> list[tuple[Value, list[Run]]]:
    """Runs in bins of equal number along an axis without levels, each at the median of its bin."""
    placed = [(float(v), r) for r in runs if isinstance(v := r.at.get(axis.name), int | float)]
    if not placed:
        return []
    x = np.array([v for v, _ in placed])
    edges = np.quantile(x, np.linspace(0, 1, BINS + 1)[1:-1])
    place = np.searchsorted(edges, x, side="right")
    groups = [(place == i).nonzero()[0] for i in range(BINS)]
    return [(float(np.median(x[g])), [placed[i][1] for i in g]) for g in groups if len(g)]


def paired(first: Mapping[Seed, float], second: Mapping[Seed, float]) -> list[float]:
    """Differences of the seeds that both have."""
    return [first[s] - second[s] for s in first if s in second]


def per_seed(parts: Iterable[Mapping[Seed, float]]) -> BySeed:
    """The mean over several settings, of the seeds that all of them have."""
    tables = list(parts)
    common = [s for s in tables[0] if all(s in t for t in tables)] if tables else []
    return {s: float(np.mean([t[s] for t in tables])) for s in common}
