"""What was run: each run with its place and numbers, what failed, the device, and all that is needed to do it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

from hzo_hil.report.model import COSTS, Material, Run, show
from hzo_hil.report.sections import Cell, Section, Table, Text, cells

MOST_ROWS = 500
LONGEST_TEXT = 60_000
LONGEST_ERROR = 600
SHOWN_COSTS = ("queries", "stage_evaluations", "device_seconds", "wall_seconds")


def failures(material: Material) -> Section:
    """Runs that failed or are missing, with what they said."""
    section = Section("Failed and missing runs")
    lost = [r for r in material.runs if r.status != "done"]
    if not lost:
        return section
    rows = [cells(r.name, r.status, _place(material, r), _short(r.error) or "-") for r in lost[:MOST_ROWS]]
    rest = f" The first {MOST_ROWS} of {len(lost)}." if len(lost) > MOST_ROWS else ""
    caption = f"They count in no average. A study runs them again with --resume.{rest}"
    section.tables.append(Table(caption, ["run", "what became of it", "where", "error"], rows))
    return section


def left_out(material: Material) -> Section:
    """What could not be read."""
    section = Section("What could not be read")
    if material.notes:
        rows = [cells(_short(n)) for n in dict.fromkeys(material.notes)]
        section.tables.append(Table("Found while this report was made.", ["file and fault"], rows[:MOST_ROWS]))
    return section


def runs(material: Material, base: Path) -> Section:
    """Every run that is done, with a link to its folder."""
    section = Section("Runs")
    metrics = [*material.outcomes, *(m for n in SHOWN_COSTS if (m := material.metric(n)) is not None)]
    axes = [a for a in material.axes if len({r.at.get(a.name) for r in material.runs}) > 1]
    rows = []
    for r in material.done[:MOST_ROWS]:
        numbers = [
            m.shown(v) if m.name not in COSTS or v is None else f"{v:,.6g}"
            for m in metrics
            for v in [r.metrics.get(m.name)]
        ]
        places = [Cell(show(r.at.get(a.name))) for a in axes]
        rows.append([Cell(r.name, _link(r.home, base)), *places, *cells(*numbers)])
    rest = f" The first {MOST_ROWS} of {len(material.done)};" if len(material.done) > MOST_ROWS else " All"
    caption = f"Runs that are done.{rest} numbers are in runs.csv."
    head = ["run", *(a.title for a in axes), *(m.label for m in metrics)]
    section.tables.append(Table(caption, head, rows, folded=len(rows) > 12))
    return section


def run_rows(material: Material) -> list[dict[str, object]]:
    """Every run, for runs.csv."""
    return [{"run": r.name, "status": r.status, "error": r.error, **r.at, **r.metrics} for r in material.runs]


def device(material: Material) -> Section:
    """The snapshots of the devices that answered."""
    section = Section("Device")
    for identity, snapshot in material.devices.items():
        text = json.dumps(snapshot, indent=1, ensure_ascii=False, default=str)
        section.texts.append(Text(f"Snapshot of {identity}", _cut(text)))
    if material.kind == "study" and section.texts:
        section.words = "As written by the first runs; the settings of every other run are in its own device.json."
    return section


def reproduce(material: Material) -> Section:
    """Every setting needed to do it again."""
    section = Section("To do it again")
    settings = material.settings
    rows = [cells(name, value) for name, value in settings.rows]
    section.tables.append(Table("Software, machine, seeds and command.", ["", ""], rows))
    title = "The study file, as resolved" if material.kind == "study" else "The configuration, as resolved"
    section.texts.append(Text(title, _cut(settings.text)))
    for name, lines in settings.differences.items():
        section.texts.append(Text(f"What {name} has different", "\n".join(lines) or "nothing"))
    return section


def _place(material: Material, run: Run) -> str:
    return ", ".join(f"{a.label} {show(run.at.get(a.name))}" for a in material.axes)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}…"


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n… {len(text) - LONGEST_TEXT:,} more characters in the file"


def _link(home: Path | None, base: Path) -> str:
    """From the page to a run; none where no relative path leads there (another drive)."""
    if home is None:
        return ""
    try:
        relative = os.path.relpath(home.resolve(), base.resolve())
    except ValueError:
        return ""
    return quote(Path(relative).as_posix()) + "/"
