"""photontorch's Clements network in the frequency domain; run by the environment of photontorch.txt."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import photontorch
import torch
from _answer import serve


def prepare(ports: int, batch: int, noisy: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    if noisy:
        raise ValueError("photontorch has no phase noise of its own for every sample")
    torch.set_num_threads(1)
    network = photontorch.ClementsNxN(ports).terminate()
    environment = photontorch.Environment(wl=1.55e-6, freqdomain=True, grad=False)
    light = torch.randn(1, 1, ports, batch)

    def call() -> Any:
        with torch.no_grad(), environment:
            network.initialize()  # from phases to matrices; else they are kept
            return network(light, power=False)

    facts = {"photontorch": version("photontorch"), "torch": torch.__version__}
    return call, {**facts, "shape": list(call().shape), "precision": "float32, real and imaginary part apart"}


serve(prepare)
