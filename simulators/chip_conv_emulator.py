"""Chips of emulated convolutions on an image, then emulated matrices, the activations stages of their own."""

from __future__ import annotations

import itertools
from typing import Any

from hzo_hil.simulators import chip_options as take
from hzo_hil.simulators.chip_emulator import CONVERTERS, OUTPUT_NOISE
from hzo_hil.simulators.chip_options import Kind, Options
from hzo_hil.simulators.chip_tensor_core import image_plan
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach, StageModel

_OWN = take.defaults_of(EmulatedConv, without=["reach", "name"])


def _conv_emulator(o: Options, seed: int) -> list[StageModel]:
    if not o["convs"]:
        raise ValueError("conv_emulator needs an image and convs: matrices alone are the kind emulator")
    patches, channels, widths = image_plan(o)
    pairs = list(itertools.pairwise(widths))
    layers = len(channels) + len(pairs)
    models: list[StageModel] = []
    for layer in range(layers):
        if layer < len(channels):
            p = patches[layer]
            both = ((p.height, p.width), (p.kernel,) * 2, (p.stride,) * 2, (p.padding,) * 2, (1, 1))
            reach = Reach(p.channels, channels[layer], *both, circular=o["circular"])
            models.append(EmulatedConv(reach, name=f"conv{layer + 1}", **take.taken(o, _OWN)))
        else:
            left, right = pairs[layer - len(channels)]
            models.append(EmulatedLinear(left, right, name=f"linear{layer + 1}", **take.taken(o, _OWN)))
        models += take.activation(o, models[-1].out_width, layer, layers)
    return models


PRESETS: dict[str, dict[str, Any]] = {"ideal": {}, "aihwkit": {**CONVERTERS, "read_noise_std": OUTPUT_NOISE}}

CONV_EMULATOR = Kind(
    _conv_emulator,
    PRESETS,
    {
        "image": (1, 8, 8), "convs": ((4, 3, 1, 1),), "widths": (), "circular": False, **take.ACTIVATION,
        "activation": "relu", **_OWN,
    },
)  # fmt: skip
