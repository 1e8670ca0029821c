"""Figure 4 of the HZO paper: seconds of one gradient of an MLP against depth, and how they grow.

`bisect` (the paper's HZO), `chain` (which the paper leaves out) and `direct` (each activation perturbed and followed to
the loss: the paper's neuron-wise method) over the noise-free emulator, leaf gradients included. `weight-wise`: a
loss for every weight and one more (forward differences), through a bare torch network, which is the least it can be:
`coordinates` losses are timed and multiplied up, by `extrapolated`. `backpropagation`: forward and
backward of the same torch network. Seconds are those of all threads of the process, the fastest of
some rounds; a seed is a repetition. The
exponent p of L^p is fitted to the logarithms from 16 layers on (of bisect after a division by log2 L), beside it the
fit to all depths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import _result  # isort: skip
import torch
from gradient_time import CPU, Pass, fitted, network
from torch import nn

from hzo_hil.zoo import parameters

HZO = ("bisect", "chain", "direct")
WAYS = (*HZO, "weight-wise", "backpropagation")
FULL: dict[str, Any] = {
    "depths": [4, 16, 32, 64, 128], "width": 64, "batch": 8, "coordinates": 200, "rounds": 3, "seeds": 3,
}  # fmt: skip
SMOKE = {"depths": [4, 8], "width": 8, "coordinates": 10, "rounds": 1, "seeds": 1}
EXPECTED = {"bisect": 1, "chain": 1, "direct": 2, "weight-wise": 2, "backpropagation": 1}


def by_tree(config: dict[str, Any], depth: int, tree: str) -> dict[str, Any]:
    module = network(depth, config["width"], tree)[1]
    once = Pass(module, config["batch"], config["width"])
    once()
    before = module.ledger.accounts["probes"].stage_evaluations
    seconds = min(float(once()[CPU]) for _ in range(config["rounds"]))
    evaluations = (module.ledger.accounts["probes"].stage_evaluations - before) / config["rounds"]
    return {"cpu_seconds": seconds, "stage_evaluations": evaluations, "extrapolated": 1.0}


def mlp(depth: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())])


def fastest(call: Callable[[], Any], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def by_torch(config: dict[str, Any], depth: int, way: str) -> dict[str, Any]:
    model, width = mlp(depth, config["width"]), config["width"]
    x = 0.5 * torch.randn(config["batch"], width, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        return (model(x) ** 2).sum()

    if way == "backpropagation":
        many = 20  # one alone is too short for the clock
        seconds = fastest(lambda: [loss().backward() for _ in range(many)], config["rounds"] + 1) / many
        return {"cpu_seconds": seconds, "stage_evaluations": 0, "extrapolated": 1.0}
    some, size = config["coordinates"], parameters(model)

    def asked() -> None:
        with torch.no_grad():
            for _ in range(some):
                loss()

    factor = (size + 1) / some
    seconds = fastest(asked, config["rounds"]) * factor
    return {"cpu_seconds": seconds, "stage_evaluations": (size + 1) * depth * len(x), "extrapolated": factor}


def main() -> None:
    result = _result.begun("fig4", __doc__, full=FULL, smoke=SMOKE)
    config, depths = result.config, result.config["depths"]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for way in WAYS:
        measure = by_tree if way in HZO else by_torch
        for depth in depths:
            kept = min(
                (result.part(f"{way}/{depth}/{seed}", partial(measure, config, depth, way)) for seed in result.seeds),
                key=lambda f: f["cpu_seconds"],
            )
            found[way].append(kept)
            result.row(
                f"{way}, L = {depth}", kept["cpu_seconds"], "CPU seconds a gradient",
                stage_evaluations=kept["stage_evaluations"], extrapolated=kept["extrapolated"],
            )  # fmt: skip
    deep = sum(depth < 16 for depth in depths)
    deep = deep if len(depths) - deep > 1 else 0
    for way in WAYS:
        seconds = [f["cpu_seconds"] for f in found[way]]
        if way == "bisect":
            seconds = [s / math.log2(d) for s, d in zip(seconds, depths, strict=True)]
        result.row(
            f"{way}: exponent", fitted(depths[deep:], seconds[deep:]), "L^p log2 L" if way == "bisect" else "L^p",
            expected=EXPECTED[way], fitted_from=depths[deep], of_all_depths=fitted(depths, seconds),
        )  # fmt: skip
    for way in ("chain", "direct", "weight-wise", "backpropagation"):
        last = found[way][-1]["cpu_seconds"] / found["bisect"][-1]["cpu_seconds"]
        result.row(f"{way} at L = {depths[-1]}", last, "times bisect")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for way in WAYS:
            axes.loglog(depths, [f["cpu_seconds"] for f in found[way]], marker="o", label=way)
        axes.set(xlabel="depth L", ylabel="CPU seconds a gradient")
        axes.legend()

    result.finish(draw)


if __name__ == "__main__":
    _result.go(main)
