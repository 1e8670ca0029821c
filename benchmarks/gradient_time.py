"""Time of the gradient of an MLP: how it grows with depth for each tree, and how near it comes to the machine's peak.

Growth: `loss.backward()`, leaf gradients included, at 4 to 128 stages; the exponent p of L^p is fitted to the
logarithms of the fastest of some rounds, for `bisect` after a division by log2 L. Seconds there are those of all
threads of the process, host and device, which a machine busy with other things changes least. Stage evaluations are
2 M (L - 1), M L log2 L and M L (L - 1) a sample, whose own exponents, fitted alike, stand beside the times'. The law
is one for large L: what a pass and a call cost besides their evaluations weighs most at 4 stages, where `direct` has a
thousandth of the evaluations that it has at 128. So what is judged is the fit from 16 stages on; the fit to all depths
is printed beside it, and every time.

Peak: a backward pass over the noise-free emulator, 2 M^2 operations a stage evaluation, against a bare matrix product
of the batches that the device computes, [8192, M] by [M, M] in float32. Everything a pass does counts against it:
rows, non-linearity, checks, contraction, leaf rules. For `chain`, where every row crosses one stage only, and
`bisect`, where it crosses more, so that building it and weighing its answer cost less in proportion. Each pass is
timed between two products, so that a machine that slows down slows both, and the median of the ratios is kept.
`ratio` is again that of the seconds of all threads: what one core reaches that is host and device in turn.
`wall` is that of the wall's clock: with a second core free the host's work hides behind the device's and it is higher,
where other programs want the cores it says little. `device_alone`: a bare loop that sends the same calls.

One thread in each library (unless the environment says otherwise), in the product and in the pass; the device runs in
a thread of its own. `--quick`: to 32 stages, where fixed costs still weigh, so no targets for growth, and fewer rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import _one_thread  # noqa: F401
import numpy as np
import torch
from _rows import Rows, arguments
from numpy.typing import NDArray

from hzo_hil import Opaque, Stage
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import chip
from hzo_hil.updates.delta import DeltaRule

DEPTHS, WIDTH, MAX_BATCH = (4, 16, 32, 64, 128), 64, 8192
DEEP = 16  # from here on the law is fitted
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


Times = NDArray[np.float64]
WALL, CPU = 0, 1


def now() -> Times:
    """[seconds of the wall's clock, seconds of all threads of this process]"""
    return np.array([time.perf_counter(), time.process_time()])


class Pass:
    """One backward pass after another, timed; their forwards are not."""

    def __init__(self, module: Opaque, batch: int, width: int) -> None:
        self.module = module
        self.inputs = 0.5 * torch.randn(batch, width, generator=torch.Generator().manual_seed(0))

    def __call__(self) -> Times:
        loss = (self.module(self.inputs) ** 2).sum()
        self.module.zero_grad()
        start = now()
        loss.backward()
        return now() - start


def fitted(depths: tuple[int, ...], values: list[float]) -> float:
    return float(np.polyfit(np.log(depths), np.log(values), 1)[0])


def growth(rows: Rows, depths: tuple[int, ...]) -> None:
    for tree, expected in EXPONENTS.items():
        seconds, evaluations = [], []
        for depth in depths:
            module = network(depth, WIDTH, tree)[1]
            once, rounds = Pass(module, BATCH[tree], WIDTH), max(2, 64 // depth)
            once()
            before = module.ledger.accounts["probes"].stage_evaluations
            seconds.append(min(float(once()[CPU]) for _ in range(rounds)))
            evaluations.append((module.ledger.accounts["probes"].stage_evaluations - before) / rounds)
        factor = [math.log2(depth) if tree == "bisect" else 1.0 for depth in depths]
        times, counts = ([v / f for v, f in zip(of, factor, strict=True)] for of in (seconds, evaluations))
        deep = sum(depth < DEEP for depth in depths)
        found = fitted(depths[deep:], times[deep:])
        rows.row(
            f"{tree} exponent", found, "L^p log2 L" if tree == "bisect" else "L^p", fitted_from=DEEP,
            of_all_depths=fitted(depths, times), depths=depths, width=WIDTH, batch=BATCH[tree], cpu_seconds=seconds,
            exponent_of_evaluations=fitted(depths[deep:], counts[deep:]),
            of_evaluations_at_all_depths=fitted(depths, counts),
        )  # fmt: skip
        target = "<= 0.2" if depths == DEPTHS else None
        rows.row(f"{tree} exponent off {expected}", abs(found - expected), "exponent", target=target)


def peak(rows: Rows, tree: str, width: int, target: str | None, rounds: int) -> None:
    device, module = network(PEAK_DEPTH, width, tree)
    once = Pass(module, max(1, PEAK_ROWS // (2 * width)), width)
    device.log = []
    once()
    calls, device.log = [c for c in device.log if len(c[1]) > len(once.inputs)], None
    evaluations = sum(len(inputs) * len(segment) for segment, inputs, _ in calls)
    drawn = np.random.default_rng(0)
    block, matrix = (drawn.standard_normal((n, width)).astype(np.float32) for n in (MAX_BATCH, width))
    out = np.empty_like(block)

    whole = evaluations // MAX_BATCH

    def product() -> Times:
        start = now()
        for _ in range(whole):
            np.matmul(block, matrix, out=out)
        return (now() - start) * evaluations / (whole * MAX_BATCH)

    def bare() -> Times:
        start = now()
        for segment, inputs, options in calls:
            device.run(segment, inputs, **options)
        return now() - start

    before, products, found = product(), [], {"pass": [], "bare": []}
    for _ in range(rounds):
        for name, call in (("pass", once), ("bare", bare)):
            seconds, after = call(), product()
            # Between its two neighbours, a drift of the machine's speed cancels.
            found[name].append((seconds, (before + after) / 2))
            products.append(after)
            before = after

    def ratio(name: str, clock: int) -> float:
        return statistics.median(float(reference[clock] / seconds[clock]) for seconds, reference in found[name])

    operations = 2 * width**2 * evaluations
    best, at_peak = (min(float(t[CPU]) for t in times) for times in ([t for t, _ in found["pass"]], products))
    rows.row(
        f"{tree}, width {width}: fraction of the matrix product's peak", operations / best / 1e9, "1e9 operations/s",
        against="matrix product", ratio=ratio("pass", CPU), target=target, wall=ratio("pass", WALL),
        device_alone=ratio("bare", CPU), peak=operations / at_peak / 1e9, depth=PEAK_DEPTH, calls=len(calls),
        rounds=rounds, dtype="float32", threads=torch.get_num_threads(),
    )  # fmt: skip


def main() -> None:
    quick = arguments(__doc__).quick
    rows = Rows()
    rows.environment()
    growth(rows, DEPTHS[:3] if quick else DEPTHS)
    for tree in ("chain", "bisect"):
        for width, target in PEAKS:
            peak(rows, tree, width, target, 3 if quick else 9)
    rows.exit()


if __name__ == "__main__":
    main()
