"""Whole chips by name: a list of stage models from a kind, a preset and options that override the preset.

Every fabrication draw depends on the chip's seed, the stage's place in the list and what is drawn, and is scaled
by its strength: the same chip can be looked at with more or less of one error. Knows nothing of devices; hiding
inner boundaries is theirs.
"""

from __future__ import annotations

from typing import Any

from hzo_hil.simulators.chip_conv_emulator import CONV_EMULATOR
from hzo_hil.simulators.chip_crossbar import CROSSBAR
from hzo_hil.simulators.chip_diffractive import DIFFRACTIVE
from hzo_hil.simulators.chip_emulator import EMULATOR
from hzo_hil.simulators.chip_meshes import ONN, SVD_ONN
from hzo_hil.simulators.chip_options import Kind
from hzo_hil.simulators.chip_ring_bank import RING_BANK
from hzo_hil.simulators.chip_tensor_core import TENSOR_CORE
from hzo_hil.simulators.model import StageModel

_KINDS: dict[str, Kind] = {
    "onn": ONN,
    "chip": ONN,
    "svd_onn": SVD_ONN,
    "emulator": EMULATOR,
    "conv_emulator": CONV_EMULATOR,
    "ring_bank": RING_BANK,
    "diffractive": DIFFRACTIVE,
    "crossbar": CROSSBAR,
    "tensor_core": TENSOR_CORE,
}


def build(kind: str, preset: str = "ideal", seed: int = 0, **options: Any) -> list[StageModel]:
    """Stage models of a chip.

    Kinds: "onn" and "chip" (`layers` meshes of `ports` ports, each followed by an activation, the last only with
    `last_activation`), "svd_onn" (real matrices between `widths`), "emulator" (`EmulatedLinear` stages between
    `widths`, or `layers` of one `width`), "ring_bank" and "crossbar" (as emulator, the activations stages of their
    own), "tensor_core" (so, too, or behind `convs` on an `image`), "conv_emulator" (emulated `convs` on an `image`,
    matrices behind), "diffractive" (`units` of `layers` masks of `pixels`). Every field of their models is an option.
    ValueError names what is known where a name is not.
    """
    effective = options_of(kind, preset, **options)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"the chip's seed must be an integer of at least 0, not {seed!r}")
    return _KINDS[kind].make(effective, seed)


def options_of(kind: str, preset: str = "ideal", **options: Any) -> dict[str, Any]:
    """Every option of a chip with its value: the kind's defaults, what the preset changes, what `options` change."""
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of chip {kind!r}: known are {', '.join(_KINDS)}")
    presets, defaults = _KINDS[kind].presets, _KINDS[kind].defaults
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r} for kind {kind!r}: known are {', '.join(presets)}")
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(f"unknown options for kind {kind!r}: {', '.join(unknown)}; known are {', '.join(defaults)}")
    return {**defaults, **presets[preset], **options}


def known() -> dict[str, list[str]]:
    """Presets by kind."""
    return {kind: list(made.presets) for kind, made in _KINDS.items()}
