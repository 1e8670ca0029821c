"""Chips of interferometer meshes: square meshes whose phases are trained, and real matrices made of two meshes each."""

from __future__ import annotations

import itertools
import math
from typing import Any

from hzo_hil.simulators import chip_options as take
from hzo_hil.simulators.chip_options import Kind, Options
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.mesh_stage import MeshStage
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.svd_stage import SVDStage

ERRORS = take.defaults_of(MeshErrors)
PHYSICS = {"scheme": "clements", **ERRORS, **take.DETECTOR, **take.PORTS}

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
        **take.PHOTODETECTOR,
    },
    # L2ight as published: biases nobody knows, heaters that differ.
    "l2ight_chip": {"phase_bias": 1.0, "bias_law": "uniform", "gamma_std": 0.002, **_HEATERS},
    # Uncalibrated couplers as in the tests of neurophox (Pai et al., Phys. Rev. Applied 11, 064044, 2019).
    "splitter_chip": {"coupler_std": 0.1},
    # torchonn (Gu et al., pytorch-onn): its neighbour filter, and phase noise cut at two standard deviations whenever
    # a matrix is set. How strong the noise is it leaves to the caller: 0.02 rad is our choice.
    "torchonn_chip": {"crosstalk": 0.01, "programming_std": 0.02, "noise_clip": 2.0},
    # A perfect mesh behind real photodetectors: what noise at the ends alone does.
    "photodetector_chip": {**take.PHOTODETECTOR},
}


def errors(o: Options) -> MeshErrors:
    return MeshErrors(**take.taken(o, ERRORS))


def _meshes(o: Options, seed: int) -> list[StageModel]:
    layers, ports = take.count(o, "layers"), take.count(o, "ports")
    models: list[StageModel] = []
    for layer in range(layers):
        models.append(
            MeshStage(
                ports, detection=o["detection"], errors=errors(o), detector=take.detector(o, o["detection"]),
                input=take.input_port(o), output=take.output_port(o, o["detection"] != "intensity"), seed=seed,
                index=len(models), name=f"mesh{layer + 1}", scheme=o["scheme"],
            )
        )  # fmt: skip
        models += take.activation(o, ports, layer, layers, take.detector(o, "homodyne"))
    return models


def _svd(o: Options, seed: int) -> list[StageModel]:
    widths = take.widths(o)
    models: list[StageModel] = []
    for layer, (left, right) in enumerate(itertools.pairwise(widths)):
        models.append(
            SVDStage(
                left, right, trained=o["trained"], scale=o["scale"], errors=errors(o),
                detector=take.detector(o, "homodyne"), input=take.input_port(o), output=take.output_port(o, True),
                seed=seed, index=len(models), name=f"svd{layer + 1}", scheme=o["scheme"],
            )
        )  # fmt: skip
        models += take.activation(o, right, layer, len(widths) - 1, take.detector(o, "homodyne"))
    return models


ONN = Kind(_meshes, MESH_PRESETS, {"layers": 4, "ports": 32, "detection": "homodyne", **take.ACTIVATION, **PHYSICS})
SVD_ONN = Kind(_svd, MESH_PRESETS, {"widths": (), "trained": "weight", "scale": 1.0, **take.ACTIVATION, **PHYSICS})
