"""One picture of a run: its learning curves and, where it has them, the accuracies it is compared with.

It reads a run folder and knows nothing of how the run was made. matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.metricsfile import read_metrics
from hzo_hil.runfiles import explained, write_bytes

Row = Mapping[str, Any]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]

# Okabe and Ito's colours, which readers with any common colour blindness tell apart; line styles differ as well.
BLUE, ORANGE, GREEN, PURPLE, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
LOSSES = (("loss", "train", BLUE, "-"), ("test_loss", "test", VERMILION, "--"))
ACCURACIES = (("train_accuracy", "train", BLUE, "-"), ("test_accuracy", "test", VERMILION, "--"))
REFERENCES = (
    ("ideal", "ideal twin", GREEN, (0, (5, 1))),
    ("physics_aware", "physics-aware", PURPLE, (0, (3, 1, 1, 1))),
    ("deployed", "deployed", ORANGE, (0, (1, 1))),
)
SMOOTH_ABOVE = 150  # points
LOG_ABOVE = 20.0  # largest over smallest loss
LABEL_GAP = 0.07  # of the panel's height


def draw_curves(folder: str | Path) -> Path | None:
    """Draw `curves.png` of a run folder from its metrics and summary: loss and accuracy against epochs and queries.

    None where matplotlib is not installed or there is nothing to draw yet; the caller says so. Raises RunFolderError.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    folder = Path(folder)
    rows = read_metrics(folder)
    panels = _panels(rows)
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels) + 1.2, 3.9), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(folder.resolve().name, fontsize=10, color="0.35")
    references = _references(folder)
    for axes, (series, against) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        _draw(axes, rows, series, against, references, label=(series, against) == panels[-1])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path = folder / "curves.png"
    with explained(folder, f"write {path.name}"):
        write_bytes(path, buffer.getbuffer())
    return path


def _panels(rows: Sequence[Row]) -> list[tuple[tuple[Any, ...], str]]:
    """What to draw: (series, horizontal axis) of each panel that has points."""
    has_accuracy = any(_curve(rows, name, x) for name, *_ in ACCURACIES for x in ("epoch", "queries"))
    progress = "epoch" if any("epoch" in row for row in rows) else "step"
    wanted = [(LOSSES, progress)]
    wanted += [(ACCURACIES, progress), (ACCURACIES, "queries")] if has_accuracy else [(LOSSES, "queries")]
    return [(series, x) for series, x in wanted if any(_curve(rows, name, x) for name, *_ in series)]


def _curve(rows: Sequence[Row], name: str, against: str) -> Curve | None:
    points = [(row[against], row[name]) for row in rows if _number(row.get(against)) and _number(row.get(name))]
    if not points:
        return None
    x, y = np.array(points, dtype=np.float64).T
    return x, y


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _draw(
    axes: Any, rows: Sequence[Row], series: tuple[Any, ...], against: str, references: list[Any], label: bool
) -> None:
    for name, text, colour, style in series:
        curve = _curve(rows, name, against)
        if curve is not None:
            _draw_curve(axes, curve, text, colour, style)
    is_accuracy = series is ACCURACIES
    if is_accuracy:
        _accuracy_axis(axes)
        _draw_references(axes, references, label)
    else:
        _loss_axis(axes)
    _horizontal_axis(axes, against)
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right" if is_accuracy else "upper right")


def _draw_curve(axes: Any, curve: Curve, text: str, colour: str, style: Any) -> None:
    x, y = curve
    if len(x) <= SMOOTH_ABOVE:
        marker = "o" if len(x) <= 40 else ""
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.6, marker=marker, markersize=3, label=text)
        return
    width = len(x) // 50
    axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
    smooth = np.convolve(y, np.full(width, 1 / width), mode="valid")
    axes.plot(x[width - 1 :], smooth, color=colour, linestyle=style, linewidth=1.6, label=f"{text} (mean of {width})")


def _accuracy_axis(axes: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0.0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("accuracy (%)")


def _loss_axis(axes: Any) -> None:
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    if values.min() > 0 and values.max() > LOG_ABOVE * values.min():
        axes.set_yscale("log")
    elif values.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("loss")


def _horizontal_axis(axes: Any, against: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    if against == "queries":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(
        {"epoch": "training (epochs)", "queries": "device queries (count)", "step": "training (steps)"}[against]
    )


def _references(folder: Path) -> list[tuple[float, str, str, Any]]:
    """(accuracy, label, colour, line style) of what the summary compares the run with."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        accuracy = summary["accuracy"]
        return [(float(accuracy[k]), *rest) for k, *rest in REFERENCES if _number(accuracy.get(k))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # not finished yet, or a run without comparisons


def _draw_references(axes: Any, references: list[tuple[float, str, str, Any]], label: bool) -> None:
    heights = _spread([value for value, *_ in references])
    for (value, text, colour, style), height in zip(references, heights, strict=True):
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.3)
        if label:
            axes.annotate(
                f"{text}\n{100 * value:.1f} %",
                xy=(1.0, value),
                xytext=(1.04, height),
                xycoords=axes.get_yaxis_transform(),
                textcoords=axes.get_yaxis_transform(),
                color=colour,
                fontsize=8,
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
            )


def _spread(values: Sequence[float]) -> list[float]:
    """Heights for labels near their values, at least 1.5 gaps apart, in the order given."""
    heights = [0.0] * len(values)
    above = np.inf
    for index in sorted(range(len(values)), key=lambda i: -values[i]):
        heights[index] = min(values[index], above - 1.5 * LABEL_GAP)
        above = heights[index]
    return heights
