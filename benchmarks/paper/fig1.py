"""Figure 1 of the HZO paper: cosine to backpropagation against depth, plain and residual, trees and plain zeroth order.

Chains of 3 x 3 convolutions with ReLU, float32, one opaque stage a layer, central differences along coordinates
(spatial probes, the paper's equation 6). `plain, torch's start`: weights as torch draws them. `plain, He`: variance 2 /
fan-in. `plain, normed`: each layer's sums brought to deviation 1 on the batch, a frozen batch norm. `ResNet, normed`:
a + relu(W a), normed alike. Trees: `bisect` is the paper's HZO; `bisect, step to scale`: at each boundary `eps` times
the root mean square of the activations there, where the others take `eps` as it is. Zeroth order (two-sided random
directions over all weights, in float64 on the host) gets two queries a sample for each value of a cut, 1.3 times what
bisection asks with spatial probes; each of its queries crosses the whole network. The paper names neither the step nor
the start nor the norm: `eps` here is ours, and the starts are what its figure can be compared with. Cosine: of the
whole gradient; beside it that of the first layer and the layers' median.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import _result  # isort: skip
import numpy as np
import torch
from _layers import (
    Layer,
    Weights,
    alignment,
    batch_of,
    chain_of,
    drawn,
    exact_gradients,
    forward,
    found_gradients,
    images,
    module_of,
    normed,
)
from torch import nn

from hzo_hil.optim import SPSA

NETS = {
    "plain, torch's start": ("torch", False, 0.0),
    "plain, He": ("he", False, 0.0),
    "plain, normed": ("he", True, 0.0),
    "ResNet, normed": ("he", True, 1.0),
}
SCALED, WEIGHTS = "bisect, step to scale", "zeroth order"
WAYS = ("bisect", SCALED, "chain", "direct", WEIGHTS)
FULL: dict[str, Any] = {
    "depths": [16, 32, 64, 128], "channels": 4, "size": 4, "batch": 2, "eps": 1e-3, "seeds": 5,
    "zeroth_to": 128,
}  # fmt: skip
SMOKE = {"depths": [4, 8], "channels": 2, "size": 3, "seeds": 1, "zeroth_to": 8}


def network(config: dict[str, Any], net: str, depth: int, seed: int) -> tuple[list[Layer], Weights, Any, Any]:
    start, norm, skip = NETS[net]
    reach = images(config["channels"], config["size"])
    width = config["channels"] * config["size"] ** 2
    layers = chain_of(Layer(width, "relu", reach, skip=skip), depth)
    x, ahead = batch_of(config["batch"], width, seed)
    weights = drawn(layers, start, seed)
    return layers, normed(layers, weights, x) if norm else weights, x, ahead


def by_tree(config: dict[str, Any], net: str, depth: int, seed: int, way: str) -> dict[str, Any]:
    layers, weights, x, ahead = network(config, net, depth, seed)
    tree, _, scaled = way.partition(", ")
    eps = scales(layers, weights, x, config["eps"]) if scaled else config["eps"]
    module = module_of(layers, weights, "float32", tree=tree, probes="coordinate", eps=eps, seed=seed)
    found = found_gradients(module, x, ahead)
    spent = module.ledger.accounts["probes"]
    exact = exact_gradients(layers, module, x, ahead)
    return alignment(found, exact) | {
        "queries_per_sample": spent.queries / len(x), "evaluations_per_sample": spent.stage_evaluations / len(x),
    }  # fmt: skip


def scales(layers: list[Layer], weights: Weights, x: Any, eps: float) -> dict[int, float]:
    """By inner boundary, `eps` times the root mean square of what is there."""
    found, values = {}, x.numpy()
    for k, (layer, weight) in enumerate(zip(layers[:-1], weights[:-1], strict=True), start=1):
        values = layer.ideal(np, {"weight": weight}, values)
        found[k] = eps * max(float((values**2).mean()) ** 0.5, 1e-30)
    return found


def by_weights(config: dict[str, Any], net: str, depth: int, seed: int, queries: float) -> dict[str, Any]:
    """Random directions over all weights at so many queries a sample."""
    layers, weights, x, ahead = network(config, net, depth, seed)
    masters = [nn.Parameter(torch.from_numpy(w)) for w in weights]
    directions = max(1, int(queries / 2))
    optimizer = SPSA(masters, lr=0.0, eps=config["eps"], directions=directions, distribution="gaussian", seed=seed)

    def loss() -> torch.Tensor:
        return (forward(layers, masters, x) * ahead).sum()

    found = optimizer.estimate(loss)
    exact = torch.autograd.grad(loss(), masters)
    return alignment(found, exact) | {
        "queries_per_sample": 2 * directions, "evaluations_per_sample": 2 * directions * depth,
    }  # fmt: skip


def measured(config: dict[str, Any], net: str, depth: int, seed: int, way: str) -> dict[str, Any]:
    if way != WEIGHTS:
        return by_tree(config, net, depth, seed, way)
    # What bisection asks without spatial probes, of which images so small have little.
    return by_weights(config, net, depth, seed, 2 * config["channels"] * config["size"] ** 2 * (depth - 1))


def main() -> None:
    result = _result.begun("fig1", __doc__, full=FULL, smoke=SMOKE)
    config = result.config
    curves: dict[tuple[str, str], list[float]] = {}
    for net, depth, way in itertools.product(NETS, config["depths"], WAYS):
        if way == WEIGHTS and depth > config["zeroth_to"]:
            continue
        found = [
            result.part(f"{net}/{depth}/{way}/{seed}", partial(measured, config, net, depth, seed, way))
            for seed in result.seeds
        ]
        whole = [f["whole"] for f in found]
        curves.setdefault((net, way), []).append(float(np.median(whole)))
        result.row(
            f"{net}, L = {depth}, {way}", float(np.median(whole)), "cosine", against="backpropagation",
            target=">= 0.95" if net.startswith("ResNet") and way == "bisect" else None, range=[min(whole), max(whole)],
            first_layer=float(np.median([f["first"] for f in found])),
            median_layer=float(np.median([f["median"] for f in found])),
            queries_per_sample=found[0]["queries_per_sample"],
            evaluations_per_sample=found[0]["evaluations_per_sample"],
        )  # fmt: skip

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(NETS), sharey=True)
        for axes, net in zip(panels, NETS, strict=True):
            for way in WAYS:
                values = curves.get((net, way), [])
                axes.plot(config["depths"][: len(values)], values, marker="o", label=way)
            axes.set(title=net, xlabel="depth L", xscale="log", xticks=config["depths"], ylim=(-0.4, 1.05))
            axes.set_xticklabels(config["depths"])
            axes.minorticks_off()
            axes.title.set_fontsize("small")
        panels[0].set_ylabel("cosine to backpropagation")
        panels[-1].legend(fontsize="x-small", loc="lower left")

    result.finish(draw)


if __name__ == "__main__":
    _result.go(main)
