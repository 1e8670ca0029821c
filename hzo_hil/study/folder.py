"""The folder of a study: what it is, one folder a run, and what was set aside.

study.yaml       the study as resolved: it can be run again from here
study.json       axes, metrics, versions, environment, for whoever reads the table
plan.json        every run with its levels
runs/<hash>/     see runfolder.py
aside/           run folders that were damaged
results.parquet  the table
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hzo_hil import __version__
from hzo_hil.environment import environment
from hzo_hil.holding import LOCK, Hold
from hzo_hil.runfiles import RunFolderError, explained, plain, read_json, replace, write_bytes, write_json
from hzo_hil.study.planning import Study, described_axes, described_metrics, study_hash
from hzo_hil.study.runfolder import State, as_yaml, state_of
from hzo_hil.study.studyfile import plain_study

FORMAT = 1


@dataclass(frozen=True)
class Found:
    """What has become of a study's runs. `aside` has a line for each folder that was set aside."""

    states: dict[str, State]
    aside: list[str]

    def count(self, *states: State) -> int:
        return sum(state in states for state in self.states.values())


class StudyFolder:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def take(cls, path: Path, study: Study, resume: bool) -> StudyFolder:
        """Begin a study in `path`, or go on with the one in it. Raises RunFolderError where it holds something else."""
        folder = cls(path)
        present = (path / "study.json").is_file()
        if present:
            _check_same(folder, study, resume)
        elif path.is_dir() and (others := [e.name for e in path.iterdir() if e.name not in _OWN]):
            raise RunFolderError(f"{path} is not empty ({', '.join(others[:3])}) and holds no study: choose another")
        elif path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file: choose another folder with --study-dir")
        with explained(path, "make the folder"):
            (path / "runs").mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        if not (path / "study.json").is_file():
            what = "has no study.json" if path.is_dir() else "is not there"
            raise RunFolderError(f"{path} is not a study folder: it {what}. Give the folder that the study printed")
        folder = cls(path)
        about = folder.about
        version = about.get("format") if isinstance(about, dict) else None
        if not isinstance(version, int) or not 1 <= version <= FORMAT:
            raise RunFolderError(
                f"{path / 'study.json'} has format {version!r}; this is hzo-hil {__version__}, which reads up to"
                f" {FORMAT}. Install a newer version"
            )
        return folder

    @property
    def about(self) -> dict[str, Any]:
        """The content of study.json."""
        about: dict[str, Any] = read_json(self.path / "study.json")
        return about

    @property
    def plan(self) -> list[dict[str, Any]]:
        """`run` and `axes` of each run, in order."""
        plan: list[dict[str, Any]] = read_json(self.path / "plan.json")
        return plan

    def run(self, run: str) -> Path:
        return self.path / "runs" / run

    def describe(self, study: Study) -> None:
        """Write down what the study is. study.json comes last: with it the folder is a study."""
        with explained(self.path, "write the plan"):
            write_bytes(self.path / "study.yaml", as_yaml(plain_study(study.section)).encode("utf-8"))
            rows = ",\n".join(json.dumps(plain({"run": p.run, "axes": p.axes})) for p in study.runs)
            write_bytes(self.path / "plan.json", f"[\n{rows}\n]\n".encode())
        about = {
            "format": FORMAT,
            "name": study.section.name,
            "hash": study_hash(study),
            "version": __version__,
            "target": study.section.target,
            "runs": len(study.runs),
            "axes": described_axes(study),
            "metrics": described_metrics(study),
            "environment": environment(),
        }
        write_json(self.path / "study.json", about)

    def look(self, set_aside: bool = False) -> Found:
        """What has become of each planned run; damaged folders are moved to aside/ where `set_aside`."""
        states, aside = {}, []
        for row in self.plan:
            run = row["run"]
            state, why = state_of(self.run(run))
            if state is State.CORRUPT and set_aside:
                place = self._aside(run)
                aside.append(f"run {run[:12]} was damaged ({why}) and is set aside in {place}")
                state = State.MISSING
            states[run] = state
        return Found(states, aside)

    def _aside(self, run: str) -> Path:
        place = self.path / "aside" / f"{run}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6}"
        with explained(self.path, f"set {run} aside"):
            place.parent.mkdir(exist_ok=True)
            replace(self.run(run), place)
        return place

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study against other processes. Raises RunFolderError where one of them runs it."""
        hold = Hold(self.path, "running the study")
        try:
            yield
        finally:
            hold.release()


_OWN = {"study.yaml", "study.json", "plan.json", "runs", "aside", LOCK, "study.json.tmp", "plan.json.tmp"}
"""What a process that was killed before study.json may have left."""


def _check_same(folder: StudyFolder, study: Study, resume: bool) -> None:
    about = StudyFolder.open(folder.path).about
    if about.get("target") != study.section.target:
        raise RunFolderError(
            f"{folder.path} holds a study of {about.get('target')}, and this one is of {study.section.target}: choose"
            " another folder with --study-dir"
        )
    if not resume and any((folder.path / "runs").glob("*")):
        raise RunFolderError(
            f"{folder.path} holds a study already. Run what is missing or failed with --resume, or choose another"
            " folder with --study-dir"
        )
