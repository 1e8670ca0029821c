"""Every kind of simulated chip through the whole framework: its device file is certified, two stages of it learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hzo_hil.config import parse_config
from hzo_hil.devices.conformance import check
from hzo_hil.opening import open_device
from hzo_hil.records import RunFolder
from hzo_hil.train import run

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "devices").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_device_of_a_file_keeps_its_word(path: Path) -> None:
    """Noise follows keys, so this cannot fail by chance."""
    report = check(lambda: open_device(path), quick=True)
    assert report.failed() == []


def test_there_is_a_file_for_each_kind() -> None:
    kinds = {open_device(path).capabilities.identity.split("-")[0] for path in FILES}
    assert kinds == {"onn", "emulator", "ring_bank", "diffractive", "crossbar", "tensor_core", "conv_emulator"}


LIGHT = {"host": "hzo_hil.layers:Complement", "arguments": {"gain": 1.0}}
DIGITS = {"name": "digits", "limit_train": 160, "limit_test": 40}
KINDS: dict[str, dict[str, Any]] = {
    "ring_bank": {
        "data": {"name": "iris"},
        "chip": {"preset": "feedback_bank", "options": {"widths": [8, 8, 3], "scale": 3.0, "gain": 2.0}},
        "before": [LIGHT],
        "train": {"epochs": 6, "optimizer": {"name": "Adam", "lr": 0.05}},
    },
    "crossbar": {
        "data": {"name": "iris"},
        "chip": {"preset": "pcm", "options": {"widths": [8, 8, 3], "wire_resistance": 0.5}, "query_s": 1e-3},
        "before": [LIGHT],
        "train": {"epochs": 6, "optimizer": {"name": "Adam", "lr": 0.05}},
    },
    "diffractive": {
        "data": DIGITS,
        "chip": {
            "preset": "lcos",
            "options": {
                "units": 2, "layers": 1, "pixels": 16, "detector_pixels": 3, "distance": 1e-3, "scale": 4.0,
                "signed_inputs": False, "in_bits": 8, "in_bound": 2.0,
            },
        },
        "train": {"epochs": 4, "optimizer": {"name": "Adam", "lr": 0.1}},
    },
    "conv_emulator": {
        "data": DIGITS,
        "chip": {"preset": "aihwkit", "options": {"image": [1, 8, 8], "convs": [[4, 3, 2, 1]], "widths": [10]}},
        "train": {"epochs": 4, "optimizer": {"name": "Adam", "lr": 0.03}},
    },
    "tensor_core": {
        "data": DIGITS,
        "chip": {
            "preset": "calibrated_chip",
            "options": {
                "image": [1, 8, 8], "convs": [[4, 3, 2, 1]], "widths": [10], "activation": "tanh", "phase_bias": 0.05,
            },
        },
        "train": {"epochs": 3, "optimizer": {"name": "Adam", "lr": 0.03}},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_two_stages_learn(kind: str, tmp_path: Path) -> None:
    """By zeroth-order credit to the stage in front, and the twins of both; the loss falls to less than half."""
    made = KINDS[kind]
    raw = {
        "name": kind,
        "seed": 1,
        "data": made["data"],
        "devices": {"chip": {"kind": kind, "seed": 1, **made["chip"]}},
        "network": [*made.get("before", []), {"opaque": "chip"}],
        "method": {"probes": "hadamard", "eps": 0.1},
        "train": {"batch_size": 20, **made["train"]},
        "where": {"picture": False, "threads": 1, "run_dir": str(tmp_path / "run")},
    }
    summary = run(parse_config(raw), quiet=True)
    losses = [row["loss"] for row in RunFolder.open(tmp_path / "run").metrics() if "loss" in row]
    assert summary["bad_steps"] == 0
    assert summary["ledger"]["purposes"]["probes"]["queries"] > 0
    assert losses[-1] < 0.5 * losses[0]
