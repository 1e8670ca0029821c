"""CIFAR-10 in the HZO paper's own setting: fully opaque segments, probed sample by sample; nothing known but locality.

A small residual network on a simulated device: a linear stem that turns patches into channels, then basic blocks (two
3 x 3 convolutions, frozen norms whose gains and shifts are trained, rectifiers and the skip, all inside). Every segment
is probed for each sample by itself along the colours of the paper's equation 6, central differences, the tree that
halves, Adam. The host is told how far each stage reaches, nothing else about segments; for the leaf it has what the
paper's authors have, the differentiable function of each single stage. Mean and linear head are the host's.

`reduced`: few channels and a part of the data, on CPU; `reduced-backprop`: the same network, start and recipe by
autograd. `scaling`: seconds of one step at two widths, against the multiply-accumulates of its queries; from these the
seconds of larger networks on this machine are extrapolated, among them ResNet-20 cut at its blocks. `gpu`: separable
convolutions, each with its frozen norm, rectifier and skip a stage, chain and one-sided differences, on the simulators'
cuda engine, all the data; not measured where there is no GPU (a smoke has it on the CPU). `gpu-backprop`: that network
by autograd, on CPU. The paper's figure is 74.2 % in 8.14 h on an A100; it does not name its network.

A training keeps a checkpoint in `--work` and goes on from it when it is started again; `--minutes M` ends a piece.
`--epochs N`: trainings of another length, beside those of the usual one.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import _result  # isort: skip
import numpy as np
import torch
from _blocks import BlockNet, Net, UnitNet, by_autograd, cost_of, on_device
from _images import stripes
from _pictures import Pictures
from _training import Deadline, Recipe, part, trained
from torch.nn import functional

from hzo_hil.data import Dataset, load

ITEM = "opaque"
STATISTICS = 64  # training pictures that set gains and shifts
FULL: dict[str, Any] = {
    "size": 32, "eps": 1e-3, "seeds": 1, "steps": 3,
    "reduced": {
        "patch": 4, "blocks": [[8, 1], [16, 2], [16, 1]], "images": 20_000, "epochs": 2, "batch": 32, "rate": 1e-2,
        "zoom": 1.0,
    },
    "wider": {
        "patch": 4, "blocks": [[16, 1], [32, 2], [32, 1]], "images": 20_000, "epochs": 1, "batch": 8, "rate": 1e-2,
        "zoom": 1.0,
    },
    "gpu": {
        "patch": 2, "groups": [[64, 3], [128, 3]], "eps": 0.1, "images": 50_000, "epochs": 15, "batch": 256,
        "rate": 1e-2, "zoom": 0.8,
    },
}  # fmt: skip
SMALL = {"patch": 2, "blocks": [[2, 1], [4, 2]], "images": 20, "epochs": 1, "batch": 10, "rate": 1e-2, "zoom": 0.75}
UNITS = {"groups": [[2, 1], [4, 1]], "eps": 0.25}
SMOKE: dict[str, Any] = {
    "size": 8, "steps": 1, "reduced": SMALL, "gpu": {n: v for n, v in SMALL.items() if n != "blocks"} | UNITS,
    "wider": SMALL | {"blocks": [[4, 1], [8, 2]], "batch": 4},
}  # fmt: skip
RESNET20: dict[str, Any] = {
    "patch": 1, "images": 50_000,
    "blocks": [[16, 1], [16, 1], [16, 1], [32, 2], [32, 1], [32, 1], [64, 2], [64, 1], [64, 1]],
}  # fmt: skip
GROUPS = ("scaling", "reduced", "reduced-backprop", "gpu", "gpu-backprop")
FLAGS: dict[str, dict[str, Any]] = {
    "--device": {
        "choices": ("cpu", "cuda"), "default": "cpu", "help": "cuda: measure gpu; cpu: the other parts",
    },
    "--work": {"type": Path, "metavar": "FOLDER", "help": "checkpoints (default: runs/opaque)"},
    "--epochs": {"type": int, "metavar": "N", "help": "of trainings, kept apart from those of the usual length"},
    "--minutes": {"type": float, "metavar": "M", "help": "end this piece after so long; the same command goes on"},
    "--threads": {"type": int, "metavar": "N", "help": "of torch; belongs to the result, so keep it when going on"},
}  # fmt: skip


# --- parts


def net_of(config: dict[str, Any], name: str) -> Net:
    one = RESNET20 if name == "ResNet-20" else config[name]
    given = (config["size"], one["patch"], one.get("eps", config["eps"]))
    if "groups" in one:
        return UnitNet(*given, tuple((c, n) for c, n in one["groups"]))
    return BlockNet(*given, tuple((c, s) for c, s in one["blocks"]))


def pictures(result: _result.Result, name: str, seed: int) -> Pictures:
    config = result.config
    if result.smoke:
        data = Dataset(**stripes(config["size"], config[name]["images"], 20), name="stripes", checksum="")
    else:
        data = load("cifar10", limit_train=config[name]["images"])
    x_train, x_test = (np.rint(x * 255).astype(np.uint8) for x in (data.x_train, data.x_test))
    kept = Dataset(x_train, data.y_train, x_test, data.y_test, data.classes, data.name, data.source, data.checksum)
    return Pictures(kept, config[name]["zoom"], seed)


def training(
    result: _result.Result, group: str, seed: int, epochs: int, folder: Path, deadline: Deadline
) -> dict[str, Any]:
    name = group.removesuffix("-backprop")
    data, settings = pictures(result, name, seed), result.config[name]
    given = (net_of(result.config, name), data.first(STATISTICS), data.classes, seed)
    place = result.given.device if group == "gpu" else "cpu"
    if group == name:
        engine = {"cuda": "cuda+tf32", "cpu": "torch"}[place] if name == "gpu" else "native"
        make = partial(on_device, *given, engine=engine)
    else:
        make = partial(by_autograd, *given)
    recipe = Recipe(partial(torch.optim.Adam, lr=settings["rate"]), settings["rate"], epochs, settings["batch"])
    found = trained(lambda: make().to(place), data.on(place), recipe, seed, folder, deadline)
    return found | {"pictures": data.count, "tested": len(data.data.x_test)}


def named(result: _result.Result, group: str, seed: int, epochs: int) -> str:
    """A training as a part; the usual number of epochs goes without saying."""
    usual = epochs == result.config[group.removesuffix("-backprop")]["epochs"]
    return f"{group}/{seed}" if usual else f"{group}/{seed}/{epochs}"


def lengths(result: _result.Result, name: str, seed: int) -> list[int]:
    """Epochs of the trainings that are kept or asked for, and the usual ones."""
    kept = [n.split("/") for n in result.parts if n.startswith((f"{name}/{seed}/", f"{name}-backprop/{seed}/"))]
    now = [asked(result, name)] if {name, f"{name}-backprop"} & set(result.chosen) else []
    return sorted({result.config[name]["epochs"], *now, *(int(n[2]) for n in kept)})


def asked(result: _result.Result, name: str) -> int:
    return result.given.epochs or result.config[name]["epochs"]


def trained_part(
    result: _result.Result, group: str, seed: int, epochs: int, work: Path, deadline: Deadline
) -> dict[str, Any]:
    name = named(result, group, seed, epochs)
    folder = work / name.replace("/", "-")
    return part(result, name, folder, partial(training, result, group, seed, epochs, folder, deadline))


def one_step(result: _result.Result, name: str) -> dict[str, Any]:
    """Seconds of a step a sample, and the cosine of its gradient to autograd's."""
    config = result.config
    data, batch = pictures(result, name, 0), config["wider"]["batch"]
    x, y = data.training(np.arange(batch), 0)
    gradients, seconds = [], []
    given = (net_of(config, name), data.first(STATISTICS), data.classes, 0)
    model, exact = on_device(*given), by_autograd(*given)
    for net, times in ((model, config["steps"]), (exact, 1)):
        for _ in range(times):
            net.zero_grad()
            start = time.perf_counter()
            functional.cross_entropy(net(x), y).backward()
            seconds.append(time.perf_counter() - start)
        gradients.append(torch.cat([p.grad.double().flatten() for p in net.parameters()]))
    found, true = gradients
    return {
        "seconds_per_sample": sorted(seconds[: config["steps"]])[config["steps"] // 2] / batch,
        "cosine": float(found @ true / (found.norm() * true.norm())),
        "queries_per_sample": model[0].ledger.accounts["probes"].queries / config["steps"] / batch,
        "threads": torch.get_num_threads(),
    }


# --- the item


def main() -> None:
    result = _result.begun(ITEM, __doc__, full=FULL, smoke=SMOKE, groups=GROUPS, flags=FLAGS)
    if result.given.threads:
        torch.set_num_threads(result.given.threads)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    if result.given.device == "cuda" and there == "cpu":
        print(f"{ITEM}.py: --device cuda, and torch finds no GPU here: run it where there is one", file=sys.stderr)
        raise SystemExit(2)
    result.chosen = [g for g in result.chosen if result.smoke or (g == "gpu") == (result.given.device == "cuda")]
    with _result.workplace(result, "runs/opaque") as work:
        measure(result, work)


def measure(result: _result.Result, work: Path) -> None:
    deadline = Deadline(result.given.minutes)
    if result.wanted("scaling/reduced"):
        steps = {n: result.part(f"scaling/{n}", partial(one_step, result, n)) for n in ("reduced", "wider")}
        show_scaling(result, steps)
    curves: list[tuple[str, list[dict[str, float]]]] = []
    for name, seed in itertools.product(("reduced", "gpu"), result.seeds):
        for epochs in lengths(result, name, seed):
            found = {}
            for group in (name, f"{name}-backprop"):
                now = group in result.chosen and epochs == asked(result, name)
                if now or named(result, group, seed, epochs) in result.parts:
                    found[group] = trained_part(result, group, seed, epochs, work, deadline)
            show(result, name, seed, epochs, found)
            curves += [(f"{group}, {epochs} epochs", one["course"]) for group, one in found.items()]
    result.finish(lambda figure: draw(figure, curves))


def show(result: _result.Result, name: str, seed: int, epochs: int, found: dict[str, dict[str, Any]]) -> None:
    if name not in found:
        result.row(f"{name}: test accuracy", "not measured", "test accuracy", seed=seed, epochs=epochs)
    for group, one in found.items():
        result.row(f"{group}: test accuracy", one["accuracy"], "test accuracy", seed=seed, epochs=epochs,
                   **settings(result, name), target=">= 0.742" if group == "gpu" else None, seconds=one["seconds"],
                   queries=one["queries"], threads=one["threads"], tested=one["tested"])  # fmt: skip
    if len(found) == 2:
        ours, other = found[name], found[f"{name}-backprop"]
        beside = {} if name == "gpu" else {"seconds_ratio": ours["seconds"] / other["seconds"]}  # one machine
        result.row(f"{name}: behind backpropagation", 100 * (other["accuracy"] - ours["accuracy"]), "points",
                   seed=seed, epochs=epochs, **beside)  # fmt: skip


def settings(result: _result.Result, name: str) -> dict[str, Any]:
    """What a training's row says of it."""
    one = result.config[name]
    wanted = ("images", "batch", "rate", "zoom", "blocks", "groups")
    return {n: one[n] for n in wanted if n in one} | {"eps": one.get("eps", result.config["eps"])}


def show_scaling(result: _result.Result, steps: dict[str, dict[str, Any]]) -> None:
    """Both sizes as measured, whether time follows multiply-accumulates, and what that makes of larger networks."""
    speeds = {}
    for name, one in steps.items():
        cost = cost_of(net_of(result.config, name))
        speeds[name] = cost.macs / one["seconds_per_sample"]
        result.row(f"scaling: a step of {name}", one["seconds_per_sample"], "s a sample", probe_macs=cost.macs,
                   forward_passes=cost.passes, threads=one["threads"],
                   queries_per_sample=one["queries_per_sample"], macs_per_second=speeds[name])  # fmt: skip
        result.row(f"cosine: {name}", one["cosine"], "cosine", against="autograd", target=">= 0.99")
    result.row("scaling: speed at the wider network", speeds["wider"], "MAC/s", against="reduced",
               ratio=speeds["wider"] / speeds["reduced"])  # fmt: skip
    for name in ("gpu", "ResNet-20"):
        cost = cost_of(net_of(result.config, name))
        images = RESNET20["images"] if name == "ResNet-20" else result.config[name]["images"]
        hours = cost.macs / speeds["wider"] * images / 3600
        result.row(f"scaling: an epoch of {name}", hours, "h on this CPU", extrapolated=True, images=images,
                   probe_macs=cost.macs, probe_bytes=cost.moved, forward_passes=cost.passes,
                   queries_per_sample=cost.queries)  # fmt: skip


def draw(figure: Any, curves: list[tuple[str, list[dict[str, float]]]]) -> None:
    axes = figure.subplots()
    for label, course in curves:
        axes.plot([r["epoch"] for r in course], [r["accuracy"] for r in course], marker="o", label=label)
    axes.set(xlabel="epoch", ylabel="test accuracy")
    if curves:
        axes.legend()


if __name__ == "__main__":
    _result.go(main)
