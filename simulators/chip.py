"""Whole chips by name: a list of stage models from a kind, a preset and options that override the preset.

Every fabrication draw depends on the chip's seed, the stage's place in the list and what is drawn, and is scaled
by its strength: the same chip can be looked at with more or less of one error. Knows nothing of devices; hiding
inner boundaries is theirs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hzo_hil.simulators.converters import uniform_port
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.elementwise import Elementwise
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.mesh_stage import MeshStage
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.svd_stage import SVDStage

Options = Mapping[str, Any]

# Photodetector of photontorch (Laporte et al., Sci. Rep. 9, 5918, 2019): its defaults.
_PHOTODETECTOR = {
    "responsivity": 1.0, "dark_current": 1e-10, "load": 166.0, "temperature": 300.0, "bandwidth": 20e9,
    "full_scale": 1e-3,
}  # fmt: skip
# Heaters of L2ight (Gu et al., NeurIPS 2021, arXiv 2110.14807): 4.36 V for pi, 8 bits over 10.8 V.
_HEATERS = {"phase_bits": 8, "v_pi": 4.36, "v_max": 10.8, "crosstalk": 0.005}

MESH_PRESETS: dict[str, dict[str, Any]] = {
    "ideal": {},
    # Coupler spread as in the tests of simphox (Williamson, Pai et al.). Calibrated with every shifter at half its
    # range, which leaves small phase errors and the crosstalk of what is set differently since.
    "calibrated_chip": {
        "coupler_std": 0.02,
        "phase_bias": 0.15,
        "calibrated_at": math.pi,
        **_HEATERS,
        **_PHOTODETECTOR,
    },
    # L2ight as published: biases nobody knows, heaters that differ.
    "l2ight_chip": {"phase_bias": 1.0, "bias_law": "uniform", "gamma_std": 0.002, **_HEATERS},
    # Uncalibrated couplers as in the tests of neurophox (Pai et al., Phys. Rev. Applied 11, 064044, 2019).
    "splitter_chip": {"coupler_std": 0.1},
}
EMULATOR_PRESETS: dict[str, dict[str, Any]] = {
    "ideal": {},
    # Defaults of aihwkit's forward pass (Rasch et al., arXiv 2104.02184).
    "aihwkit": {"in_bits": 7, "in_bound": 1.0, "out_bits": 9, "out_bound": 12.0, "read_noise_std": 0.06},
}

_ERRORS = {f.name: f.default for f in fields(MeshErrors)}
_DETECTOR = {f.name: f.default for f in fields(Detector) if f.name != "kind"}
_PORTS = {"in_bits": 0, "in_bound": math.inf, "signed_inputs": True, "out_bits": 0, "out_bound": math.inf}
_ACTIVATION = {"activation": "electro_optic", "gain": 1.0, "last_activation": False}
_PHYSICS = {**_ERRORS, **_DETECTOR, **_PORTS}
_EMULATED = {
    "in_bits": 0, "in_bound": math.inf, "out_bits": 0, "out_bound": math.inf, "read_noise_std": 0.0, "write_noise": 0.0,
    "weight_bound": math.inf, "weight_format": "float", "accumulate_format": "float", "rounding": "nearest",
    "bias": True, "signed": True,
}  # fmt: skip


def build(kind: str, preset: str = "ideal", seed: int = 0, **options: Any) -> list[StageModel]:
    """Stage models of a chip.

    Kinds: "onn" and "chip" (`layers` meshes of `ports` ports, each followed by an activation, the last only with
    `last_activation`), "svd_onn" (real matrices between `widths`), "emulator" (`EmulatedLinear` stages
    between `widths`, or `layers` of one `width`). Every field of `MeshErrors` and `Detector` (of `EmulatedLinear` for
    the emulator) is an option. ValueError names what is known where a name is not.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of chip {kind!r}: known are {', '.join(_KINDS)}")
    make, presets, defaults = _KINDS[kind]
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r} for kind {kind!r}: known are {', '.join(presets)}")
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(f"unknown options for kind {kind!r}: {', '.join(unknown)}; known are {', '.join(defaults)}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"the chip's seed must be an integer of at least 0, not {seed!r}")
    return make({**defaults, **presets[preset], **options}, seed)


def _meshes(o: Options, seed: int) -> list[StageModel]:
    layers, ports = _count(o, "layers"), _count(o, "ports")
    models: list[StageModel] = []
    for layer in range(layers):
        models.append(
            MeshStage(
                ports, detection=o["detection"], errors=_errors(o), detector=_detector(o, o["detection"]),
                input=_input(o), output=_output(o, o["detection"]), seed=seed, index=len(models),
                name=f"mesh{layer + 1}",
            )
        )  # fmt: skip
        models += _activation(o, ports, layer, layers)
    return models


def _svd(o: Options, seed: int) -> list[StageModel]:
    widths = _widths(o)
    models: list[StageModel] = []
    for layer, (left, right) in enumerate(itertools.pairwise(widths)):
        models.append(
            SVDStage(
                left, right, trained=o["trained"], scale=o["scale"], errors=_errors(o),
                detector=_detector(o, "homodyne"), input=_input(o),
                output=_output(o, "homodyne"), seed=seed, index=len(models), name=f"svd{layer + 1}",
            )
        )  # fmt: skip
        models += _activation(o, right, layer, len(widths) - 1)
    return models


def _emulator(o: Options, seed: int) -> list[StageModel]:
    widths = _widths(o)
    last = len(widths) - 2
    own = {name: o[name] for name in _EMULATED}
    return [
        EmulatedLinear(
            left, right, activation=o["activation"] if layer < last or o["last_activation"] else "none",
            name=f"linear{layer + 1}", **own,
        )
        for layer, (left, right) in enumerate(itertools.pairwise(widths))
    ]  # fmt: skip


def _activation(o: Options, width: int, layer: int, layers: int) -> list[StageModel]:
    """The activation behind a layer, read by the same detectors as the meshes; none where none is wanted."""
    if o["activation"] == "none" or (layer == layers - 1 and not o["last_activation"]):
        return []
    detector = _detector(o, "homodyne")
    return [Elementwise(width, o["activation"], o["gain"], detector, name=f"{o['activation']}{layer + 1}")]


def _errors(o: Options) -> MeshErrors:
    return MeshErrors(**{name: o[name] for name in _ERRORS})


def _detector(o: Options, kind: Any) -> Detector:
    return Detector(kind, **{name: o[name] for name in _DETECTOR})


def _input(o: Options) -> Any:
    return uniform_port(o["in_bits"], -o["in_bound"] if o["signed_inputs"] else 0.0, o["in_bound"])


def _output(o: Options, detection: str) -> Any:
    return uniform_port(o["out_bits"], 0.0 if detection == "intensity" else -o["out_bound"], o["out_bound"])


def _count(o: Options, name: str) -> int:
    value = o[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    return value


def _widths(o: Options) -> Sequence[int]:
    widths = o["widths"]
    if not widths and "layers" in o:
        return [_count(o, "width")] * (_count(o, "layers") + 1)
    if len(widths) < 2 or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(f"widths must be at least two integers of at least 1, not {widths!r}")
    return list(widths)


Make = Callable[[Options, int], list[StageModel]]
_ONN = {"layers": 4, "ports": 32, "detection": "homodyne", **_ACTIVATION, **_PHYSICS}
_KINDS: dict[str, tuple[Make, dict[str, dict[str, Any]], dict[str, Any]]] = {
    "onn": (_meshes, MESH_PRESETS, _ONN),
    "chip": (_meshes, MESH_PRESETS, _ONN),
    "svd_onn": (_svd, MESH_PRESETS, {"widths": (), "trained": "weight", "scale": 1.0, **_ACTIVATION, **_PHYSICS}),
    "emulator": (
        _emulator,
        EMULATOR_PRESETS,
        {"widths": (), "layers": 2, "width": 64, "activation": "tanh", "last_activation": False, **_EMULATED},
    ),
}


def known() -> dict[str, list[str]]:
    """Presets by kind."""
    return {kind: list(presets) for kind, (_, presets, _) in _KINDS.items()}
