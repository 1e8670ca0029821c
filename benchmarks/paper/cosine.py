"""Cosine to backpropagation through training, and why test accuracy fluctuates, which the paper puts down to Adam.

A 64-32-32-10 tanh network on an emulated accelerator with read noise learns the bundled digits; every so many steps the
gradient is compared with that of a noise-free copy. `fixed step`: one `eps` throughout, bisection, coordinates.
`planned step`: the planner chooses tree, probes and steps after a calibration, and anew after each epoch where the
calibration has moved, within `queries_per_step`, about what the fixed plan asks; calibration comes on top and is in the
ledger. `no noise`: the fixed plan without read noise and with a small step, so with an all but exact gradient: what
fluctuates there is the optimiser's and the rate's own, and no zeroth-order noise. `fluctuation`: the mean absolute
change of test accuracy from an epoch to the next, second half of training. The paper's claims: cosine above 0.95
throughout, and fluctuation from Adam's second moments under zeroth-order noise.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import _result  # isort: skip
import numpy as np

from hzo_hil.config import parse_config
from hzo_hil.records import RunFolder
from hzo_hil.train import run

OPTIMIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "Adam, constant rate": ({"name": "Adam", "lr": 5e-3}, "constant"),
    "Adam, one-cycle rate": ({"name": "Adam", "lr": 5e-3}, "one_cycle"),
    "SGD, constant rate": ({"name": "SGD", "lr": 0.1, "options": {"momentum": 0.9}}, "constant"),
}
BOUND = 0.95  # the paper's
GRADIENTS = ("fixed step", "planned step", "no noise")
FULL: dict[str, Any] = {
    "widths": [64, 32, 32, 10], "noise": 0.02, "eps": 0.1, "epochs": 30, "batch": 32, "every": 10, "limit": 0,
    "queries_per_step": 4200, "seeds": 3,
}  # fmt: skip
SMOKE = {"epochs": 2, "every": 2, "limit": 64, "widths": [64, 8, 10], "queries_per_step": 600, "seeds": 1}


def experiment(config: dict[str, Any], optimizer: str, gradient: str, seed: int, folder: Path) -> dict[str, Any]:
    settings, schedule = OPTIMIZERS[optimizer]
    widths, quiet = config["widths"], gradient == "no noise"
    stages: list[dict[str, Any]] = [{"device": "core", "stage": k} for k in range(len(widths) - 1)]
    stages[-1]["leaf"] = "delta"  # the last stage is linear
    method: dict[str, Any] = {"twins": False, "leaf": "delta:tanh", "shared": False}
    if gradient == "planned step":
        method |= {"plan": "auto", "queries_per_step": config["queries_per_step"]}
    else:
        method |= {"tree": "bisect", "probes": "coordinate", "eps": 1e-3 if quiet else config["eps"]}
    options = {"widths": widths, "activation": "tanh", "read_noise_std": 0.0 if quiet else config["noise"]}
    few = {"limit_train": config["limit"], "limit_test": config["limit"]} if config["limit"] else {}
    return {
        "name": "cosine",
        "seed": seed,
        "data": {"name": "digits"} | few,
        "devices": {"core": {"kind": "emulator", "options": options, "max_batch": 8192}},
        "network": [{"opaque": stages, "name": "core"}],
        "method": method,
        "train": {
            "epochs": config["epochs"], "batch_size": config["batch"], "optimizer": settings,
            "schedule": {"name": schedule}, "cosine_every": config["every"],
        },
        "where": {"picture": False, "run_dir": str(folder)},
    }  # fmt: skip


def trained(config: dict[str, Any], optimizer: str, gradient: str, seed: int) -> dict[str, Any]:
    """Cosines by step and test accuracies by epoch of one run, and what its probes asked."""
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where) / "run"
        raw = experiment(config, optimizer, gradient, seed, folder)
        summary = run(parse_config(raw), quiet=True, say=lambda text: None)
        rows = RunFolder.open(folder).metrics()
    return {
        "cosines": [row["cosine/core"] for row in rows if "cosine/core" in row],
        "accuracy": [row["test_accuracy"] for row in rows if "test_accuracy" in row],
        "gain": [row["gain/core/all"] for row in rows if "gain/core/all" in row],
        "probes_per_step": summary["ledger"]["purposes"]["probes"]["queries"] / summary["steps"],
    }


def judged(found: dict[str, Any]) -> dict[str, float]:
    """Of one run: the smallest cosine, how many lie below the paper's bound, means of both ends, and fluctuation."""
    cosines, accuracy = np.array(found["cosines"]), np.array(found["accuracy"])
    quarter, half = max(1, len(cosines) // 4), max(2, len(accuracy) // 2 + 1)
    return {
        "smallest": float(cosines.min()),
        "below": float((cosines <= BOUND).mean()),
        "first_quarter": float(cosines[:quarter].mean()),
        "last_quarter": float(cosines[-quarter:].mean()),
        "accuracy": float(accuracy[-1]),
        "fluctuation": float(np.abs(np.diff(accuracy[-half:])).mean()),
        "gain": float(found["gain"][-1]),
        "probes_per_step": found["probes_per_step"],
    }


def main() -> None:
    result = _result.begun("cosine", __doc__, full=FULL, smoke=SMOKE)
    curves: dict[tuple[str, str], dict[str, Any]] = {}
    for optimizer, gradient in itertools.product(OPTIMIZERS, GRADIENTS):
        found = [
            result.part(f"{optimizer}/{gradient}/{seed}", partial(trained, result.config, optimizer, gradient, seed))
            for seed in result.seeds
        ]
        curves[optimizer, gradient] = found[0]
        each = [judged(f) for f in found]
        middle = {name: float(np.median([e[name] for e in each])) for name in each[0]}
        case = f"{optimizer}, {gradient}"
        smallest = min(e["smallest"] for e in each)
        result.row(
            f"{case}: smallest cosine", smallest, "cosine", against="noise-free copy",
            target=f">= {BOUND}" if gradient == "planned step" else None, **middle,
        )  # fmt: skip
        result.row(
            f"{case}: fluctuation", middle["fluctuation"], "mean change of test accuracy an epoch",
            range=[min(e["fluctuation"] for e in each), max(e["fluctuation"] for e in each)],
        )  # fmt: skip

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, len(OPTIMIZERS), sharey="row")
        for k, optimizer in enumerate(OPTIMIZERS):
            for gradient in GRADIENTS:
                found = curves[optimizer, gradient]
                steps = 1 + result.config["every"] * np.arange(len(found["cosines"]))
                above[k].plot(steps, found["cosines"], label=gradient)
                below[k].plot(np.arange(1, 1 + len(found["accuracy"])), found["accuracy"])
            above[k].axhline(BOUND, color="grey", linewidth=0.8)
            above[k].set(title=optimizer, xlabel="step")
            below[k].set(xlabel="epoch")
        above[0].set_ylabel("cosine")
        above[0].legend(fontsize="x-small")
        below[0].set_ylabel("test accuracy")

    result.finish(draw)


if __name__ == "__main__":
    _result.go(main)
