"""Chips of microring weight banks, with a digital activation behind each."""

from __future__ import annotations

import itertools
from typing import Any

from hzo_hil.simulators import chip_options as take
from hzo_hil.simulators.chip_options import Kind, Options
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.ring import Ring
from hzo_hil.simulators.ring_bank import RingBank
from hzo_hil.simulators.ring_heaters import BankErrors

_RING, _ERRORS = take.defaults_of(Ring), take.defaults_of(BankErrors)
_BANK = {"trained": "weight", "spacing": 0.0, "wdm": True, "scale": 1.0}

RING_PRESETS: dict[str, dict[str, Any]] = {
    # Rings without loss, critically coupled, whose channels do not disturb each other.
    "ideal": {"wdm": False},
    # Rings of torchonn (Gu et al.) by quality: r and a of its 5 um rings, here with a second bus, so that the loaded Q
    # is lower (4514, 669, 297; torchonn gives 6755, 1021, 610 for one bus) and weights reach only 0.21 to 0.31.
    "hq": {"r1": 0.99, "r2": 0.99, "a": 0.987},
    "mq": {"r1": 0.93, "r2": 0.93, "a": 0.925},
    "lq": {"r1": 0.85, "r2": 0.85, "a": 0.845},
    # Silicon wires of 2.5 dB/cm (Bogaerts et al., Laser Photonics Rev. 6, 47, 2012) and weights held by feedback:
    # 2.4e-4 rad at the steepest point are 9 bits of the range of weights (Zhang et al., Optica 9, 579, 2022).
    "feedback_bank": {"a": 0.9991, "programming_std": 2.4e-4, **take.PHOTODETECTOR},
}


def _ring_bank(o: Options, seed: int) -> list[StageModel]:
    widths = take.widths(o)
    models: list[StageModel] = []
    for layer, (left, right) in enumerate(itertools.pairwise(widths)):
        models.append(
            RingBank(
                left, right, Ring(**take.taken(o, _RING)), **take.taken(o, _BANK), signed=o["signed_inputs"],
                errors=BankErrors(**take.taken(o, _ERRORS)), drift=take.wander(o),
                detector=take.detector(o, "intensity"), input=take.input_port(o), output=take.output_port(o, True),
                seed=seed, index=len(models), name=f"rings{layer + 1}",
            )
        )  # fmt: skip
        models += take.activation(o, right, layer, len(widths) - 1)
    return models


RING_BANK = Kind(
    _ring_bank,
    RING_PRESETS,
    {
        "widths": (), "layers": 2, "width": 8, **_BANK, **_RING, **_ERRORS, **take.WANDER, **take.DETECTOR,
        **take.PORTS, "signed_inputs": False, **take.ACTIVATION, "activation": "sigmoid",
    },
)  # fmt: skip
