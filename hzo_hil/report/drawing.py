"""The kinds of figure: lines with bands, heat maps, points against a cost, points against a diagonal.

Each takes numbers and words and knows nothing of studies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.report.style import FAINT, FOREGROUND, MAP_COLOURS, label, legend, look, new_figure, positions

MANY_POINTS = 30
HIGH = 0.7  # fractions all above it do not need the axis from 0
FAR_APART = 30.0  # largest over smallest: above, a logarithmic axis


@dataclass(frozen=True)
class Line:
    """Points of one series; `low`, `high` are its band, None where it has none."""

    name: str
    index: int
    """Which colour, marker and line: the same number means the same method in every figure."""
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


def lines(series: Sequence[Line], levels: Sequence[Any] | None, x_title: str, y_title: str, *, fraction: bool) -> Any:
    """Lines with bands. `levels` are the marks of an axis of named or uneven levels; None for plain numbers."""
    figure, axes = new_figure()
    place, names = positions(levels) if levels is not None else ([], None)
    at = dict(zip(levels or (), place, strict=True))
    for s in series:
        x = [at[v] for v in s.x] if levels is not None else list(s.x)
        style = look(s.index)
        if len(x) > MANY_POINTS:
            style["marker"] = ""
        axes.plot(x, s.y, label=label(s.name), clip_on=False, zorder=3, **style)
        _band(axes, x, s, style["color"])
    if levels is not None:
        axes.set_xticks(place, names if names is not None else [f"{v:g}" for v in place])
    elif _far_apart([v for s in series for v in s.x]):
        axes.set_xscale("log")
        _log_numbers(axes.xaxis)
    else:
        axes.set_xlim(left=0)
        _short_numbers(axes.xaxis)
    _titles(axes, x_title, y_title, fraction)
    legend(figure, axes)
    return figure


def _short_numbers(axis: Any) -> None:
    """At most seven marks, thousands and millions by letter."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    if axis.get_view_interval()[1] >= 2000:
        axis.set_major_formatter(EngFormatter(sep=""))


def _band(axes: Any, x: Sequence[float], s: Line, colour: str) -> None:
    banded = [(a, lo, hi) for a, lo, hi in zip(x, s.low, s.high, strict=True) if lo is not None and hi is not None]
    if len(banded) > 1:
        places, low, high = zip(*banded, strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0)
    elif banded:
        place, low1, high1 = banded[0]
        axes.plot([place, place], [low1, high1], color=colour, linewidth=1.0)


def _log_numbers(axis: Any) -> None:
    """Powers of ten as 0.01, 100, 10k; no marks between them carry a number."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

    large = EngFormatter(sep="")
    axis.set_major_formatter(FuncFormatter(lambda v, _: large(v) if v >= 1000 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _far_apart(values: Sequence[float]) -> bool:
    positive = [v for v in values if v > 0]
    return len(positive) == len(values) > 0 and max(positive) > FAR_APART * min(positive)


def _titles(axes: Any, x_title: str, y_title: str, fraction: bool) -> None:
    axes.set_xlabel(label(x_title))
    axes.set_ylabel(label(y_title))
    if fraction:
        from matplotlib.ticker import FuncFormatter

        shown = [line.get_ydata() for line in axes.lines]
        least = min(float(np.min(y)) for y in shown) if shown else 0.0
        axes.set_ylim(0 if least < HIGH else math.floor(10 * least - 0.5) / 10, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f}"))


def heat_map(
    table: NDArray[np.float64], x_levels: Sequence[str], y_levels: Sequence[str], x_title: str, y_title: str,
    value_title: str, span: tuple[float, float], scale: float,
) -> Any:  # fmt: skip
    """`table` `[y, x]`, NaN where nothing was run; every cell carries its number. `span` is that of the colours."""
    import matplotlib as mpl

    figure, axes = new_figure()
    axes.grid(False)
    colours = mpl.colormaps[MAP_COLOURS].with_extremes(bad=(0, 0, 0, 0))
    low, high = (scale * v for v in span)
    high = high if high > low else low + 1e-9
    shown = np.ma.masked_invalid(scale * table)
    digits = "1f" if scale != 1 else "3g"
    mesh = axes.pcolormesh(shown, cmap=colours, vmin=low, vmax=high, edgecolors="face", linewidth=0.3)
    for (row, column), value in np.ndenumerate(scale * table):
        ink = FOREGROUND
        if math.isfinite(value):
            red, green, blue, _ = colours((value - low) / (high - low))
            ink = "#010101" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#FFFFFF"
        text = f"{value:.{digits}}" if math.isfinite(value) else "–"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(np.arange(len(x_levels)) + 0.5, [label(v) for v in x_levels])
    axes.set_yticks(np.arange(len(y_levels)) + 0.5, [label(v) for v in y_levels])
    axes.tick_params(length=0)
    axes.set_xlabel(label(x_title))
    axes.set_ylabel(label(y_title))
    figure.colorbar(mesh, ax=axes, label=label(value_title)).outline.set_visible(False)
    return figure


@dataclass(frozen=True)
class Point:
    name: str
    index: int
    x: float
    x_span: tuple[float | None, float | None]
    y: float
    y_span: tuple[float | None, float | None]


def front(points: Sequence[Point], best: Sequence[Point], x_title: str, y_title: str, *, fraction: bool) -> Any:
    """Outcome against cost; the stepped line joins `best`, those that nothing cheaper equals, cheapest first."""
    figure, axes = new_figure()
    _cost_scale(axes, [p.x for p in points])
    if len(best) > 1:
        axes.step([p.x for p in best], [p.y for p in best], where="post", color=FOREGROUND, linewidth=1, alpha=0.5)
    for p in points:
        style = look(p.index)
        bars = {"fmt": "none", "ecolor": style["color"], "elinewidth": 1.1}
        axes.errorbar(p.x, p.y, xerr=_arms(p.x, p.x_span), yerr=_arms(p.y, p.y_span), **bars)
        style["linestyle"] = ""
        axes.plot(p.x, p.y, label=label(p.name), markersize=7, zorder=3, clip_on=False, **style)
    _titles(axes, x_title, y_title, fraction)
    legend(figure, axes)
    return figure


def _cost_scale(axes: Any, costs: Sequence[float]) -> None:
    positive = [c for c in costs if c > 0]
    if not positive or max(positive) <= FAR_APART * min(positive):
        axes.set_xlim(left=0, right=1.12 * max(positive, default=1.0))
        _short_numbers(axes.xaxis)
    elif len(positive) < len(costs):  # some cost nothing, which a logarithm does not know
        axes.set_xscale("symlog", linthresh=10 ** math.floor(math.log10(min(positive))))
        _log_numbers(axes.xaxis)
    else:
        axes.set_xscale("log")
        _log_numbers(axes.xaxis)


def _arms(middle: float, span: tuple[float | None, float | None]) -> list[list[float]] | None:
    low, high = span
    return None if low is None or high is None else [[max(middle - low, 0.0)], [max(high - middle, 0.0)]]


def diagonal(series: Mapping[tuple[str, int], Sequence[tuple[float, float]]], x_title: str, y_title: str) -> Any:
    """Points of several series on logarithmic axes with the line where both are equal."""
    figure, axes = new_figure()
    every = [v for points in series.values() for pair in points for v in pair]
    low, high = min(every) / 1.3, max(every) * 1.3
    axes.plot([low, high], [low, high], color=FOREGROUND, linewidth=1, linestyle=(0, (4, 3)), label="equal")
    for (name, index), points in series.items():
        style = look(index)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, style["marker"], color=style["color"], label=label(name), alpha=0.75, markeredgewidth=0)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    _plain_ticks(axes, low, high)
    axes.grid(True, which="major", color=FAINT)
    axes.set_xlabel(label(x_title))
    axes.set_ylabel(label(y_title))
    legend(figure, axes)
    return figure


def _plain_ticks(axes: Any, low: float, high: float) -> None:
    """1, 2, 5 of each decade, written as numbers: less than a decade would show one mark or none."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
