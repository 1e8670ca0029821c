"""What only a single run tells: the ways of training it was compared with, and what its queries were for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hzo_hil.report.model import Material, is_number
from hzo_hil.report.sections import Section, Table, cells
from hzo_hil.runfiles import RunFolderError, read_json
from hzo_hil.tables import LABELS


def single_sections(material: Material) -> list[Section]:
    """Of the only run of `material`, from its summary."""
    folder = material.runs[0].folder
    summary = _summary(folder) if folder is not None else {}
    return [_ways(material, summary), _ledger(summary)]


def _summary(folder: Path) -> dict[str, Any]:
    try:
        content = read_json(folder / "summary.json")
    except RunFolderError:
        return {}
    return content if isinstance(content, dict) else {}


def _ways(material: Material, summary: Mapping[str, Any]) -> Section:
    section = Section("Ways of training")
    rows = []
    for name, row in _parts(summary.get("rows")).items():
        score = row.get("score")
        rows.append(
            cells(
                LABELS.get(name, name), material.outcomes[0].shown(score if is_number(score) else None),
                _number(row.get("queries"), 0), _number(row.get("device_seconds"), 2),
                _number(row.get("wall_seconds"), 1),
            )
        )  # fmt: skip
    if rows:
        head = ["", material.outcomes[0].label, "queries", "device time (s)", "wall time (s)"]
        section.tables.append(Table("The same network, data and device; one run of each.", head, rows))
    return section


def _ledger(summary: Mapping[str, Any]) -> Section:
    section = Section("What the queries were for")
    ledger = summary.get("ledger")
    purposes = _parts(ledger.get("purposes") if isinstance(ledger, Mapping) else None)
    names = ("queries", "stage_evaluations", "calls", "writes", "device_seconds")
    rows = [
        cells(purpose, *(_number(row.get(n), 3 if n == "device_seconds" else 0) for n in names))
        for purpose, row in purposes.items()
        if any(row.get(n) for n in names)
    ]
    if rows:
        head = ["purpose", "queries", "stage evaluations", "calls", "writes", "device time (s)"]
        section.tables.append(Table("The ledger of the run in the loop.", head, rows))
    return section


def _parts(value: Any) -> dict[str, Mapping[str, Any]]:
    return {str(k): v for k, v in value.items() if isinstance(v, Mapping)} if isinstance(value, Mapping) else {}


def _number(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if is_number(value) else "-"
