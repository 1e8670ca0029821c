"""A study folder, read for a report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hzo_hil.devices.errors import BadInput
from hzo_hil.records import RunFolder
from hzo_hil.report.model import Axis, Material, Metric, Role, Run, Settings, Value
from hzo_hil.report.runs import devices_of, environment_rows, score_of
from hzo_hil.runfiles import RunFolderError, read_json
from hzo_hil.study.table import load_study

SNAPSHOTS = 8  # runs whose device.json is read: a study of one chip would show the same one each time
RUN_HASH_SHOWN = 12


def is_study(path: Path) -> bool:
    return (path / "study.json").is_file()


def read_study(path: Path) -> Material:
    """Every planned run of a study with its place, numbers and error. Raises BadInput where no run is done."""
    frame = load_study(path)
    about = frame.attrs["study"]
    axes = [_axis(a) for a in about["axes"]]
    metrics = [_metric(m) for m in about["metrics"]]
    runs = [_run(path, row, axes, metrics) for row in frame.to_dict("records")]
    if not any(r.status == "done" for r in runs):
        failed = [r for r in runs if r.status == "failed"]
        why = f"; the first of {len(failed)} that failed said: {failed[0].error}" if failed else ""
        raise BadInput(
            f"study {path} has no run that is done ({len(runs)} planned){why}. Run it: hzo-hil study ... --resume"
        )
    metrics = _named(metrics, runs)
    notes = [f"{r.name}: {r.error}" for r in runs if r.status == "missing" and r.error]
    notes += _set_aside(path)
    return Material(
        "study", str(about.get("name") or path.resolve().name), axes, metrics, runs, _settings(path, about),
        _devices(runs, notes), notes,
    )  # fmt: skip


def _axis(entry: Mapping[str, Any]) -> Axis:
    values = entry.get("values")
    return Axis(
        str(entry["name"]), str(entry.get("label") or entry["name"]), str(entry.get("unit") or ""),
        cast(Role, entry.get("role") or "setting"), None if values is None else tuple(_plain(v) for v in values),
        {str(k): str(v) for k, v in (entry.get("tiers") or {}).items()}, str(entry.get("note") or ""),
    )  # fmt: skip


def _metric(entry: Mapping[str, Any]) -> Metric:
    better = entry.get("better")
    return Metric(
        str(entry["name"]), str(entry.get("label") or entry["name"]), str(entry.get("unit") or ""),
        better if better in ("higher", "lower") else None,
    )  # fmt: skip


def _named(metrics: list[Metric], runs: list[Run]) -> list[Metric]:
    """The score by the name and unit that the first run's own configuration gives it."""
    folder = next((r.folder for r in runs if r.status == "done" and r.folder is not None), None)
    if folder is None or not any(m.name == "score" and not m.unit for m in metrics):
        return metrics
    try:
        score = score_of(RunFolder.open(folder).config)
    except RunFolderError:
        return metrics
    return [score if m.name == "score" else m for m in metrics]


def _run(path: Path, row: Mapping[Any, Any], axes: list[Axis], metrics: list[Metric]) -> Run:
    name = str(row["run"])
    home = path / "runs" / name
    folder = home / "run"
    at = {a.name: _level(a, row.get(a.name)) for a in axes}
    found = {m.name: float(v) for m in metrics if isinstance(v := _plain(row.get(m.name)), int | float)}
    status: Any = row["status"] if row["status"] in ("done", "failed") else "missing"
    error = _plain(row.get("error"))
    return Run(
        name[:RUN_HASH_SHOWN], status, at, found, "" if error is None else str(error),
        folder if folder.is_dir() else None, home if home.is_dir() else None,
    )  # fmt: skip


def _level(axis: Axis, value: Any) -> Value:
    """As the study file has it: a table turns 4 into 4.0 and None into NaN."""
    plain = _plain(value)
    return next((v for v in axis.levels or () if v == plain and isinstance(v, bool) == isinstance(plain, bool)), plain)


def _plain(value: Any) -> Value:
    """Numbers of numpy and pandas as Python's, NaN and NA as None, anything with parts as text."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, str | float | int):
        return value
    return None if type(value).__name__ in ("NAType", "NaTType") else json.dumps(value, default=str)


def _set_aside(path: Path) -> list[str]:
    aside = path / "aside"
    names = sorted(p.name for p in aside.iterdir()) if aside.is_dir() else []
    return [f"set aside as corrupt or half-written, in {aside.name}/: {', '.join(names)}"] if names else []


def _settings(path: Path, about: Mapping[str, Any]) -> Settings:
    file = path / "study.yaml"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    environment = about.get("environment")
    environment = environment if isinstance(environment, Mapping) else {}
    rows = [("study", str(about.get("name") or "")), ("hash of the study", str(about.get("hash") or ""))]
    for entry in about["axes"]:
        if entry.get("role") == "seed":
            rows.append(("seeds", ", ".join(str(v) for v in entry.get("values") or ["drawn"])))
    rows += environment_rows(environment, str(about.get("version") or "?"))
    command = environment.get("command")
    if command:
        rows.append(("command", " ".join(map(str, command))))
    return Settings([r for r in rows if r[1]], text)


def _devices(runs: list[Run], notes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for run in [r for r in runs if r.status == "done" and r.folder is not None][:SNAPSHOTS]:
        assert run.folder is not None
        if not (run.folder / "device.json").is_file():
            continue
        try:
            content = read_json(run.folder / "device.json")
        except RunFolderError as error:
            notes.append(str(error))
            continue
        if isinstance(content, Mapping):
            found.update(devices_of(content))
    return found
