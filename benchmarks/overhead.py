"""Cost of the framework: a backward pass against a bare loop that sends the same batches to the same device.

How it is measured. The arguments of every `device.run` of one backward pass are recorded. Then, alternately, (A) a
whole backward pass, leaf gradients by the delta rule included, and (B) the recorded calls again in a plain `for`
loop, are timed; the value is the median of the ratios A/B of neighbours, so that a machine that slows down slows
both. Nothing is left out of A: rows, keys, dispatch, contraction, decoding, leaf rules, ledger. B runs in the asker's
thread; A runs the device in the link's worker thread, so on several cores part of the host's work hides behind the
device's.

Threads: one in each numerical library (unless the environment says otherwise), in A and B alike, so that on two cores
the simulated device has one and the host the other. With more, both sides' libraries wait for one another's cores in
A, and a ratio says little about the framework: a real device takes no core at all.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import _one_thread  # noqa: F401
import torch
from _rows import Rows, arguments

from hzo_hil import Opaque, Stage
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import chip
from hzo_hil.updates.delta import DeltaRule

DEPTH, WIDTH, BATCH, MAX_BATCH = 16, 64, 64, 8192
DEVICES: dict[str, tuple[str, str, str]] = {
    # name: preset, activation, target
    "emulator": ("aihwkit", "tanh", "<= 1.25"),
    "linear": ("ideal", "none", "<= 2"),
}


class Recorded(SimulatedDevice):
    """Keeps the arguments of every query while `log` is a list."""

    log: list[tuple[Any, Any, dict[str, Any]]] | None = None

    def run(self, segment: Any, inputs: Any, **options: Any) -> Any:
        if self.log is not None:
            self.log.append((segment, inputs.copy(), {k: _copied(v) for k, v in options.items()}))
        return super().run(segment, inputs, **options)


def _copied(value: Any) -> Any:
    return value.copy() if hasattr(value, "copy") else value


def network(device_name: str, tree: str, probes: str) -> tuple[Recorded, Opaque]:
    preset, activation, _ = DEVICES[device_name]
    options = {"widths": [WIDTH] * (DEPTH + 1), "activation": activation, "last_activation": True}
    device = Recorded(chip.build("emulator", preset=preset, **options), max_batch=MAX_BATCH)
    derivative = "identity" if activation == "none" else activation
    stages = [Stage(device, k, leaf=DeltaRule(derivative)) for k in range(DEPTH)]
    # Every sample on its own, as the bare loop does it.
    return device, Opaque(stages, tree=tree, probes=probes, shared=False, max_saturated=1.0)


def ratios(device_name: str, tree: str, probes: str, pairs: int) -> tuple[list[float], list[float], int]:
    """Ratios of neighbouring timings, seconds of the bare loop, rows sent."""
    device, module = network(device_name, tree, probes)
    inputs = 0.5 * torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))

    def forward() -> torch.Tensor:
        return (module(inputs) ** 2).sum()

    loss = forward()
    device.log = []
    loss.backward()
    calls, device.log = device.log, None

    def bare() -> float:
        start = time.perf_counter()
        for segment, rows, options in calls:
            device.run(segment, rows, **options)
        return time.perf_counter() - start

    def backward() -> float:
        loss = forward()
        module.zero_grad()
        start = time.perf_counter()
        loss.backward()
        return time.perf_counter() - start

    backward(), bare()
    found, base = [], []
    before = bare()
    for _ in range(pairs):
        middle = backward()
        after = bare()
        # Between its two neighbours, a drift of the machine's speed cancels.
        found.append(middle / ((before + after) / 2))
        base.append(after)
        before = after
    return found, base, sum(len(rows) for _, rows, _ in calls)


def main() -> None:
    quick = arguments(__doc__).quick
    rows = Rows()
    rows.environment()
    for device_name, (_, _, target) in DEVICES.items():
        for tree in ("bisect", "chain"):
            for probes in ("coordinate", "hadamard"):
                found, base, sent = ratios(device_name, tree, probes, 7 if quick else 25)
                bare = statistics.median(base)
                rows.row(
                    f"{device_name} {tree} {probes}", statistics.median(found) * bare, "s", against="bare loop",
                    ratio=statistics.median(found), target=target, bare_s=bare, rows=sent,
                    spread=[round(min(found), 3), round(max(found), 3)], pairs=len(found),
                    threads=torch.get_num_threads(),
                )  # fmt: skip
    rows.exit()


if __name__ == "__main__":
    main()
