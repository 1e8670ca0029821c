"""Chips of blocked photonic tensor cores: convolutions on an image first, then matrices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hzo_hil.simulators import chip_meshes
from hzo_hil.simulators import chip_options as take
from hzo_hil.simulators.chip_options import Kind, Options
from hzo_hil.simulators.conv_core import ConvCore
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.patches import Patches
from hzo_hil.simulators.tensor_core import TensorCore


def _tensor_core(o: Options, seed: int) -> list[StageModel]:
    patches, channels, widths = image_plan(o)
    layers = len(channels) + max(len(widths) - 1, 0)
    models: list[StageModel] = []
    for layer in range(layers):
        if layer < len(channels):
            place = patches[layer]
            core = _core(o, place.size, channels[layer], seed, len(models), f"conv{layer + 1}")
            models.append(ConvCore(place, core))
        else:
            left, right = list(itertools.pairwise(widths))[layer - len(channels)]
            models.append(_core(o, left, right, seed, len(models), f"core{layer + 1}"))
        models += take.activation(o, models[-1].out_width, layer, layers, take.detector(o, "homodyne"))
    return models


def _core(o: Options, left: int, right: int, seed: int, index: int, name: str) -> TensorCore:
    return TensorCore(
        left, right, core=take.count(o, "core"), shared=o["shared"], partial_sums=o["partial_sums"], scheme=o["scheme"],
        errors=chip_meshes.errors(o), detector=take.detector(o, "homodyne"), input=take.input_port(o),
        converter=take.output_port(o, True), seed=seed, index=index, name=name,
    )  # fmt: skip


def image_plan(o: Options) -> tuple[list[Patches], list[int], Sequence[int]]:
    """Where each convolution looks, how many channels it gives, and the widths of the matrices behind them."""
    if not o["convs"]:
        if o["image"]:
            raise ValueError("an image is for convolutions: give convs, or widths alone")
        return [], [], take.widths(o)
    if len(o["image"]) != 3:
        raise ValueError(f"convs need an image [channels, height, width], not {o['image']!r}")
    channels, height, width = o["image"]
    patches, given = [], []
    for conv in o["convs"]:
        if not 2 <= len(conv) <= 4 or any(not isinstance(v, int) for v in conv):
            raise ValueError(
                f"a convolution is [channels, kernel, stride, padding] (1 and 0 if left out), not {conv!r}"
            )
        out, kernel, stride, padding = list(conv) + [1, 0][len(conv) - 2 :]
        patches.append(Patches(channels, height, width, kernel, stride, padding))
        channels, (height, width) = out, patches[-1].out_shape
        given.append(out)
    return patches, given, [channels * height * width, *o["widths"]]


TENSOR_CORE = Kind(
    _tensor_core,
    chip_meshes.MESH_PRESETS,
    {
        "widths": (), "layers": 2, "width": 16, "image": (), "convs": (), "core": 8, "shared": False,
        "partial_sums": "analog", **take.ACTIVATION, **chip_meshes.PHYSICS,
    },
)  # fmt: skip
