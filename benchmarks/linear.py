"""A linear layer with converters and noise against the bare layer; casts to small formats against torch's own.

The layer: 256 x 256, batch 1024, float32: 7-bit input converter, matrix, bias, read noise, 9-bit output converter, the
values of aihwkit's defaults. "F.linear" is torch.nn.functional.linear on the same arrays, timed in turn with ours.
"numpy" rows come from a second process with HZO_HIL_NATIVE=0: what remains where the kernels are not built. "served"
goes through a simulated device as dispatch calls it. On a machine with a CUDA device the layer is timed there, too.

Casts: `x.to(format).to(float32)` of torch, in torch's own rounding (nearest), against both roundings of ours;
fixed point against torch's fake_quantize. `--peer aihwkit=PYTHON` times aihwkit's AnalogLinear beside ours, with the
interpreter of an environment made from peers/aihwkit.txt.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import _one_thread  # noqa: F401
import numpy as np
import torch
from _peers import Peer, interpreters, missing
from _rows import Rows, arguments
from _timing import in_turn, middle, ratio, spread

from hzo_hil.devices.api import Segment
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import native
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.lowprecision import cast

FEATURES, BATCH = 256, 1024
CONVERTERS: dict[str, Any] = {"in_bits": 7, "in_bound": 1.0, "out_bits": 9, "out_bound": 12.0, "read_noise_std": 0.06}
FORMATS = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fixed1.6": None,
}


class Layer:
    """Our layer and torch's, with the same numbers."""

    def __init__(self) -> None:
        self.model = EmulatedLinear(FEATURES, FEATURES, **CONVERTERS)
        self.values = self.model.initial(np.random.default_rng(0))
        self.state = self.model.program(self.values, 1)
        self.inputs = np.random.default_rng(1).uniform(-1, 1, (BATCH, FEATURES)).astype(np.float32)
        self.keys = np.arange(BATCH, dtype=np.uint64)

    def ours(self) -> Any:
        return self.model.run(self.state, self.inputs, self.keys)

    def served(self) -> Callable[[], Any]:
        device = SimulatedDevice([self.model])
        device.write(0, self.values)
        return lambda: device.run(Segment(0, 1), self.inputs, keys=self.keys)

    def bare(self, place: str = "cpu") -> Callable[[], Any]:
        weight, bias, inputs = (self._tensor(v, place) for v in (*self.values.values(), self.inputs))
        return lambda: torch.nn.functional.linear(inputs, weight, bias)

    def by_torch(self, place: str = "cpu") -> Callable[[], Any]:
        inputs = self._tensor(self.inputs, place)
        keys = torch.arange(BATCH, device=place)
        return lambda: self.model.run(self.state, inputs, keys)

    @staticmethod
    def _tensor(array: Any, place: str) -> torch.Tensor:
        return torch.tensor(array, dtype=torch.float32, device=place)


def layer_rows(rows: Rows, rounds: int, target: str | None, peers: dict[str, str]) -> None:
    layer = Layer()
    calls: dict[str, Callable[[], Any]] = {"F.linear": layer.bare(), "ours": layer.ours, "served": layer.served()}
    with ExitStack() as stack:
        facts: dict[str, Any] = {}
        if "aihwkit" in peers:
            setting = {"features": FEATURES, "batch": BATCH, "threads": torch.get_num_threads()}
            peer = stack.enter_context(Peer(peers["aihwkit"], "aihwkit_linear.py", **setting))
            calls["aihwkit"], facts = peer.seconds, peer.facts
        found = in_turn(calls, rounds)
    route = native.route()
    for name, case in (("ours", "layer"), ("served", "layer served")):
        rows.row(
            f"{case} {FEATURES} x {FEATURES}, batch {BATCH}", middle(found, name), "s", against="F.linear",
            ratio=ratio(found, name, "F.linear"), target=target if name == "ours" else None,
            quartiles=spread(found, name, "F.linear"), linear_s=middle(found, "F.linear"), route=route, rounds=rounds,
        )  # fmt: skip
    if "aihwkit" in found:
        rows.row(
            "aihwkit AnalogLinear, default settings", middle(found, "aihwkit"), "s", against="ours",
            ratio=ratio(found, "aihwkit", "ours"), target=">= 6" if target else None,
            quartiles=spread(found, "aihwkit", "ours"), ours_s=middle(found, "ours"), route=route, **facts,
        )  # fmt: skip
    elif target:
        rows.row("aihwkit AnalogLinear, default settings", missing("aihwkit"), "none")


def torch_rows(rows: Rows, place: str, rounds: int) -> None:
    """The route of tensors: on the processor, and on a GPU where there is one."""
    layer = Layer()
    wait = torch.cuda.synchronize if place == "cuda" else lambda: None
    calls = {"F.linear": layer.bare(place), "ours": layer.by_torch(place)}
    timed = {name: lambda call=call: (call(), wait()) for name, call in calls.items()}
    found = in_turn(timed, rounds)
    rows.row(
        f"layer by torch on {place}", middle(found, "ours"), "s", against="F.linear",
        ratio=ratio(found, "ours", "F.linear"), quartiles=spread(found, "ours", "F.linear"),
        device=torch.cuda.get_device_name() if place == "cuda" else "cpu", rounds=rounds,
    )  # fmt: skip


def cast_rows(rows: Rows, rounds: int) -> None:
    values = np.random.default_rng(0).standard_normal((BATCH, FEATURES)).astype(np.float32)
    tensor, keys = torch.from_numpy(values), np.arange(BATCH, dtype=np.uint64)
    for name, kind in FORMATS.items():
        calls: dict[str, Callable[[], Any]] = {
            "torch": (lambda kind=kind: tensor.to(kind).to(torch.float32))
            if kind
            else lambda: torch.fake_quantize_per_tensor_affine(tensor, 2.0**-6, 0, -127, 127),
            "nearest": lambda name=name: cast(values, name),
            "saturating": lambda name=name: cast(values, name, saturate=True),
            "stochastic": lambda name=name: cast(values, name, "stochastic", keys),
        }
        found = in_turn(calls, rounds)
        for way in ("nearest", "saturating", "stochastic"):
            rows.row(
                f"cast {name} {way}, {BATCH} x {FEATURES}", middle(found, way), "s",
                against="x.to(format).to(float32)" if kind else "fake_quantize", ratio=ratio(found, way, "torch"),
                quartiles=spread(found, way, "torch"), torch_s=middle(found, "torch"), route=native.route(),
            )  # fmt: skip


def main() -> None:
    peers = interpreters()
    given = arguments(__doc__, fallback="only the rows of the numpy route (used by the benchmark itself)")
    rounds = 30 if given.quick else 200
    rows = Rows()
    if given.fallback:
        layer_rows(rows, rounds // 3, None, {})
        cast_rows(rows, rounds // 6)
        return
    rows.environment()
    layer_rows(rows, rounds, "<= 3" if native.library() else None, peers)
    for place in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        torch_rows(rows, place, rounds // 4)
    cast_rows(rows, rounds // 2)
    if native.library():
        command = [sys.executable, __file__, "--fallback", *(["--quick"] if given.quick else [])]
        subprocess.run(command, env={**os.environ, native.OFF: "0"}, check=True)
    rows.exit()


if __name__ == "__main__":
    main()
