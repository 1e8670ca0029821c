"""neuroptica's rectangular mesh; run by the environment of neuroptica.txt."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import neuroptica
import numpy as np
from _answer import serve


def prepare(ports: int, batch: int, noisy: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    if noisy:
        raise ValueError("neuroptica has no phase noise of its own for every sample")
    layer = neuroptica.ClementsLayer(ports)
    rng = np.random.default_rng(0)
    light = (rng.standard_normal((ports, batch)) + 1j * rng.standard_normal((ports, batch))).astype(np.complex64)
    facts = {"neuroptica": version("neuroptica"), "numpy": np.__version__}
    return lambda: layer.forward_pass(light), {**facts, "precision": str(layer.forward_pass(light).dtype)}


serve(prepare)
