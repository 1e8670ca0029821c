"""Runs with learned twins: measured once, counted, and the same run however often they are interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hzo_hil.config import load_config, parse_config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.preview import preview
from hzo_hil.train import run
from tests.app.test_resume import Killed, die_at, go, same_outcome

RAW = {
    "devices.chip.preset": "l2ight_chip",
    "devices.chip.options": {"layers": 2, "ports": 4, "activation": "tanh", "noise_std": 0.002},
    "network": [
        {"host": "torch.nn:Linear", "arguments": {"in_features": 64, "out_features": 4}},
        {"opaque": "chip"},
        {"host": "torch.nn:Linear", "arguments": {"in_features": 4, "out_features": 10}},
    ],
    "method.leaf": "learned_twin",
    "method.learned": {"settings": 3, "check_every": 2, "check_phases": 2},
    "train.epochs": 2,
}
MEASURING = 2 * (2 * 13 + 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "run"


# Amid measuring the first mesh, the second, the first step, a later one.
@pytest.mark.parametrize("call", [10, 40, MEASURING + 3, MEASURING + 60])
def test_killed_at_any_call_and_resumed_is_the_same_run(
    noisy: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    raw = noisy(RAW)
    if not folder.exists():
        go(raw, folder)
    with monkeypatch.context() as patch:
        die_at(patch, call, Killed)
        with pytest.raises(Killed):
            go(raw, tmp_path / "run")
    go(raw, tmp_path / "run", resume=True)
    same_outcome(folder, tmp_path / "run")


def test_measuring_is_in_the_ledger_as_plan_said(noisy: Any, tmp_path: Path) -> None:
    raw = noisy({**RAW, "train.epochs": 1, "method.learned": {"settings": 3, "check_every": 1000, "trust": 0.01}})
    raw["where"]["run_dir"] = str(tmp_path / "run")
    config = parse_config(raw)
    planned = preview(config)["before"]
    spent = run(config, quiet=True, say=lambda _: None)["ledger"]["purposes"]["calibration"]
    assert planned["writes"] == MEASURING
    # The first step's check of each mesh comes on top: 16 phases, two settings each, eight samples.
    assert spent["writes"] - planned["writes"] == 2 * 2 * 16
    assert spent["queries"] - planned["queries"] == 2 * 2 * 16 * 8


def test_a_chip_without_such_a_twin_is_refused(tmp_path: Path) -> None:
    config = load_config("configs/emulator_digits.yaml", ["method.leaf=learned_twin", "method.twins=true"])
    with pytest.raises(ConfigError, match="a fitted twin is known for a stage of one mesh only"):
        preview(config)
