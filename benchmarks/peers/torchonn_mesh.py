"""torchonn's linear layer of two meshes, phase noise drawn at every call; run by the environment of torchonn.txt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from _answer import serve

# Without its CUDA part torchonn stumbles over the part's names, also on the way to its routes for the CPU.
names = [f"{verb}_{scheme}" for verb in ("decompose", "reconstruct") for scheme in ("clements", "reck", "francis")]
sys.modules["matrix_parametrization_cuda"] = SimpleNamespace(**dict.fromkeys(names))  # type: ignore[assignment]
from torchonn.layers import MZIBlockLinear  # noqa: E402


def prepare(ports: int, batch: int, noisy: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    if noisy:
        raise ValueError("torchonn draws one phase noise for a whole batch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = MZIBlockLinear(ports, ports, miniblock=(1, 1, ports, ports), mode="phase")
    layer.reset_parameters()
    layer.set_phase_variation(0.02)
    light = torch.randn(batch, ports)

    def call() -> Any:
        with torch.no_grad():
            return layer(light)

    call()
    facts = {"torchonn": version("torchonn"), "torch": torch.__version__}
    return call, {**facts, "precision": "float32, real rotations", "meshes": 2}


serve(prepare)
