"""Chips of analog crossbars, with a digital activation behind each."""

from __future__ import annotations

import itertools
from typing import Any

from hzo_hil.simulators import chip_options as take
from hzo_hil.simulators.cells import Cells
from hzo_hil.simulators.chip_emulator import CONVERTERS, OUTPUT_NOISE
from hzo_hil.simulators.chip_options import Kind, Options
from hzo_hil.simulators.crossbar import Crossbar
from hzo_hil.simulators.drift import PowerLaw
from hzo_hil.simulators.model import StageModel

_CELLS = take.defaults_of(Cells, without=["drift"])
_DRIFT = {f"drift_{name}": value for name, value in take.defaults_of(PowerLaw).items()}
_OWN = take.defaults_of(Crossbar, without=["in_features", "out_features", "cells", "seed", "index", "name"])

# A read of about 1 % short-term noise is what aihwkit advises to add for resistive memory.
_READ_NOISE = 0.01

CROSSBAR_PRESETS: dict[str, dict[str, Any]] = {
    "ideal": {},
    # Phase-change cells: write noise as in aihwkit's model after Nandakumar et al., ICECS 2019 (microsiemens, of 25);
    # drift exponents amid those of its model for a tenth of g_max (0.060 +- 0.023) and for all of it (0.049 +-
    # 0.008).
    "pcm": {
        "g_max": 25e-6,
        "write_noise": (0.26348 / 25, 1.9650 / 25, -1.1731 / 25),
        "read_noise": _READ_NOISE,
        "drift_nu": 0.055,
        "drift_nu_std": 0.015,
        "drift_t0_s": 20.0,
        "noise_std": OUTPUT_NOISE,
        **CONVERTERS,
    },
    # Filamentary cells of Wan et al., Nature 608, 504 (2022): 1 to 40 microsiemens; how far they are off 1 s after a
    # write, as aihwkit fitted it. 0.5 ohm a segment of wire is the example of badcrossbar (Joksas and Mehonic,
    # SoftwareX 2020).
    "rram": {
        "g_min": 1e-6,
        "g_max": 40e-6,
        "write_noise": (0.348 / 40, 16.030 / 40, -43.853 / 40, 45.393 / 40, -16.815 / 40),
        "read_noise": _READ_NOISE,
        "wire_resistance": 0.5,
        "noise_std": OUTPUT_NOISE,
        **CONVERTERS,
    },
}


def _crossbar(o: Options, seed: int) -> list[StageModel]:
    widths = take.widths(o)
    cells = take.taken(o, _CELLS) | {"write_noise": tuple(o["write_noise"])}
    drift = PowerLaw(**{name.removeprefix("drift_"): o[name] for name in _DRIFT})
    models: list[StageModel] = []
    for layer, (left, right) in enumerate(itertools.pairwise(widths)):
        models.append(
            Crossbar(
                left, right, cells=Cells(**cells, drift=drift), **take.taken(o, _OWN), seed=seed, index=len(models),
                name=f"crossbar{layer + 1}",
            )
        )  # fmt: skip
        models += take.activation(o, right, layer, len(widths) - 1)
    return models


CROSSBAR = Kind(
    _crossbar,
    CROSSBAR_PRESETS,
    {"widths": (), "layers": 2, "width": 64, **_CELLS, **_DRIFT, **_OWN, **take.ACTIVATION, "activation": "tanh"},
)
