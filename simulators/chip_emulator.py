"""Chips of low-precision emulator stages: a matrix between converters and its activation, one stage a layer."""

from __future__ import annotations

import itertools
from typing import Any

from hzo_hil.simulators import chip_options as take
from hzo_hil.simulators.chip_options import Kind, Options
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.model import StageModel

# Defaults of aihwkit's forward pass (Rasch et al., arXiv 2104.02184).
CONVERTERS: dict[str, Any] = {"in_bits": 7, "in_bound": 1.0, "out_bits": 9, "out_bound": 12.0}
OUTPUT_NOISE = 0.06

EMULATOR_PRESETS: dict[str, dict[str, Any]] = {
    "ideal": {},
    "aihwkit": {**CONVERTERS, "read_noise_std": OUTPUT_NOISE},
    # Coupled oscillators as simulated for physics-aware training (Wright et al., Nature 601, 549, 2022).
    "oscillators": {"weight_mismatch": 0.2, "slope_mismatch": 0.1, "input_noise_std": 0.02},
}

_OWN = take.defaults_of(EmulatedLinear, without=["in_features", "out_features", "activation", "name", "seed", "index"])


def _emulator(o: Options, seed: int) -> list[StageModel]:
    widths = take.widths(o)
    last = len(widths) - 2
    return [
        EmulatedLinear(
            left, right, activation=o["activation"] if layer < last or o["last_activation"] else "none",
            name=f"linear{layer + 1}", seed=seed, index=layer, **take.taken(o, _OWN),
        )
        for layer, (left, right) in enumerate(itertools.pairwise(widths))
    ]  # fmt: skip


EMULATOR = Kind(
    _emulator,
    EMULATOR_PRESETS,
    {"widths": (), "layers": 2, "width": 64, "activation": "tanh", "last_activation": False, **_OWN},
)
