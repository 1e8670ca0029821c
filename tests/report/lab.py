"""A study whose outcome is known in closed form, done by the real command. Its runs leave folders as training does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

# Accuracy falls linearly with phase noise, so that every threshold is known: 0.05 * CLEAN / SLOPE.
LAB = """
import json
import hzo_hil
from hzo_hil.records import RunFolder

METRICS = {
    "score": {"label": "test accuracy", "unit": "fraction", "better": "higher"},
    "queries": {"label": "queries", "better": "lower"},
    "stage_evaluations": {"label": "stage evaluations", "better": "lower"},
    "device_seconds": {"label": "device time, as declared", "unit": "s", "better": "lower"},
    "gradient_noise_predicted": {"label": "noise of the gradient, predicted", "better": "lower"},
    "gradient_error_measured": {"label": "noise of the gradient, measured", "better": "lower"},
}
CLEAN = {"steady": 0.96, "fragile": 0.92, "twin": 0.60}
SLOPE = {"steady": 1.0, "fragile": 4.0, "twin": 0.5}
QUERIES = {"steady": 40_000, "fragile": 9_000, "twin": 0}

def accuracy(method, phase, bits, seed):
    lost = 0.0 if bits is None else 0.02 * max(0, 8 - bits)
    wobble = 0.001 * ((7 * seed + 3 * len(method) + round(60 * phase) + 2 * (bits or 10)) % 5 - 2)
    return max(0.1, CLEAN[method] - SLOPE[method] * phase - lost + wobble)

def run(config):
    method, phase, bits, seed = config["method"], config["phase"], config["bits"], config["seed"]
    if method == "fragile" and phase == 0.1 and seed == 2 and bits is None:
        raise RuntimeError("no plan reaches the tolerance <b>" + config["label"])
    score = accuracy(method, phase, bits, seed)
    queries = QUERIES[method] + 100 * seed
    full = {"name": "lab", "seed": seed, "train": {"metric": "accuracy"}, "method": {"name": method}}
    noise = 0.01 + phase
    with RunFolder.create(hzo_hil.run_folder() / "run", full) as folder:
        for epoch in range(1, 7):
            reached = 0.1 + (score - 0.1) * (1 - 0.45 ** epoch)
            spent = {"queries": queries * epoch // 6, "stage_evaluations": queries * epoch,
                     "device_seconds": queries * epoch / 6e4}
            loss = 2.3 * 0.6 ** epoch
            folder.log({"step": 10 * epoch, "epoch": epoch, "loss": loss, "test_loss": loss,
                        "test_accuracy": reached, "cosine/onn": 1 - noise * epoch / 6, **spent})
        folder.write_device({"identity": {"chip": f"chip-{seed}"}, "snapshot": {"chip": {"phase_bits": bits}}})
        folder.finish({"metric": "accuracy", "accuracy": {"in_loop": score}})
    return {"score": score, "queries": queries, "stage_evaluations": 6 * queries, "device_seconds": queries / 1e4,
            "gradient_noise_predicted": noise, "gradient_error_measured": noise * (1 + 0.1 * (seed - 1))}
"""

STUDY: dict[str, Any] = {
    "name": "lab_study",
    "target": "report_lab:run",
    "config": {"method": "steady", "phase": 0.0, "bits": None, "seed": 0, "label": "plain"},
    "axes": {
        "phase_noise": {
            "field": "phase", "values": [0.0, 0.05, 0.1], "label": "phase noise", "unit": "rad", "role": "noise",
        },
        "converter": {"field": "bits", "values": [4, 6, None], "label": "converter bits", "unit": "bit",
                      "role": "noise"},
        "method": {
            "role": "method", "values": {"steady": {"method": "steady"}, "fragile": {"method": "fragile"},
                                         "twin": {"method": "twin"}},
        },
        "seed": {"field": "seed", "values": [0, 1, 2], "role": "seed"},
    },
    "executor": {"workers": 1, "threads": 1},
}  # fmt: skip


def do_study(folder: Path, study: dict[str, Any]) -> Path:
    """Run a study of the laboratory with the real command; some of its runs may fail. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report_lab.py").write_text(LAB, encoding="utf-8")
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "hzo_hil.cli", "study", str(file), "--study-dir", str(folder / "study"), "--quiet"]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=240, check=False
    )
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    return folder / "study"
