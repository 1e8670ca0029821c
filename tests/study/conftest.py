"""What tests of studies share: a small laboratory of things to study, study files, and the command in processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hzo_hil import cli

ROOT = Path(__file__).resolve().parents[2]

LAB = """
import os, time
from pathlib import Path
import hzo_hil

METRICS = {"y": {"label": "answer", "unit": "V", "better": "higher"}}

def parabola(config):
    time.sleep(config["pause_s"])
    with open(Path(config["log"]), "a") as file:  # who really ran, whatever the folders say
        file.write(hzo_hil.run_folder().name + "\\n")
    return {"y": config["seed"] - config["options"]["x"] ** 2, "pid": os.getpid()}

def moody(config):
    if config["seed"] == 1:
        raise ValueError("seed 1 is not liked")
    return {"y": 1.0}

def words(config):
    return {"y": "many"}

def deadly(config):
    marker = hzo_hil.run_folder() / "was_here"
    if config["seed"] == 1 and (config["always"] or not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), 9)
    return {"y": 1.0}

def hanging(config):
    marker = hzo_hil.run_folder() / "was_here"
    if config["seed"] == 1 and not marker.exists():
        marker.touch()
        time.sleep(1000)
    return {"y": 1.0}

def threads(config):
    return {"n": int(os.environ["OMP_NUM_THREADS"])}

def chatty(config):
    print("a word")
    return {"y": 1.0}

def using_device(config):
    place = Path(config["log"] + ".busy")
    overlap = place.exists()
    place.touch()
    time.sleep(0.1)
    place.unlink(missing_ok=True)
    return {"overlap": int(overlap)}
"""

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"name": "iris", "limit_train": 40},
    "devices": {"chip": {"kind": "emulator", "options": {"widths": [4, 6, 3]}, "latency_s": 0.001, "query_s": 1e-6}},
    "network": [{"opaque": "chip"}],
    "method": {"eps": 1e-2, "shared": False},
    "train": {"epochs": 2, "batch_size": 10},
}


class Lab:
    """A folder with the module `lab` and study files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "lab.py").write_text(LAB, encoding="utf-8")

    def study(self, function: str = "parabola", name: str = "study", **fields: Any) -> Path:
        config = {"seed": 0, "pause_s": 0.0, "log": str(self.path / "log"), "always": False, "options": {"x": 0.5}}
        config |= fields.pop("config", {})
        raw = {"name": name, "target": f"lab:{function}", "config": config, "axes": {"seed": [0, 1, 2]}, **fields}
        return self.write(raw, name)

    def write(self, raw: dict[str, Any], name: str = "study") -> Path:
        path = self.path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        return path

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "hzo_hil.cli", "study", *map(str, arguments)]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """The command in a process of its own, in the folder."""
        return subprocess.Popen(
            self.command(*arguments), cwd=self.path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.path, env=environment(), capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip

    @property
    def times_run(self) -> Counter[str]:
        """How often each run was really run to its end, by its hash."""
        log = self.path / "log"
        return Counter(log.read_text(encoding="utf-8").split()) if log.exists() else Counter()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    sys.modules.pop("lab", None)
    from hzo_hil.study.target import target_of

    target_of.cache_clear()
    yield Lab(tmp_path)
    sys.modules.pop("lab", None)
    target_of.cache_clear()


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def hzo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    # distributed's log handler keeps the standard error of whichever test imported it first, closed since then, and
    # logging would say so with a traceback.
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = cli.run([str(a) for a in arguments])
        found = capsys.readouterr()
        assert "Traceback" not in found.err, found.err
        return Result(status, found.out, found.err)

    return call


def events(folder: Path, name: str) -> Counter[str]:
    """How often an event stands in the events of each run of a study."""
    found: Counter[str] = Counter()
    for file in folder.glob("runs/*/events.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            found[file.parent.name] += json.loads(line)["event"] == name
    return found


def wait_for(true: Callable[[], Any], timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def values(folder: Path) -> list[dict[str, Any]]:
    """The table without what a clock or a process id decides."""
    from hzo_hil.study.table import load_study

    frame = load_study(folder)
    kept = [c for c in frame.columns if c not in ("seconds", "attempt", "pid", "wall_seconds")]
    return [{k: None if v != v else v for k, v in row.items()} for row in frame[kept].to_dict("records")]


def doing(folder: Path) -> dict[int, str]:
    """Who does which run now, by process id."""
    found = {}
    for file in folder.glob("runs/*/events.jsonl"):
        last = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
        if last["event"] == "started":
            found[int(last["by"].rpartition(":")[2])] = file.parent.name
    return found
