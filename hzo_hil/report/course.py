"""What happened on the way: cost against outcome, learning curves, gradient cosine and gradient error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hzo_hil.report.drawing import Line, Point, diagonal, front, lines
from hzo_hil.report.figures import Figure
from hzo_hil.report.findings import prediction_pairs
from hzo_hil.report.intervals import mean_interval
from hzo_hil.report.model import Material, Metric, Run, first_upper, is_number, sentence
from hzo_hil.report.outcomes import bounded, file_name, groups, shown_name
from hzo_hil.report.runs import metric_rows
from hzo_hil.report.sections import Section
from hzo_hil.report.slices import at_rest, values
from hzo_hil.report.style import styled

FRONT_COSTS = ("queries", "stage_evaluations", "device_seconds")
CURVE_COSTS = (
    ("epoch", "training (epochs)"),
    ("queries", "device queries (count)"),
    ("stage_evaluations", "stage evaluations (count)"),
    ("device_seconds", "device time (s)"),
)
AGAINST = {
    "epoch": "epochs", "queries": "queries", "stage_evaluations": "stage evaluations", "device_seconds": "device time",
    "step": "steps",
}  # fmt: skip
MOST_RUNS = 400  # whose metrics are read for one report
MOST_LAYERS = 4

Rows = list[dict[str, Any]]


def fronts(material: Material) -> Section:
    """Outcome against each cost at the least noise, one point a method."""
    section = Section("Cost against outcome")
    metric, rest = material.outcomes[0], at_rest(material)
    for name in FRONT_COSTS:
        cost = material.metric(name)
        if cost is None or len(material.methods) < 2:
            continue
        for tier, methods in groups(material):
            figure = _front(material, metric, cost, rest.runs, rest.held, tier, methods)
            if figure is not None:
                section.figures.append(figure)
    return section


def _front(
    material: Material, metric: Metric, cost: Metric, runs: Sequence[Run], held: str, tier: str, methods: list[str]
) -> Figure | None:
    reached, spent = values(material, runs, metric), values(material, runs, cost)
    points, rows = [], []
    for method in methods:
        if method not in reached or method not in spent:
            continue
        y, x = mean_interval(list(reached[method].values())), mean_interval(list(spent[method].values()))
        points.append(
            Point(
                shown_name(material, method), material.methods.index(method), x.middle, (x.low, x.high), y.middle,
                bounded(metric, y),
            )
        )  # fmt: skip
        rows.append(
            {
                "method": method, cost.name: x.middle, metric.name: y.middle, "low": bounded(metric, y)[0],
                "high": bounded(metric, y)[1], "seeds": y.count,
            }
        )  # fmt: skip
    if len(points) < 2:
        return None
    name = file_name("front", cost.name, tier)
    best = not_dominated(points, metric.sign)
    with styled(name):
        title = f"{cost.label} ({cost.unit})" if cost.unit else f"{cost.label} (count)"
        drawing = front(points, best, title, metric.title, fraction=metric.is_fraction)
    caption = (
        "One point a method, mean over seeds; bars: 95 % t-interval. The stepped line joins those that nothing cheaper"
        f" equals.{sentence(held)}"
    )
    of = f", {tier}" if tier else ""
    return Figure(name, f"{first_upper(metric.label)} against {cost.label}{of}", caption, drawing, rows)


def not_dominated(points: Sequence[Point], sign: int) -> list[Point]:
    """Cheapest first, those better than everything cheaper."""
    found: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, -sign * p.y)):
        if not found or sign * (p.y - found[-1].y) > 0:
            found.append(p)
    return found


class Courses:
    """metrics.jsonl of the runs at rest, read once, by method."""

    def __init__(self, material: Material) -> None:
        self.material = material
        rest = at_rest(material)
        self.held = rest.held
        self.rows: dict[str, list[Rows]] = defaultdict(list)
        for run in [r for r in rest.runs if r.folder is not None][:MOST_RUNS]:
            assert run.folder is not None
            rows = metric_rows(run.folder, material.notes)
            if rows:
                self.rows[material.method(run)].append(rows)

    def series(self, methods: Sequence[str], pick: Callable[[Rows], Rows], x: str, y: str) -> list[Line]:
        """Median and range over seeds of `y`, at the median of `x`, row by row of what `pick` keeps."""
        found = []
        for method in methods:
            runs = [
                [(float(r[x]), float(r[y])) for r in pick(rows) if is_number(r.get(x)) and is_number(r.get(y))]
                for rows in self.rows.get(method, [])
            ]
            line = _median_line([r for r in runs if r])
            if line is not None:
                index = self.material.methods.index(method)
                found.append(Line(shown_name(self.material, method), index, *line))
        return found


def _median_line(runs: Sequence[Sequence[tuple[float, float]]]) -> tuple[Any, ...] | None:
    """Where at least half of the runs still have a row."""
    if not runs:
        return None
    length = sorted(map(len, runs))[len(runs) // 2]
    columns = [[r[i] for r in runs if i < len(r)] for i in range(length)]
    x = [float(np.median([p[0] for p in c])) for c in columns]
    y = [[p[1] for p in c] for c in columns]
    banded = len(runs) > 1
    return (
        x, [float(np.median(v)) for v in y], [min(v) if banded else None for v in y],
        [max(v) if banded else None for v in y],
    )  # fmt: skip


def _epochs(rows: Rows) -> Rows:
    """The rows that end an epoch: those with something of the test set."""
    return [r for r in rows if any(k.startswith("test_") for k in r)]


def curves(material: Material, courses: Courses) -> Section:
    """Score on the test set, and training loss, through training."""
    section = Section("Learning curves")
    metric = material.outcomes[0]
    field = _score_field(courses)
    for x, title in CURVE_COSTS:
        for tier, methods in groups(material):
            if field:
                line = courses.series(methods, _epochs, x, field)
                _add(section, courses, line, (x, title), metric.title, first_upper(metric.label), tier,
                     metric.is_fraction)  # fmt: skip
    for tier, methods in groups(material):
        line = courses.series(methods, _epochs, "epoch", "loss")
        _add(section, courses, line, CURVE_COSTS[0], "loss on the training data", "Loss", tier, False)
    return section


def _score_field(courses: Courses) -> str:
    rows = (r for runs in courses.rows.values() for rows in runs for r in _epochs(rows))
    row = next(rows, {})
    return next((k for k in row if k.startswith("test_") and k != "test_loss"), "test_loss" if row else "")


def cosines(material: Material, courses: Courses) -> Section:
    """Cosine of the gradient with the noise-free one, where runs recorded it."""
    section = Section("Gradient through training")
    names: dict[str, None] = {}
    for runs in courses.rows.values():
        names.update((k, None) for rows in runs for r in rows for k in r if k.startswith("cosine/"))
    for name in list(names)[:MOST_LAYERS]:
        layer = name.removeprefix("cosine/")
        for tier, methods in groups(material):
            line = courses.series(methods, lambda rows: rows, "step", name)
            _add(section, courses, line, ("step", "training (steps)"), "cosine with the noise-free gradient (1)",
                 f"Gradient of {layer}", tier, False, name)  # fmt: skip
    return section


def _add(
    section: Section, courses: Courses, series: Sequence[Line], against: tuple[str, str], y_title: str, title: str,
    tier: str, fraction: bool, kind: str = "",
) -> None:  # fmt: skip
    if not series or max(len(s.x) for s in series) < 2:
        return
    x, x_title = against
    name = file_name("curve", kind or ("loss" if title.startswith("Loss") else "score"), x, tier)
    with styled(name):
        drawing = lines(series, None, x_title, y_title, fraction=fraction)
    rows = [
        {"method": s.name, x: a, "median": b, "low": lo, "high": hi}
        for s in series
        for a, b, lo, hi in zip(s.x, s.y, s.low, s.high, strict=True)
    ]
    count = max(len(r) for r in courses.rows.values())
    of = f", {tier}" if tier else ""
    band = f"Median of {count} seeds; band: lowest to highest." if count > 1 else "One run."
    section.figures.append(
        Figure(name, f"{title} through training, by {AGAINST[x]}{of}", f"{band}{sentence(courses.held)}", drawing, rows)
    )


def predictions(material: Material) -> Section:
    """Noise of the gradient, predicted and measured."""
    section = Section("Predicted and measured gradient error")
    found = {m: p for m, p in prediction_pairs(material).items() if p}
    if not found:
        return section
    series = {(shown_name(material, m), material.methods.index(m)): points for m, points in found.items()}
    rows = [{"method": m, "predicted": p, "measured": q} for m, points in found.items() for p, q in points]
    with styled("gradient_noise"):
        drawing = diagonal(series, "predicted noise of the gradient (relative)", "measured (relative)")
    caption = (
        "Each point is a run: the noise of its gradient relative to the gradient, as predicted when it was last"
        " planned, and as measured at the end from two estimates of one minibatch. On the dashed line both are equal."
        " Runs at all levels of noise."
    )
    section.figures.append(Figure("gradient_noise", "Noise of the gradient", caption, drawing, rows))
    return section
