"""Loss-only training of the emulated microcontroller by its shipped configuration: run folder, books and parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hzo_hil.config import load_config
from hzo_hil.preview import preview
from hzo_hil.records import RunFolder
from hzo_hil.train import run

pytest.importorskip("serial")

ROOT = Path(__file__).resolve().parents[2]
BYTES = 4 * 8 + 8 + 8 * 3 + 3  # parameters of 4-8-3
# eps in steps of 1/128, what the board's int8 weights resolve.
METHODS = {
    "SPSA": ("{name: SPSA, lr: 0.1, options: {eps: 0.0625}}", 2),
    "CGE": ("{name: CGE, lr: 1.0, options: {eps: 0.0625}}", 1 + BYTES),
}


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_by_losses_alone(start_emulator: Callable[..., Any], tmp_path: Path, method: str) -> None:
    optimizer, losses = METHODS[method]
    overrides = [
        f"devices.board.url=serial+tcp://127.0.0.1:{start_emulator().port}",
        "method={credit: loss}",
        f"train.optimizer={optimizer}",
        "train.schedule.name=constant",
        "train.epochs=4",
        "data.limit_train=20",
        "data.limit_test=20",
        f"where={{picture: false, threads: 1, run_dir: '{(tmp_path / 'run').as_posix()}'}}",
    ]
    config = load_config(ROOT / "configs" / "iris_firmware.yaml", overrides)
    found = preview(config)
    summary = run(config, quiet=True, say=lambda text: None)
    spent = summary["ledger"]["purposes"]["probes"]
    assert summary["steps"] == 4 and spent["queries"] == 4 * found["epoch"]["queries"] == 4 * 20 * losses
    assert spent["stage_evaluations"] == 2 * spent["queries"] and spent["writes"] <= 4 * found["epoch"]["writes"]
    folder = RunFolder.open(tmp_path / "run")
    rows = [r for r in folder.metrics() if "test_loss" in r]
    assert folder.status == "finished" and len(rows) == 4
    first, last = folder.load_checkpoint("best"), folder.load_checkpoint("last")
    assert last["optimizer"]["state"]["queries"] == 4 * losses and first["step"] <= last["step"] == 4
    if method == "CGE":  # the whole gradient, on one batch of 20 images over and over
        assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(torch.isfinite(v).all() for v in last["model"].values() if isinstance(v, torch.Tensor))
