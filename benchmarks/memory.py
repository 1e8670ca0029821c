"""Peak memory of one gradient at 64 and 256 stages: HZO with stored and with recomputed activations against autograd,
weight-wise zeroth order and activity perturbation.

Each in a process of its own, which first does the same with a batch of one, so that libraries are loaded, then resets
its peak (Linux, /proc/self/clear_refs), and reports by how much forward, loss and backward raised its resident memory
(VmHWM less VmRSS before), the median of five processes with their range. Where that is not offered the row says so.
Parameters exist before and do not count; gradients do. Every array of 64 KiB or more is a mapping of its own
(MALLOC_MMAP_THRESHOLD_), returned when it is let go: in a shared heap the peak of the same run varies by a factor of
three with which thread came first, for what is free lies scattered between what is not. Stages are
tanh(W a + b) on the noise-free emulator, 16 wide and with a large batch, so that activations, not matrices, are what
is held; the device's own buffers count in every method that asks it.

`autograd` is torch's on the same network. `weight-wise` changes one weight at a time and asks for the loss twice: the
peak does not depend on how many weights, so 4 are tried. `activity` adds keyed noise at all boundaries of one pass and
weighs noise and activations with the change of the loss. `--quick`: 16 and 64 stages, one process each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _one_thread  # noqa: F401
import numpy as np
import torch
from _rows import ROOT, Rows
from torch import nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.api import Segment
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import chip
from hzo_hil.streams import generator
from hzo_hil.updates.delta import DeltaRule

WIDTH, BATCH, MAX_BATCH, SIGMA = 16, 2048, 2048, 1e-2
ROUNDS = 5
METHODS = ("autograd", "stored", "recomputed", "weight-wise", "activity")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def inputs(batch: int) -> torch.Tensor:
    return torch.as_tensor(generator(0, "inputs").standard_normal((batch, WIDTH))).float()


def on_device(depth: int, memory: str) -> Opaque:
    models = chip.build("emulator", widths=[WIDTH] * (depth + 1), activation="tanh", last_activation=True)
    device = SimulatedDevice(models, max_batch=MAX_BATCH)
    stages = [Stage(device, k, leaf=DeltaRule("tanh")) for k in range(depth)]
    return Opaque(stages, tree="bisect", memory=memory, buffer_bytes=2**20)


def by_backward(model: nn.Module, batch: int) -> None:
    (model(inputs(batch)) ** 2).sum().backward()


def on_host(depth: int) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(*layers)


def weight_wise(module: Opaque, batch: int) -> None:
    """dLoss/dw by central differences, for some weights of the first stage."""
    rows, weight = inputs(batch), next(module.parameters())
    gradient = torch.zeros_like(weight)
    with torch.no_grad():
        for k in range(4):
            sides = []
            for step in (1e-3, -1e-3):
                weight.view(-1)[k] += step
                sides.append(float((module(rows) ** 2).sum()))
                weight.view(-1)[k] -= step
            gradient.view(-1)[k] = (sides[0] - sides[1]) / 2e-3


def activity(module: Opaque, batch: int) -> None:
    """dLoss/dW_l ~ (change of loss / sigma^2) noise_l a_{l-1}^T, noise drawn again from its key when it is needed."""
    with torch.no_grad():
        loss = (module(inputs(batch)) ** 2).sum(dim=1)
    device, kept = module.network.devices[0], [inputs(batch).numpy()]

    def noise(k: int) -> Any:
        return SIGMA * generator(0, "noise", k).standard_normal((batch, WIDTH)).astype(np.float32)

    for k in range(module.network.depth):
        values = device.run(Segment(k, k + 1), kept[-1]).outputs  # type: ignore[attr-defined]
        kept.append(values + noise(k))
    change = ((kept[-1] ** 2).sum(axis=1) - loss.numpy()) / SIGMA**2
    for k, master in enumerate(p for p in module.parameters() if p.ndim == 2):
        master.grad = torch.as_tensor((change[:, None] * noise(k)).T @ kept[k])


def measured(method: str, depth: int) -> dict[str, Any]:
    """Peak rise in MB of this process."""
    torch.manual_seed(0)
    memory = "recompute" if method == "recomputed" else "store"
    model = on_host(depth) if method == "autograd" else on_device(depth, memory)
    run = {"weight-wise": weight_wise, "activity": activity}.get(method, by_backward)
    run(model, 1)  # type: ignore[arg-type]
    model.zero_grad(set_to_none=True)
    gc.collect()
    try:
        RESET.write_text("5")
        before = _kilobytes("VmRSS")
    except OSError:
        return {"peak": None}
    start = time.perf_counter()
    run(model, BATCH)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    return {"peak": (_kilobytes("VmHWM") - before) / 1024, "seconds": seconds}


def _kilobytes(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))


def apart(method: str, depth: int) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--child", method, str(depth)]
    own_mappings = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=own_mappings)
    return dict(json.loads(ran.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="16 and 64 stages")
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "DEPTH"), help="measure one method in this process")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measured(given.child[0], int(given.child[1]))))
        return
    rows = Rows()
    rows.environment()
    depths = (16, 64) if given.quick else (64, 256)
    peaks: dict[tuple[str, int], float] = {}
    for depth in depths:
        one = BATCH * WIDTH * 4 / 2**20
        for method in METHODS:
            found = [apart(method, depth) for _ in range(1 if given.quick else ROUNDS)]
            if found[0]["peak"] is None:
                rows.row(f"{depth} stages {method}", "not offered by this system", "MB")
                continue
            all_peaks = [f["peak"] for f in found]
            peaks[method, depth] = statistics.median(all_peaks)
            rows.row(
                f"{depth} stages {method}", peaks[method, depth], "MB", range=[min(all_peaks), max(all_peaks)],
                boundaries=peaks[method, depth] / one, seconds=statistics.median(f["seconds"] for f in found),
                processes=len(found), batch=BATCH, width=WIDTH,
            )  # fmt: skip
    if peaks:
        low, high = depths
        for method, against, target in (
            ("recomputed", "stored", "<= 0.5"), ("recomputed", "autograd", "<= 1"), ("stored", "autograd", None),
            ("activity", "autograd", None), ("weight-wise", "autograd", None),
        ):  # fmt: skip
            ratio = peaks[method, high] / peaks[against, high]
            rows.row(f"{high} stages {method}", peaks[method, high], "MB", against=against, ratio=ratio, target=target)
        for method in METHODS:
            grown = peaks[method, high] / peaks[method, low]
            target = "<= 2" if method == "recomputed" else None
            rows.row(
                f"{method}, {high} stages",
                peaks[method, high],
                "MB",
                against=f"{low} stages",
                ratio=grown,
                target=target,
            )
    rows.exit()


if __name__ == "__main__":
    main()
