"""ImageNet-10 of the HZO paper: what spatial probes cost at high resolution, and a training on 224-pixel images.

`probes`: chains of 3 x 3 convolutions with ReLU, every layer an opaque stage, probed sample by sample along the colours
of the paper's equation 6, at several resolutions: queries by the ledger, cosine to autograd in float64. `train`: a
plain CNN of seven convolutions, each an opaque stage that is declared linear and measured once a step, with norms,
rectifiers and head on the host: tier *measured linear stages*. Forward queries only; nothing is differentiated through
a stage.
`backprop`: the same network, start, recipe and epochs by torch's autograd. `minutes`: the same in as many epochs as fit
into the seconds that `train` took. The data are a folder of pictures (`--data`); its default, `imagenette2-224-subset`
in HZO_DATA, holds 1,000 training and 300 test pictures of 10 easy classes: not the paper's data, so no accuracy here is
to be set against its 65.0 %.

A training keeps a checkpoint in `--work` and goes on from it when it is started again; `--minutes M` ends a piece.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import _result  # isort: skip
import numpy as np
import torch
from _images import stripes
from _layers import (
    Layer,
    alignment,
    batch_of,
    chain_of,
    drawn,
    exact_gradients,
    found_gradients,
    images,
    module_of,
    normed,
)
from _pictures import Pictures
from _training import Deadline, Recipe, part, trained
from torch import nn

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.data import Dataset, load
from hzo_hil.devices.api import Local
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach
from hzo_hil.zoo import FlatNorm, GlobalMean, HostConv, Make

SUBSET = "imagenette2-224-subset"
TREES = ("chain", "bisect")
FULL: dict[str, Any] = {
    "sizes": [32, 64, 112, 224], "channels": 4, "depth": 4, "samples": 2, "eps": 1e-3,
    "data": SUBSET, "size": 224, "stem": [16, 7, 4], "convs": [[32, 2], [32, 1], [64, 2], [64, 1], [128, 2], [128, 1]],
    "epochs": 100, "batch": 50, "rate": 0.1, "zoom": 0.5, "seeds": 1,
}  # fmt: skip
SMOKE = {
    "sizes": [10, 14], "channels": 2, "samples": 1, "size": 16, "stem": [4, 3, 2], "convs": [[6, 2]],
    "epochs": 2, "batch": 10,
}  # fmt: skip
GROUPS = ("probes", "train", "backprop", "minutes")
FLAGS: dict[str, dict[str, Any]] = {
    "--data": {"metavar": "FOLDER", "help": f"with train/<class>/ and test/<class>/ or val/ (default: {SUBSET})"},
    "--epochs": {"type": int, "metavar": "N", "help": f"of train and backprop (default: {FULL['epochs']})"},
    "--work": {"type": Path, "metavar": "FOLDER", "help": "checkpoints (default: runs/imagenet10)"},
    "--minutes": {"type": float, "metavar": "M", "help": "end this piece after so long; the same command goes on"},
    "--threads": {"type": int, "metavar": "N", "help": "of torch; belongs to the result, so keep it when going on"},
}


# --- spatial probes at high resolution


def probed(config: dict[str, Any], size: int, tree: str, seed: int) -> dict[str, Any]:
    layers = chain_of(Layer(config["channels"] * size**2, "relu", images(config["channels"], size)), config["depth"])
    x, ahead = batch_of(config["samples"], layers[0].width, seed)
    weights = normed(layers, drawn(layers, "he", seed), x)
    module = module_of(layers, weights, "float32", plan=Plan(tree, eps=config["eps"]), seed=seed)
    start = time.perf_counter()
    found = found_gradients(module, x, ahead)
    seconds = time.perf_counter() - start
    asked = module.ledger.accounts["probes"].queries / len(x)
    return alignment(found, exact_gradients(layers, module, x, ahead)) | {
        "queries_per_sample": asked, "width": layers[0].width, "seconds": seconds,
    }  # fmt: skip


# --- the network


def network(config: dict[str, Any], convolution: Make, classes: int) -> nn.Sequential:
    """A stem with a long stride, 3 x 3 convolutions of [channels, stride], mean, linear head; norms behind all."""
    channels, kernel, stride = config["stem"]
    reach = Local.conv(3, channels, (config["size"],) * 2, kernel, stride, padding=kernel // 2)
    layers: list[nn.Module] = [convolution(reach, "stem"), FlatNorm(channels), nn.ReLU()]
    for number, (out, stride) in enumerate(config["convs"], start=1):
        reach = Local.conv(channels, out, reach.out_shape, 3, stride, padding=1)
        layers += [convolution(reach, f"conv{number}"), FlatNorm(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, GlobalMean(channels), nn.Linear(channels, classes))


def on_host(config: dict[str, Any], classes: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return network(config, HostConv, classes)


def on_devices(config: dict[str, Any], classes: int, seed: int) -> nn.Sequential:
    """The same network with the same start, each convolution on a device of its own."""
    host = on_host(config, classes, seed)
    weights = iter([m.conv.weight.detach().numpy() for m in host.modules() if isinstance(m, HostConv)])

    def made(reach: Local, name: str) -> nn.Module:
        model = EmulatedConv(Reach(**vars(reach)), name=name)
        stage = Stage(SimulatedDevice([model], identity=name), 0, leaf="delta", initial={"weight": next(weights)})
        return Opaque([stage], plan=Plan(), name=name, seed=seed)

    model = network(config, made, classes)
    model.load_state_dict({n: v for n, v in host.state_dict().items() if "conv" not in n}, strict=False)
    return model


# --- trainings


def pictures(result: _result.Result, folder: str, seed: int) -> Pictures:
    config = result.config
    if result.smoke:
        made = stripes(config["size"], 20, 20)
        for part in ("x_train", "x_test"):
            made[part] = np.rint(made[part] * 255).astype(np.uint8)
        data = Dataset(**made, name="stripes", checksum="")
    else:
        data = load("images", path=folder, size=config["size"], keep="bytes")
    return Pictures(data, config["zoom"], seed)


def recipe(config: dict[str, Any], epochs: int) -> Recipe:
    sgd = partial(torch.optim.SGD, lr=config["rate"], momentum=0.9, nesterov=True, weight_decay=5e-4)
    return Recipe(sgd, config["rate"], epochs, config["batch"])


class Trainings:
    """Those of one run of this item. A part is `group/data/epochs/seed`."""

    def __init__(self, result: _result.Result, work: Path) -> None:
        self.result, self.work, self.deadline = result, work, Deadline(result.given.minutes)
        self.folder = "stripes" if result.smoke else str(result.given.data or result.config["data"])
        self._pictures: dict[int, Pictures] = {}

    def name(self, group: str, epochs: int, seed: int) -> str:
        return f"{group}/{Path(self.folder).name}/{epochs}/{seed}"

    def found(self, group: str, epochs: int, seed: int) -> dict[str, Any] | None:
        """An accuracy, and how it came about; None where it is not asked for now and was not before."""
        name = self.name(group, epochs, seed)
        if not self.result.wanted(name):
            return None
        folder = self.work / name.replace("/", "-")
        return part(self.result, name, folder, partial(self._trained, group, epochs, seed, folder))

    def _trained(self, group: str, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
        if seed not in self._pictures:
            self._pictures[seed] = pictures(self.result, self.folder, seed)
        data, config = self._pictures[seed], self.result.config
        make = partial(on_devices if group == "train" else on_host, config, data.classes, seed)
        found = trained(make, data, recipe(config, epochs), seed, folder, self.deadline)
        known = {"pictures": data.count, "tested": len(data.data.x_test), "checksum": data.data.checksum}
        return found | {"data": known}


def fitting(train: dict[str, Any], backprop: dict[str, Any]) -> int:
    """Epochs of backpropagation in the seconds that training by queries took."""
    return max(1, round(train["seconds"] / backprop["seconds"] * len(backprop["course"])))


# --- the item


def main() -> None:
    result = _result.begun("imagenet10", __doc__, full=FULL, smoke=SMOKE, groups=GROUPS, flags=FLAGS)
    if result.given.threads:
        torch.set_num_threads(result.given.threads)
    with _result.workplace(result, "runs/imagenet10") as work:
        measure(result, work)


def measure(result: _result.Result, work: Path) -> None:
    asked = probes(result)
    epochs = result.given.epochs or result.config["epochs"]
    trainings = Trainings(result, work)
    for seed in result.seeds:
        train, backprop = (trainings.found(group, epochs, seed) for group in ("train", "backprop"))
        if train is not None and backprop is not None:
            trainings.found("minutes", fitting(train, backprop), seed)
    curves = [
        shown(result, name) for name in sorted(result.parts, key=lambda n: (n.partition("/")[2], n))
        if not name.startswith("probes/")
    ]  # fmt: skip
    result.finish(lambda figure: draw(figure, result.config["sizes"], asked, curves))


LABELS = {
    "train": "forward queries, measured linear stages",
    "backprop": "backpropagation, same epochs",
    "minutes": "backpropagation, same minutes",
}


def shown(result: _result.Result, name: str) -> tuple[str, list[dict[str, float]]]:
    """Rows of one training, of today or kept; its curve."""
    found = result.part(name, dict)
    group, folder, epochs, seed = name.split("/")
    result.row(f"{group}: {LABELS[group]}", found["accuracy"], "test accuracy", folder=folder, seed=int(seed),
               epochs=int(epochs), seconds=found["seconds"], queries=found["queries"], threads=found["threads"],
               **found["data"])  # fmt: skip
    other = result.parts.get(name.replace("train", "backprop", 1), {}).get("found")
    if group == "train" and other is not None:
        result.row("train: behind backpropagation", 100 * (other["accuracy"] - found["accuracy"]), "points",
                   against=LABELS["backprop"], folder=folder, seed=int(seed),
                   seconds_ratio=found["seconds"] / other["seconds"])  # fmt: skip
    return f"{LABELS[group]}, {epochs} epochs", found["course"]


def probes(result: _result.Result) -> dict[str, list[float]]:
    """Queries a sample by tree, resolution by resolution, of the first seed."""
    config, counts = result.config, dict[str, list[float]]()
    for tree, size in itertools.product(TREES, config["sizes"]):
        names = [f"probes/{tree}/{size}/{seed}" for seed in result.seeds]
        if not all(map(result.wanted, names)):
            continue
        found = [
            result.part(name, partial(probed, config, size, tree, seed))
            for name, seed in zip(names, result.seeds, strict=True)
        ]
        asked = found[0]["queries_per_sample"]
        counts.setdefault(tree, []).append(asked)
        every = 2 * found[0]["width"] * (config["depth"] - 1)
        result.row(f"probes, {tree}, {size} pixels", asked, "queries a sample", against="lowest resolution",
                   ratio=asked / counts[tree][0], target="== 1", without_locality=every,
                   samples=config["samples"], seconds=found[0]["seconds"])  # fmt: skip
        result.row(f"cosine, {tree}, {size} pixels", min(f["whole"] for f in found), "cosine", against="autograd",
                   target=">= 0.999", first_layer=min(f["first"] for f in found))  # fmt: skip
    return counts


def draw(figure: Any, sizes: list[int], asked: dict[str, list[float]], curves: list[Any]) -> None:
    left, right = figure.subplots(1, 2)
    for tree, counts in asked.items():
        left.plot(sizes[: len(counts)], counts, marker="o", label=tree)
    left.set(xlabel="resolution", ylabel="queries a sample", ylim=(0, None))
    for label, course in curves:
        right.plot([r["seconds"] for r in course], [r["accuracy"] for r in course], marker=".", label=label)
    right.set(xlabel="seconds", ylabel="test accuracy")
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize="x-small")


if __name__ == "__main__":
    _result.go(main)
