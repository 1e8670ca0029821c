"""Run folders, read for a report. A damaged file is a note, not the end.

Several folders are a comparison: runs that differ in their seed alone are repetitions of one method.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from hzo_hil.compare import differences, what_hash
from hzo_hil.devices.errors import BadInput
from hzo_hil.metricsfile import read_metrics
from hzo_hil.records import RunFolder, RunFolderError
from hzo_hil.report.model import Axis, Material, Metric, Run, Settings, Value
from hzo_hil.runfiles import read_json
from hzo_hil.study.training import METRICS, numbers_of

HASH = 64  # letters in the name of a run of a study
ASIDE = ("where", "seed", "name")  # what does not make a run another method
LONGEST_NAME = 48
T = TypeVar("T")

COSTS = (
    "queries", "stage_evaluations", "device_seconds", "wall_seconds", "gradient_noise_predicted",
    "gradient_error_measured",
)  # fmt: skip
"""What a report on runs shows beside the score, of the numbers of a study."""


def is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def read_runs(paths: Sequence[Path]) -> Material:
    """A run, or a comparison of several. Raises BadInput where a folder is no run or none can be read."""
    notes: list[str] = []
    read = [found for path in paths if (found := _read(path, notes)) is not None]
    if not read:
        raise BadInput(f"nothing to report on: {'; '.join(notes)}")
    names = _names(read)
    seeds = list(dict.fromkeys(r.config.get("seed") for r in read))
    axes = [
        Axis("method", "method", "", "method", tuple(dict.fromkeys(names))),
        Axis("seed", "seed", "", "seed", tuple(seeds)),
    ]
    runs = [r.as_run({"method": n, "seed": r.config.get("seed")}) for r, n in zip(read, names, strict=True)]
    kind: Literal["run", "comparison"] = "run" if len(read) == 1 else "comparison"
    return Material(
        kind, read[0].path.resolve().name if kind == "run" else "comparison", axes, _metrics(read), runs,
        _settings(read), _devices(read), notes,
    )  # fmt: skip


class _Read:
    """What one folder holds."""

    def __init__(self, path: Path, notes: list[str]) -> None:
        folder = RunFolder.open(path)
        self.path = path
        self.about = folder.about
        self.status = folder.status
        self.config = folder.config
        self.summary: dict[str, Any] = _tried(
            notes, {}, lambda: _table(read_json(path / "summary.json")), path / "summary.json"
        )
        self.environment: dict[str, Any] = _tried(notes, {}, lambda: _table(read_json(path / "environment.json")))
        self.device: dict[str, Any] = _tried(
            notes, {}, lambda: _table(read_json(path / "device.json")), path / "device.json"
        )

    def as_run(self, at: Mapping[str, Value]) -> Run:
        metrics = {k: float(v) for k, v in numbers_of(self.summary).items()}
        error = "" if metrics else f"the run is marked {self.status} and has no summary"
        return Run(self.path.resolve().name, "done" if metrics else "failed", at, metrics, error, self.path, self.path)


def _read(path: Path, notes: list[str]) -> _Read | None:
    try:
        return _Read(path, notes)
    except RunFolderError as error:
        notes.append(str(error))
        return None


def _tried(notes: list[str], otherwise: T, read: Callable[[], T], expected: Path | None = None) -> T:
    """A file that is not there yet is no fault; a damaged one is noted."""
    if expected is not None and not expected.exists():
        return otherwise
    try:
        return read()
    except RunFolderError as error:
        notes.append(str(error))
        return otherwise


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RunFolderError(f"a file of the run holds no fields but {json.dumps(value)[:60]}")
    return value


def metric_rows(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; damaged lines are noted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows: list[dict[str, Any]] = _tried(notes, [], lambda: read_metrics(folder / "metrics.jsonl"))
    notes.extend(str(w.message) for w in caught)
    return rows


def _metrics(read: Sequence[_Read]) -> list[Metric]:
    scores = {score_of(r.config) for r in read}
    if len(scores) > 1:
        names = ", ".join(sorted(s.label for s in scores))
        raise BadInput(f"these runs cannot be compared: their scores differ ({names}). Report on each of them alone")
    costs = [(name, METRICS[name]) for name in COSTS]
    return [scores.pop(), *(Metric(n, m["label"], m.get("unit", ""), m["better"]) for n, m in costs)]


def score_of(config: Mapping[str, Any]) -> Metric:
    """What a run's configuration calls its score."""
    train = config.get("train")
    train = train if isinstance(train, Mapping) else {}
    name = str(train.get("metric") or "score")
    lower = (train.get("best") or ("lowest" if name == "mse" else "highest")) == "lowest"
    return Metric("score", f"test {name}", "fraction" if name == "accuracy" else "", "lower" if lower else "higher")


def _names(read: Sequence[_Read]) -> list[str]:
    """Of every run the name of its method: what its configuration has and others have not, else its folder's name."""
    flats = [_flat({k: v for k, v in r.config.items() if k not in ASIDE}) for r in read]
    fields = [f for f in dict.fromkeys(k for t in flats for k in t) if len({t.get(f, "absent") for t in flats}) > 1]
    short = _short(fields)
    names = [", ".join(f"{short[f]} {t[f]}" for f in fields if f in t) for t in flats]
    if any(len(n) > LONGEST_NAME for n in names):
        names = [str(r.config.get("name") or r.path.name) for r in read]
        hashes = [what_hash(t) for t in flats]
        if len(set(zip(names, hashes, strict=True))) > len(set(names)):  # one name for two methods
            names = _folders(read)
    elif not fields:
        names = [str(r.config.get("name") or r.path.resolve().name) for r in read]
        names = names if len(set(names)) == 1 else [names[0]] * len(names)
    return _distinct(names, [r.config.get("seed") for r in read], read)


def _distinct(names: list[str], seeds: list[Any], read: Sequence[_Read]) -> list[str]:
    """The same run twice, or two of one method with one seed, are told apart by their folders."""
    count = Counter(zip(names, map(str, seeds), strict=True))
    return [f"{n} ({f})" if count[n, str(s)] > 1 else n for n, s, f in zip(names, seeds, _folders(read), strict=True)]


def _folders(read: Sequence[_Read]) -> list[str]:
    """The last part of each folder's path, more where two would be alike; of a hash its beginning."""
    paths = [[p[:12] if len(p) == HASH else p for p in r.path.resolve().parts] for r in read]
    for length in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(p[-length:]) for p in paths]
        if len(set(ends)) == len({r.path.resolve() for r in read}):
            break
    return ends


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Fields by dotted name, values as short text."""
    if isinstance(value, Mapping):
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value if isinstance(value, str) else json.dumps(value, default=str)}


def _short(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each name, more where two would be alike."""
    ends = Counter(f.rpartition(".")[2] for f in fields)
    return {f: f.rpartition(".")[2] if ends[f.rpartition(".")[2]] == 1 else f for f in fields}


def _settings(read: Sequence[_Read]) -> Settings:
    import yaml

    first = read[0]
    names = _folders(read)
    commands = [" ".join(map(str, r.environment.get("command", []))) for r in read]
    rows = [(f"{n}: command", c) for n, c in zip(names, commands, strict=True)]
    facts = environment_rows(first.environment, str(first.about.get("hzo_hil", "?")))
    seeds = ", ".join(str(r.config.get("seed")) for r in read)
    rows = [("seeds" if len(read) > 1 else "seed", seeds), *facts, *(r for r in rows if r[1])]
    text = yaml.safe_dump(first.config, sort_keys=False, allow_unicode=True)
    differ = {n: differences(first.config, r.config, ["where"]) for n, r in zip(names[1:], read[1:], strict=True)}
    return Settings(rows, text, differ)


def environment_rows(environment: Mapping[str, Any], version: str) -> list[tuple[str, str]]:
    """What is known of machine and software, in words."""
    rows = [("hzo-hil", version)]
    git = environment.get("git")
    if isinstance(git, Mapping):
        known = {"True": ", with uncommitted changes", "False": ""}
        changed = known.get(str(git.get("changed")), ", changes not known")
        rows.append(("commit of the working folder", f"{git.get('commit')}{changed}"))
    for name in ("python", "platform", "processor", "cpus", "threads"):
        if environment.get(name) is not None:
            rows.append((name, str(environment[name])))
    packages = environment.get("packages")
    if isinstance(packages, Mapping):
        rows.append(("packages", ", ".join(f"{k} {v}" for k, v in packages.items())))
    return rows


def _devices(read: Sequence[_Read]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for r in read:
        found.update(devices_of(r.device))
    return found


def devices_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Snapshots of a device.json by identity."""
    identity, snapshot = content.get("identity"), content.get("snapshot")
    if not isinstance(identity, Mapping) or not isinstance(snapshot, Mapping):
        return {}
    return {str(identity.get(name, name)): part for name, part in snapshot.items()}
