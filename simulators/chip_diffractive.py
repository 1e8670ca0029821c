"""Chips of free-space optics: units of phase masks between an image and a camera, one behind the other."""

from __future__ import annotations

from typing import Any

from hzo_hil.simulators import chip_options as take
from hzo_hil.simulators.chip_options import Kind, Options
from hzo_hil.simulators.diffractive import Diffractive, OpticsErrors
from hzo_hil.simulators.image_plane import spots
from hzo_hil.simulators.model import StageModel

_ERRORS = take.defaults_of(OpticsErrors)
_OPTICS = {"pitch": 8e-6, "wavelength": 532e-9, "distance": 2e-3, "scale": 1.0}

DIFFRACTIVE_PRESETS: dict[str, dict[str, Any]] = {
    "ideal": {},
    # Printed masks at 0.4 THz, 0.4 mm pixels, 3 cm apart (Lin et al., Science 361, 1004, 2018).
    "terahertz": {"wavelength": 0.75e-3, "pitch": 0.4e-3, "distance": 30e-3},
    # Liquid crystal on silicon: 8 um pixels with 256 levels over 2 pi (data sheet of the PLUTO-2 of HOLOEYE). Lateral
    # misalignment of a quarter of a pixel is an assumption.
    "lcos": {"phase_bits": 8, "shift_std": 0.25},
}


def _diffractive(o: Options, seed: int) -> list[StageModel]:
    units, pixels = take.count(o, "units"), take.count(o, "pixels")
    side = take.count(o, "input_pixels", least=0) or pixels
    models: list[StageModel] = []
    for unit in range(units):
        last = unit == units - 1
        detectors = spots(pixels, o["detectors"], take.count(o, "detector_pixels")) if last and o["detectors"] else ()
        models.append(
            Diffractive(
                pixels, take.count(o, "layers"), detectors, side, take.count(o, "camera", least=0) if last else side,
                **take.taken(o, _OPTICS), errors=OpticsErrors(**take.taken(o, _ERRORS)), drift=take.wander(o),
                detector=take.detector(o, "intensity"), input=take.input_port(o), output=take.output_port(o, False),
                seed=seed, index=len(models), name=f"optics{unit + 1}",
            )
        )  # fmt: skip
        models += take.activation(o, models[-1].out_width, unit, units)
    return models


DIFFRACTIVE = Kind(
    _diffractive,
    DIFFRACTIVE_PRESETS,
    {
        "units": 1, "layers": 2, "pixels": 32, "input_pixels": 8, "detectors": 10, "detector_pixels": 5, "camera": 0,
        **_OPTICS, **_ERRORS, **take.WANDER, **take.DETECTOR, **take.PORTS, **take.ACTIVATION, "activation": "none",
    },
)  # fmt: skip
