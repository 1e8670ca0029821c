"""What the convolutions of a trained run are driven with and answer, stage by stage: for choosing converters' ranges.

    python benchmarks/paper/_activations.py RUN    a run folder of configs/cifar10_resnet20.yaml; one JSON row a stage

Training images in evaluation mode, on the run's own device; `part` of the values lie within `within`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from hzo_hil.build import build_model, opaques, open_devices
from hzo_hil.config import load_config
from hzo_hil.records import RunFolder
from hzo_hil.train import load_data

IMAGES, PART = 256, 0.999


def spread(values: Tensor) -> dict[str, float]:
    size = values.abs().flatten().sort().values
    return {"rms": float(values.square().mean().sqrt()), "within": float(size[int(PART * len(size))]),
            "largest": float(size[-1])}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    folder = parser.parse_args().run
    config = load_config(folder / "config.yaml")
    model, images = build_model(config, open_devices(config)), load_data(config).x_train[:IMAGES]
    model.load_state_dict(RunFolder.open(folder).load_checkpoint("last")["model"])
    model.eval()

    def show(layer: torch.nn.Module, given: tuple[Tensor], answer: Tensor) -> None:
        print(json.dumps({"stage": layer.name, "part": PART, "in": spread(given[0]), "out": spread(answer)}))

    for layer in opaques(model):
        layer.register_forward_hook(show)
    with torch.no_grad():
        model(images)


if __name__ == "__main__":
    main()
