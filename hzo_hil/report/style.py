"""How figures look: one palette, one size, colours that a page can swap for its dark theme.

matplotlib is loaded here. Text of figures is taken literally: names come from configurations, and a dollar sign in one
is no formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Okabe and Ito's colours without the yellow, which white paper swallows; markers and lines differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1)), (0, (7, 2, 1, 2, 1, 2)))
FOREGROUND, FAINT = "#1A1B1C", "#D8D9DA"  # told apart from all else in the SVG, where the page sets them
SIZE = (4.8, 3.5)  # inches: text of 10 points stays readable where a phone shows it 340 pixels wide
MAP_COLOURS = "cividis"
LONGEST_LABEL = 44


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of the series with this number; the first thirty differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


def label(text: str) -> str:
    """A name as a label: printable, short, and not hidden from the legend by its first letter."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    clean = clean if len(clean) <= LONGEST_LABEL else f"{clean[: LONGEST_LABEL - 1]}…"
    return f"\u200a{clean}" if clean.startswith("_") else clean


@contextmanager
def styled(name: str) -> Iterator[None]:
    """matplotlib's settings while figures are made and saved; `name` keeps the identifiers of several SVGs apart."""
    import warnings

    import matplotlib as mpl

    settings: Any = {
        "font.family": ["DejaVu Sans"], "font.size": 10, "axes.labelsize": 10, "legend.fontsize": 9,
        "text.parse_math": False, "text.color": FOREGROUND, "axes.labelcolor": FOREGROUND,
        "axes.edgecolor": FOREGROUND, "xtick.color": FOREGROUND, "ytick.color": FOREGROUND,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT,
        "grid.linewidth": 0.7, "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.markersize": 5,
        "legend.frameon": False, "legend.handlelength": 2.6, "svg.fonttype": "none", "svg.hashsalt": name,
        "pdf.fonttype": 42, "axes.formatter.useoffset": False, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure() -> tuple[Any, Any]:
    """A figure of the common size and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def legend(figure: Any, axes: Any) -> None:
    """Below the axes, where it hides nothing; none for a single unnamed series."""
    handles, names = axes.get_legend_handles_labels()
    if not handles or names == [""]:
        return
    columns = max(1, min(3, len(names), 62 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, columnspacing=1.4)


def positions(levels: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Where levels lie on an axis: at their numbers, or one after the other, then with names.

    Numbers whose steps differ by more than a factor of 4, and what is no number, stand at even distances.
    """
    from hzo_hil.report.model import is_number, show

    if all(is_number(v) for v in levels):
        x = [float(v) for v in levels]
        steps = [abs(b - a) for a, b in zip(x, x[1:], strict=False)]
        if not steps or max(steps) <= 4 * min(steps):
            return x, None
    return [float(i) for i in range(len(levels))], [label(show(v)) for v in levels]
