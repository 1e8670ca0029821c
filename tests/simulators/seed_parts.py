"""Every kind of chip with all its noise on, and its answers: `python -m tests.simulators.seed_parts FILE` stores them.

One table, so that a kind that is missing in it fails a test.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from hzo_hil.simulators import chip, noise
from hzo_hil.simulators.model import StageModel

ROWS = 1200
SECONDS = 33.3

DIODES = {"bandwidth": 2e10, "dark_current": 1e-8, "noise_std": 0.01}
MESH = {
    "coupler_std": 0.05, "phase_bias": 0.2, "gamma_std": 0.01, "crosstalk": 0.005, "loss_db": 0.1, "loss_std_db": 0.05,
    "programming_std": 0.05, "phase_bits": 8, "shot_phase_std": 0.03, "phase_drift_std": 0.05, **DIODES,
}  # fmt: skip
WIDTHS = {"widths": (6, 5, 4)}
SHAPES: dict[str, dict[str, Any]] = {
    "onn": {"layers": 2, "ports": 6},
    "chip": {"layers": 2, "ports": 5, "detection": "intensity", "signed_inputs": False},
    "svd_onn": WIDTHS,
    "emulator": WIDTHS,
    "ring_bank": {**WIDTHS, "wdm": True},
    "diffractive": {"layers": 2, "pixels": 16, "input_pixels": 4, "detectors": 4, "detector_pixels": 4},
    "crossbar": WIDTHS,
    "tensor_core": {**WIDTHS, "core": 4},
    "conv_emulator": {"image": (1, 4, 5), "convs": ((3, 3, 1, 1), (2, 3)), "widths": (4,), "activation": "tanh"},
}
"""A small chip of every kind."""

NOISE: dict[str, dict[str, Any]] = {
    "onn": MESH,
    "chip": MESH,
    "svd_onn": MESH,
    "emulator": {
        "read_noise_std": 0.05, "write_noise": 0.05, "weight_mismatch": 0.1, "slope_mismatch": 0.1,
        "input_noise_std": 0.03,
    },
    "ring_bank": {
        "resonance_std": 1e9, "crosstalk": 0.005, "programming_std": 0.01, "drift_std": 1e9, **DIODES,
    },
    "diffractive": {
        "shift_std": 0.3, "distance_std": 1e-5, "mask_std": 0.1, "programming_std": 0.1, "drift_std": 0.2,
        "shot_phase_std": 0.1, "loss_db": 0.1, **DIODES,
    },
    "crossbar": {
        "write_noise": (0.02, 0.03), "stuck": 0.1, "read_noise": 0.05, "drift_nu": 0.05, "drift_nu_std": 0.02,
        "wire_resistance": 1.0, "bandwidth": 1e9, "amplifier_noise": 1e-9, "noise_std": 0.01,
    },
    "tensor_core": MESH,
    "conv_emulator": {"read_noise_std": 0.05, "write_noise": 0.05},
}  # fmt: skip
"""All of its noise, in front of any converter."""

POISSON = {"statistics": "poisson", "integration_s": 1e-9}
ENDS = {"in_bits": 8, "in_bound": 1.0, "out_bits": 8, "out_bound": 2.0}
CONVERTERS: dict[str, dict[str, Any]] = {
    **{kind: {**ENDS, **POISSON} for kind in SHAPES},
    "emulator": {**ENDS, "accumulate_format": "bf16", "rounding": "stochastic", "activation": "identity"},
    "crossbar": ENDS,
    "conv_emulator": ENDS,
}
"""What makes steps of it all."""


def models(kind: str, converters: bool = False, seed: int = 3) -> list[StageModel]:
    ends = CONVERTERS[kind] if converters else {}
    return chip.build(kind, seed=seed, **SHAPES[kind], **NOISE[kind], **ends)


def values(model: StageModel) -> dict[str, Any]:
    return model.initial(np.random.default_rng(5))


def rows(model: StageModel, dtype: Any = np.float32, count: int = ROWS) -> Any:
    low = -1.0 if model.input.low < 0 else 0.0
    return np.random.default_rng(6).uniform(low, 1, (count, model.in_width)).astype(dtype)


def keys(count: int = ROWS) -> Any:
    return noise.derive(np.arange(count, dtype=np.uint64), 7)


def state(model: StageModel, write: int = 1, seconds: float = SECONDS) -> Any:
    return model.at(model.program(values(model), write), seconds)


def stages() -> Iterator[tuple[str, StageModel, bool]]:
    """(name, model, whether there is a converter) of every stage of every chip, with and without converters."""
    for kind in SHAPES:
        for converters in (False, True):
            for model in models(kind, converters):
                yield f"{kind}/{model.name}/{'converted' if converters else 'plain'}", model, converters


def answer(model: StageModel) -> Any:
    return model.run(state(model), rows(model), keys())


if __name__ == "__main__":
    np.savez(sys.argv[1], **{name: answer(model) for name, model, _ in stages()})
