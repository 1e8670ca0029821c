"""Time of the gradient of an MLP: how it grows with depth for each tree, and how near it comes to the machine's peak.

Growth: `loss.backward()`, leaf gradients included, at 4 to 128 stages; the exponent p of L^p is fitted to the
logarithms of the fastest of some rounds, for `bisect` after a division by log2 L. Seconds there are those of all
threads of the process, host and device, which a machine busy with other things changes least. Stage evaluations are
2 M (L - 1), M L log2 L and M L (L - 1) a sample, whose own exponents, fitted alike, stand beside the times'.

Peak: a backward pass over the noise-free emulator, 2 M^2 operations a stage evaluation, against a bare matrix product
of the batches that the device computes, [8192, M] by [M, M] in float32, in the same rounds; the ratio is that of the
fastest of each. Everything a pass does counts against it: rows, non-linearity, checks, contraction, leaf rules.
`device_alone` is what the device reaches when the same calls are sent in a bare loop.

One thread in each library (unless the environment says otherwise), in the product and in the pass; the device runs in
a thread of its own, so where there are two cores the host's work hides behind it. `--quick`: to 32 stages, where
fixed costs still weigh, so no targets for growth, and fewer rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import _one_thread  # noqa: F401
import numpy as np
import torch
from _rows import Rows, arguments

from hzo_hil import Opaque, Stage
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import chip
from hzo_hil.updates.delta import DeltaRule

DEPTHS, WIDTH, MAX_BATCH = (4, 16, 32, 64, 128), 64, 8192
BATCH = {"chain": 64, "bisect": 64, "direct": 8}  # so that a cut's calls, not its overhead, are what is timed
EXPONENTS = {"chain": 1, "bisect": 1, "direct": 2}
PEAKS = ((128, None), (256, ">= 0.6"), (512, ">= 0.6"))
PEAK_DEPTH, PEAK_ROWS = 8, 5 * MAX_BATCH


class Recorded(SimulatedDevice):
    """Keeps the arguments of every query while `log` is a list."""

    log: list[tuple[Any, Any, dict[str, Any]]] | None = None

    def run(self, segment: Any, inputs: Any, **options: Any) -> Any:
        if self.log is not None:
            self.log.append((segment, inputs, options))
        return super().run(segment, inputs, **options)


def network(depth: int, width: int, tree: str) -> tuple[Recorded, Opaque]:
    models = chip.build("emulator", widths=[width] * (depth + 1), activation="tanh", last_activation=True)
    device = Recorded(models, max_batch=MAX_BATCH)
    return device, Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in range(depth)], tree=tree)


class Pass:
    """One backward pass after another, timed; their forwards are not."""

    def __init__(self, module: Opaque, batch: int, width: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.module = module
        self.clock = clock
        self.inputs = 0.5 * torch.randn(batch, width, generator=torch.Generator().manual_seed(0))

    def __call__(self) -> float:
        loss = (self.module(self.inputs) ** 2).sum()
        self.module.zero_grad()
        start = self.clock()
        loss.backward()
        return self.clock() - start


def fitted(depths: tuple[int, ...], values: list[float]) -> float:
    return float(np.polyfit(np.log(depths), np.log(values), 1)[0])


def growth(rows: Rows, depths: tuple[int, ...]) -> None:
    for tree, expected in EXPONENTS.items():
        seconds, evaluations = [], []
        for depth in depths:
            module = network(depth, WIDTH, tree)[1]
            once, rounds = Pass(module, BATCH[tree], WIDTH, time.process_time), max(2, 64 // depth)
            once()
            before = module.ledger.accounts["probes"].stage_evaluations
            seconds.append(min(once() for _ in range(rounds)))
            evaluations.append((module.ledger.accounts["probes"].stage_evaluations - before) / rounds)
        factor = [math.log2(depth) if tree == "bisect" else 1.0 for depth in depths]
        times, counts = ([v / f for v, f in zip(of, factor, strict=True)] for of in (seconds, evaluations))
        found = fitted(depths, times)
        rows.row(
            f"{tree} exponent", found, "L^p log2 L" if tree == "bisect" else "L^p", depths=depths, width=WIDTH,
            batch=BATCH[tree],
            cpu_seconds=seconds, exponent_of_evaluations=fitted(depths, counts),
        )  # fmt: skip
        target = "<= 0.2" if depths == DEPTHS else None
        rows.row(f"{tree} exponent off {expected}", abs(found - expected), "exponent", target=target)


def peak(rows: Rows, width: int, target: str | None, rounds: int) -> None:
    device, module = network(PEAK_DEPTH, width, "chain")
    once = Pass(module, max(1, PEAK_ROWS // (2 * width)), width)
    device.log = []
    once()
    calls, device.log = [c for c in device.log if len(c[1]) > len(once.inputs)], None
    evaluations = sum(len(inputs) * len(segment) for segment, inputs, _ in calls)
    drawn = np.random.default_rng(0)
    block, matrix = (drawn.standard_normal((n, width)).astype(np.float32) for n in (MAX_BATCH, width))
    out = np.empty_like(block)

    def product() -> float:
        start = time.perf_counter()
        for _ in range(evaluations // MAX_BATCH):
            np.matmul(block, matrix, out=out)
        return (time.perf_counter() - start) * evaluations / (evaluations // MAX_BATCH * MAX_BATCH)

    def bare() -> float:
        start = time.perf_counter()
        for segment, inputs, options in calls:
            device.run(segment, inputs, **options)
        return time.perf_counter() - start

    fastest: dict[str, float] = {}
    for _ in range(rounds):
        for name, call in (("product", product), ("pass", once), ("bare", bare)):
            fastest[name] = min(call(), fastest.get(name, math.inf))
    operations = 2 * width**2 * evaluations
    rows.row(
        f"width {width}: fraction of the matrix product's peak", operations / fastest["pass"] / 1e9, "1e9 operations/s",
        against="matrix product", ratio=fastest["product"] / fastest["pass"], target=target,
        peak=operations / fastest["product"] / 1e9, device_alone=fastest["product"] / fastest["bare"],
        depth=PEAK_DEPTH, rounds=rounds,
    )  # fmt: skip


def main() -> None:
    quick = arguments(__doc__).quick
    rows = Rows()
    rows.environment()
    growth(rows, DEPTHS[:3] if quick else DEPTHS)
    for width, target in PEAKS:
        peak(rows, width, target, 5 if quick else 15)
    rows.exit()


if __name__ == "__main__":
    main()
