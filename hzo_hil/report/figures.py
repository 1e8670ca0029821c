"""A figure with all that belongs to it: its caption, its numbers, and the files it is saved as."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hzo_hil.report.style import COLOURS, FAINT, FOREGROUND, styled

DPI = 220
# No date, no version of the library: the same runs give the same files.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Figure:
    """`drawing` is a matplotlib figure, made within `styled(name)`. `rows` are what is drawn, as numbers."""

    name: str
    title: str
    caption: str
    drawing: Any
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Saved:
    """A figure on the disk and as SVG for a page. Paths are relative to the page."""

    name: str
    title: str
    caption: str
    svg: str
    files: Mapping[str, str]


def save(figure: Figure, folder: Path, base: Path) -> Saved:
    """Write PDF, PNG and CSV into `folder`; the SVG is for the page."""
    files = {}
    with styled(figure.name):
        for kind in ("pdf", "png"):
            path = folder / f"{figure.name}.{kind}"
            figure.drawing.savefig(path, format=kind, dpi=DPI, metadata=METADATA[kind])
            files[kind.upper()] = path.relative_to(base).as_posix()
        buffer = io.StringIO()
        figure.drawing.savefig(buffer, format="svg", transparent=True, metadata=METADATA["svg"])
    path = folder / f"{figure.name}.csv"
    write_csv(path, figure.rows)
    files["CSV"] = path.relative_to(base).as_posix()
    return Saved(figure.name, figure.title, figure.caption, inline(buffer.getvalue()), files)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the columns of all of them, in the order met. UTF-8; empty where a row has no such number."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def inline(svg: str) -> str:
    """An SVG to stand inside a page: no prologue, only ids that something points to, colours set by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"([^>]*)>', r'<svg role="img" \1\2>', svg, count=1)
    svg = re.sub(r'<svg ([^>]*?) height="[^"]*"([^>]*)>', r"<svg \1\2>", svg, count=1)
    for colour, name in _names().items():
        svg = re.sub(re.escape(colour), f"var(--{name})", svg, flags=re.IGNORECASE)
    return svg


def _names() -> dict[str, str]:
    return {FOREGROUND: "ink", FAINT: "faint", **{c: f"series-{i}" for i, c in enumerate(COLOURS)}}
