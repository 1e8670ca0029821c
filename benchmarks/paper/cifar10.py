"""Table 1 of the HZO paper: CIFAR-10, trained by the library's own trainer on devices whose convolutions are opaque.

`backprop`: ResNet-20 by torch's autograd, same recipe, then written to an exact device. `a`: HZO, each of the 19
convolutions a stage that is measured, nothing differentiated through it, norms on the host: tier *measured linear
stages*, which is not the paper's fully opaque setting and is never to be set against its 74.2 % alone. `d`: the same on
a noisy device (configs/cifar10_resnet20_noisy.yaml). `c`: DeepZero's plain CNN of width 64, as in a; `c-backprop`:
autograd. `e-...`: feedback alignment and Align-ada on both networks. `deepzero`: one step of DeepZero on ResNet-20 at
batch 256 and 90 % sparsity (uniform masks, where theirs come from ZO-GraSP), measured with a thinner mask and scaled by
the cost of one probe in each parameter; its 50 epochs are extrapolated from that.

A training keeps a run folder in `--work` and goes on with it when it is started again, on another machine too, if the
folder is copied there. `--parts a,d` measures these now and keeps what was measured before.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import _result  # isort: skip
import torch
from deepzero import Costs, pictures, weighted
from torch.nn import functional

from hzo_hil.config import Config, load_config
from hzo_hil.data import load
from hzo_hil.optim import DeepZero, FeatureReuse
from hzo_hil.optim.deepzero import kept
from hzo_hil.records import read_metrics
from hzo_hil.train import run
from hzo_hil.zoo import HostConv, resnet20

CONFIGS = _result.ROOT / "configs"
EXACT, NOISY = "cifar10_resnet20", "cifar10_resnet20_noisy"
PLAIN = [
    "network.0.zoo=plain_cnn",
    "network.0.arguments={width: 64, depth: 6}",
    "devices.chip.options.convs=[[64,3,1,1],[64,3,2,1],[64,3,1,1],[64,3,2,1],[64,3,1,1],[64,3,2,1]]",
]
BY_AUTOGRAD = ["method.credit=deployed", "method.twins=true", "method.leaf=auto"]
FEEDBACK = ["method.credit=feedback"]
ALIGN = ["method.credit=align", "method.twins=true"]
TRAININGS: dict[str, tuple[str, list[str], str]] = {
    "backprop": (EXACT, BY_AUTOGRAD, "ResNet-20, backpropagation"),
    "a": (EXACT, [], "ResNet-20, HZO, measured linear stages"),
    "d": (NOISY, [], "ResNet-20, HZO, measured linear stages, noisy device"),
    "c": (EXACT, PLAIN, "plain CNN, HZO, measured linear stages"),
    "c-backprop": (EXACT, PLAIN + BY_AUTOGRAD, "plain CNN, backpropagation"),
    "e-feedback": (EXACT, FEEDBACK, "ResNet-20, feedback alignment"),
    "e-align": (EXACT, ALIGN, "ResNet-20, Align-ada"),
    "e-feedback-plain": (EXACT, PLAIN + FEEDBACK, "plain CNN, feedback alignment"),
    "e-align-plain": (EXACT, PLAIN + ALIGN, "plain CNN, Align-ada"),
}
TARGETS = {"a": ">= 0.895", "d": ">= 0.85"}
DEEPZERO = "deepzero"
SPARSITY, DEEPZERO_EPOCHS, TRAINED_IMAGES = 0.9, 50, 50_000
FULL: dict[str, Any] = {"seeds": 1, "epochs": 20, "size": 32, "deepzero_batch": 256, "deepzero_sparsity": 0.999}
SMOKE = {"epochs": 1, "size": 8, "deepzero_batch": 4, "deepzero_sparsity": 0.9999}
FLAGS: dict[str, dict[str, Any]] = {
    "--work": {"type": Path, "metavar": "FOLDER", "help": "run folders of trainings (default: runs/cifar10)"},
    "--epochs": {"type": int, "metavar": "N", "help": f"of each training (default: {FULL['epochs']})"},
    "--threads": {"type": int, "metavar": "N", "help": "of torch; belongs to the result, so keep it when going on"},
}


# --- trainings


def configured(result: _result.Result, part: str, epochs: int, seed: int, work: Path) -> Config:
    file, changes, _ = TRAININGS[part]
    where = [f"where.run_dir={work / f'{part}-{epochs}-{seed}'}", "where.picture=false"]
    if result.given.threads:
        where.append(f"where.threads={result.given.threads}")
    return load_config(
        CONFIGS / f"{file}.yaml",
        [*changes, *(little(result.config["size"]) if result.smoke else []), f"train.epochs={epochs}", f"seed={seed}",
         *where],
    )  # fmt: skip


def little(size: int) -> list[str]:
    """Of a smoke: images made on the fly."""
    return [
        "data.name=_images:stripes",
        f"data.options={{size: {size}, train: 20, test: 20}}",
        "data.augment.crop=1",
        f"devices.chip.options.image=[3, {size}, {size}]",
        f"network.0.arguments.size={size}",
        "train.batch_size=10",
    ]


def trained(config: Config) -> dict[str, Any]:
    """From the beginning, or from where the run folder was left."""
    folder = Path(str(config.where.run_dir))
    summary = run(config, resume=(folder / "run.json").exists())
    row = next(iter(summary["rows"].values()))
    epochs = [r for r in read_metrics(folder / "metrics.jsonl") if "test_accuracy" in r]
    return {
        "accuracy": summary["score"],
        "best": summary["best"],
        "course": [{k: r.get(k) for k in ("epoch", "loss", "test_accuracy", "wall_seconds")} for r in epochs],
        "queries": row["queries"],
        "threads": torch.get_num_threads(),
        "hardware": _result.hardware(),
        "in_all": {
            "wall_seconds": row["wall_seconds"],
            "ledger": {p: a for p, a in summary["ledger"]["purposes"].items() if any(a.values())},
        },
    }


# --- DeepZero


def deepzero_step(config: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step at the published sparsity: of a real step with fewer coordinates, scaled by what a probe in
    each parameter costs.
    """
    batch, sparsity = config["deepzero_batch"], config["deepzero_sparsity"]
    torch.manual_seed(0)
    model = FeatureReuse(resnet20(HostConv))
    parameters = list(model.parameters())
    source, images, labels = pictures(batch)

    def closure() -> torch.Tensor:
        return functional.cross_entropy(model(images), labels)

    cost = Costs(model, closure, 1).seconds["reuse"]
    thin = [sparsity] * len(parameters)
    published = [SPARSITY if p.ndim > 1 else 0.0 for p in parameters]  # norms and the bias are always perturbed
    counts = {n: [kept(p.numel(), f) for p, f in zip(parameters, fs, strict=True)]
              for n, fs in (("thin", thin), ("published", published))}  # fmt: skip
    optimizer = DeepZero(parameters, fractions=thin, model=model)
    start = time.perf_counter()
    optimizer.step(closure)
    measured = time.perf_counter() - start
    predicted = weighted(cost, counts["thin"])
    return {
        "images": source,
        "measured_coordinates": sum(counts["thin"]),
        "measured_seconds": measured,
        "predicted_seconds": predicted,
        "coordinates": sum(counts["published"]),
        "step_seconds": measured * weighted(cost, counts["published"]) / predicted,
        "threads": torch.get_num_threads(),
    }


# --- the table


def show(result: _result.Result, part: str, found: dict[str, Any], epochs: int, seed: int, curves: Any) -> None:
    label = TRAININGS[part][2]
    curves.append((f"{label}, {epochs} epochs", found["course"]))
    seconds = result.parts[f"{part}/{epochs}/{seed}"]["wall_seconds"]
    target = TARGETS.get(part) if epochs >= result.config["epochs"] else None
    more = {"epochs": epochs, "seed": seed, "seconds": seconds, "queries": found["queries"], "best": found["best"]}
    result.row(f"{part}: {label}", found["accuracy"], "test accuracy", target=target, **more)
    reference = {"a": "backprop", "c": "c-backprop"}.get(part)
    other = result.parts.get(f"{reference}/{epochs}/{seed}")
    if other is not None:
        behind = 100 * (other["found"]["accuracy"] - found["accuracy"])
        result.row(f"{part}: behind backpropagation", behind, "points", against=reference, target="<= 1", epochs=epochs,
                   seed=seed, times_its_seconds=seconds / other["wall_seconds"])  # fmt: skip


def show_deepzero(result: _result.Result, found: dict[str, Any]) -> None:
    batch = result.config["deepzero_batch"]
    result.row("DeepZero: a step of ResNet-20", found["step_seconds"], "s", batch=batch,
               coordinates=found["coordinates"], measured_coordinates=found["measured_coordinates"],
               measured_seconds=found["measured_seconds"], predicted_seconds=found["predicted_seconds"])  # fmt: skip
    steps = DEEPZERO_EPOCHS * math.ceil(TRAINED_IMAGES / batch)
    hours = steps * found["step_seconds"] / 3600
    result.row("DeepZero: 50 epochs of ResNet-20", hours, "h", extrapolated=True, steps=steps)


def main() -> None:
    result = _result.begun("cifar10", __doc__, full=FULL, smoke=SMOKE, groups=[*TRAININGS, DEEPZERO], flags=FLAGS)
    epochs = result.given.epochs or result.config["epochs"]
    with _result.workplace(result, "runs/cifar10") as work:
        measure(result, epochs, work)


def measure(result: _result.Result, epochs: int, work: Path) -> None:
    if not result.smoke and set(result.chosen) - {DEEPZERO}:
        load("cifar10", limit_train=1)  # says now where it is not
    if result.given.threads:
        torch.set_num_threads(result.given.threads)
    curves: list[tuple[str, list[dict[str, Any]]]] = []
    for part in TRAININGS:
        for seed in result.seeds:
            if result.wanted(f"{part}/{epochs}/{seed}"):
                config = configured(result, part, epochs, seed, work)
                result.part(f"{part}/{epochs}/{seed}", partial(trained, config))
    for name in sorted(result.parts, key=lambda n: [*TRAININGS, DEEPZERO].index(n.partition("/")[0])):
        part, *numbers = name.split("/")
        found = result.part(name, dict)
        if part != DEEPZERO:
            show(result, part, found, *map(int, numbers), curves)
    if result.wanted(DEEPZERO):
        show_deepzero(result, result.part(DEEPZERO, partial(deepzero_step, result.config)))
    result.finish(lambda figure: draw(figure, curves))


def draw(figure: Any, curves: list[tuple[str, list[dict[str, Any]]]]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, along, name in zip(panels, ("epoch", "wall_seconds"), ("epoch", "seconds"), strict=True):
        for label, course in curves:
            axes.plot([r[along] for r in course], [r["test_accuracy"] for r in course], marker=".", label=label)
        axes.set(xlabel=name)
    panels[0].set_ylabel("test accuracy")
    if curves:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="x-small")


if __name__ == "__main__":
    _result.go(main)
