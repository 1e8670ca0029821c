"""What the tests of the user-facing layer share: tiny experiments, and the command line called in this process."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hzo_hil import cli

Raw = dict[str, Any]

TINY: Raw = {
    "name": "tiny",
    "seed": 3,
    "data": {"name": "iris", "limit_train": 40},
    "devices": {"chip": {"kind": "emulator", "options": {"widths": [4, 6, 3]}, "latency_s": 0.001, "query_s": 1e-6}},
    "network": [{"opaque": "chip"}],
    "method": {"eps": 1e-2, "shared": False},  # shared Jacobians: tests/core/test_shared.py, and where asked for
    "train": {"epochs": 2, "batch_size": 10},
    "where": {"picture": False, "threads": 1},
}
NOISY: Raw = {
    "name": "noisy",
    "seed": 5,
    "data": {"name": "digits", "limit_train": 48, "limit_test": 40},
    "devices": {
        "chip": {
            "kind": "onn",
            "preset": "calibrated_chip",
            "options": {"layers": 2, "ports": 8, "activation": "tanh"},
            "settling_s": 0.01,
        }
    },
    "network": [
        {"host": "torch.nn:Dropout", "arguments": {"p": 0.1}},
        {"host": "torch.nn:Linear", "arguments": {"in_features": 64, "out_features": 8}},
        {"opaque": "chip"},
        {"host": "torch.nn:Linear", "arguments": {"in_features": 8, "out_features": 10}},
    ],
    "method": {"tree": "chain", "probes": "hadamard", "eps": 0.1, "shared": False},
    "train": {
        "epochs": 3,
        "batch_size": 8,
        "checkpoint_every": 4,
        "optimizer": {"name": "Adam", "lr": 0.02},
        "schedule": {"name": "one_cycle"},
    },
    "where": {"picture": False, "threads": 1},
}


def changed(raw: Raw, changes: dict[str, Any]) -> Raw:
    """A copy with `a.b` replaced, as `--set` does."""
    raw = copy.deepcopy(raw)
    for path, value in changes.items():
        *parents, last = path.split(".")
        at = raw
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = copy.deepcopy(value)
    return raw


@pytest.fixture
def tiny() -> Callable[..., Raw]:
    """`tiny({"train.epochs": 1})`: half a second of training on iris, on an exact emulator."""
    return lambda changes=None: changed(TINY, changes or {})


@pytest.fixture
def noisy() -> Callable[..., Raw]:
    """18 steps of digits through host layers, dropout and a noisy 8-port chip."""
    return lambda changes=None: changed(NOISY, changes or {})


@pytest.fixture
def averaged() -> Callable[..., Raw]:
    """The same through one noisy matrix of 8 x 8, whose Jacobian is averaged over steps."""
    chip = {"kind": "emulator", "preset": "aihwkit", "options": {"widths": [8, 8], "activation": "none"}}
    method = {"leaf": "delta", "average": 0.3}
    return lambda changes=None: changed({**NOISY, "devices": {"chip": chip}, "method": method}, changes or {})


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    def write(raw: Raw, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return path

    return write


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def hzo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`hzo("train", path, "--json")`: the command line in this process, with its exit status and what it printed."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = cli.run([str(a) for a in arguments])
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return Result(status, found.out, found.err)

    return call


@pytest.fixture
def module_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """`module_file("my_lab", code)`: a user's own module beside the configuration."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        return name

    return write
