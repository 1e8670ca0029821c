"""aihwkit's AnalogLinear with its default settings, without gradients; run by the environment of aihwkit.txt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aihwkit
import torch
from _answer import serve
from aihwkit.nn import AnalogLinear


def prepare(features: int, batch: int, threads: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = AnalogLinear(features, features).eval()
    inputs = torch.rand(batch, features) * 2 - 1

    def call() -> None:
        with torch.no_grad():
            layer(inputs)

    return call, {"aihwkit": aihwkit.__version__, "torch": torch.__version__, "tile": type(layer).__name__}


serve(prepare)
