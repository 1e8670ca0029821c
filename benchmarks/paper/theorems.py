"""The HZO paper's theorems: equivalence, counts, growth of the error, gain control, and the tree for noisy devices.

Equivalence (theorem 1) and counts (theorem 2): tanh chains of rotations, float64, every tree, against autograd and
closed forms. Growth (section 4.3, appendix A): chains whose Lipschitz constant Lip is below, at and above 1 (see
`_growth`), the error of the target at the input over ||T_L||, held against C beta eps^2 times L Lip^(L-1) and times the
paper's equation 25, (Lip^L - 1) / (Lip - 1); bisection and direct also against its equation 12, Lip^(2L). A ratio above
1 says that the bound fails. Gain control: read noise 0.001 on every output, bisection, the median over the layers of
the error of each one's gradient, best of three steps; `plain` as torch draws weights, and scaled by `Gain`; `residual`
a + f(W a) as torch draws it, and with branches divided by sqrt(L). Noise-optimal tree: error x cost of the best tree by
dynamic programming over that of the named ones, then bisection, chain and direct measured on a noisy device at equal
cost, with the same repeats at all cuts.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import _result  # isort: skip
import numpy as np
from _growth import KINDS, bounds, error
from _layers import (
    Layer,
    batch_of,
    chain_of,
    drawn,
    exact_gradients,
    flat,
    found_gradients,
    module_of,
)
from _noisetree import least, of_tree

import hzo_hil
from hzo_hil import Gain
from hzo_hil.devices.errors import DeviceError
from hzo_hil.noiseless import relative_error
from hzo_hil.plan import NAMED_TREES

GAINS = ("plain", "plain, scaled", "residual", "residual, small branches")
FULL: dict[str, Any] = {
    "depths": [4, 8, 16, 32, 64, 128], "width": 8, "lips": [0.95, 1.0, 1.05], "growth_eps": 1e-4, "eps": 1e-4,
    "noise": 1e-3, "steps": [0.01, 0.1, 0.3], "overheads": [0, 10, 1000], "noisy_depth": 64, "budget": 8, "seeds": 5,
}  # fmt: skip
SMOKE = {"depths": [4, 8], "width": 4, "seeds": 1, "steps": [0.1], "noisy_depth": 8, "budget": 2}


def equivalence(config: dict[str, Any], tree: str, depth: int, seed: int) -> dict[str, Any]:
    layers = chain_of(Layer(config["width"], "tanh"), depth)
    x, ahead = batch_of(2, config["width"], seed)
    module = module_of(layers, drawn(layers, "orthogonal", seed), tree=tree, probes="coordinate", eps=config["eps"])
    found = found_gradients(module, x, ahead)
    spent = module.ledger.accounts["probes"]
    return {
        "error": relative_error(flat(found), flat(exact_gradients(layers, module, x, ahead))),
        "queries": spent.queries / 2,
        "evaluations": spent.stage_evaluations / 2,
    }


def closed_form(tree: str, depth: int, width: int) -> int:
    """Stage evaluations of one sample; of bisection for powers of two."""
    each = {"chain": 2 * (depth - 1), "bisect": depth * round(math.log2(depth)), "direct": depth * (depth - 1)}
    return width * each[tree]


def controlled(config: dict[str, Any], case: str, depth: int, seed: int) -> dict[str, Any]:
    """Median over the layers of the error of each gradient, at the best step; 1 where gains cannot be set."""
    residual, branch = case.startswith("residual"), depth**-0.5 if "small" in case else 1.0
    layer = Layer(config["width"], "tanh", skip=float(residual), branch=branch, read_noise_std=config["noise"])
    layers = chain_of(layer, depth)
    gain = Gain("scaled", host=False) if "scaled" in case else None
    x, ahead = batch_of(8, config["width"], seed)
    found = {}
    for eps in config["steps"]:
        module = module_of(
            layers, drawn(layers, "torch", seed), tree="bisect", probes="hadamard", eps=eps, seed=seed, gain=gain
        )
        try:
            hzo_hil.balance_model(module, x)
        except DeviceError:  # samples have become so alike that no change of them shows through the noise
            return {"error": 1.0, "eps": 0.0, "set": False}
        each = zip(found_gradients(module, x, ahead), exact_gradients(layers, module, x, ahead), strict=True)
        found[eps] = float(np.median([relative_error(flat([a]), flat([b])) for a, b in each]))
    best = min(found, key=found.__getitem__)
    return {"error": found[best], "eps": best, "set": True}


def noisy(config: dict[str, Any], tree: str, overhead: int, seed: int) -> dict[str, Any]:
    """A tree on a noisy device, with as many repeats as the same cost allows: evaluations and `overhead` a query."""
    depth, width = config["noisy_depth"], config["width"]

    def cost(name: str) -> float:
        return closed_form(name, depth, width) + overhead * 2 * width * (depth - 1)

    repeats = max(1, int(config["budget"] * cost("direct") / cost(tree)))
    layers = chain_of(Layer(width, "tanh", read_noise_std=config["noise"]), depth)
    x, ahead = batch_of(8, width, seed)
    x = 0.1 * x  # near 0 tanh keeps norms
    module = module_of(
        layers, drawn(layers, "orthogonal", seed), tree=tree, probes="coordinate", eps=0.03, seed=seed, repeats=repeats
    )
    found = relative_error(
        flat(found_gradients(module, x, ahead)), flat(exact_gradients(layers, module, x, ahead))
    )  # fmt: skip
    return {"error": found, "repeats": repeats}


def exactness(result: _result.Result) -> None:
    config = result.config
    for tree, depth in itertools.product(NAMED_TREES, config["depths"]):
        each = [
            result.part(f"equivalence/{tree}/{depth}/{seed}", partial(equivalence, config, tree, depth, seed))
            for seed in result.seeds
        ]
        found = max(each, key=lambda f: f["error"])
        result.row(
            f"equivalence, {tree}, L = {depth}", found["error"], "relative error", against="backpropagation",
            target="<= 1e-6", eps=config["eps"],
        )  # fmt: skip
        for what, expected in (
            ("queries", 2 * config["width"] * (depth - 1)), ("evaluations", closed_form(tree, depth, config["width"])),
        ):  # fmt: skip
            result.row(f"{what}, {tree}, L = {depth}", found[what], f"{what} a sample", target=f"== {expected}")


def growth(result: _result.Result, curves: dict[str, list[float]]) -> None:
    config = result.config
    width, eps = config["width"], config["growth_eps"]
    for kind, lip, tree, depth in itertools.product(KINDS, config["lips"], NAMED_TREES, config["depths"]):
        name = f"{kind}/{lip}/{tree}/{depth}"
        found = max(
            result.part(f"growth/{name}/{seed}", partial(grown, kind, lip, depth, tree, width, eps, seed))["error"]
            for seed in result.seeds
        )
        limits = bounds(kind, lip, depth, width, eps)
        if kind == "worst":
            curves.setdefault(f"{tree}, Lip {lip}", []).append(found)
        result.row(
            f"error, {kind}, Lip = {lip}, {tree}, L = {depth}", found, "error over ||T_L||",
            of_first_order=found / limits["first order"], of_equation_25=found / limits["eq25"],
            of_equation_12=found / limits["eq12"],
        )  # fmt: skip
        if tree == "chain":
            # One part in a hundred for what is of higher order in eps, and for rounding.
            result.row(
                f"chain within L Lip^(L-1), {kind}, Lip = {lip}, L = {depth}", found / limits["first order"],
                "of the bound", target="<= 1.01",
            )  # fmt: skip


def grown(kind: str, lip: float, depth: int, tree: str, width: int, eps: float, seed: int) -> dict[str, float]:
    return {"error": error(kind, lip, depth, tree, width, eps, seed)}


def gains(result: _result.Result) -> None:
    for case, depth in itertools.product(GAINS, result.config["depths"]):
        found = [
            result.part(f"gain/{case}/{depth}/{seed}", partial(controlled, result.config, case, depth, seed))
            for seed in result.seeds
        ]
        errors = [f["error"] for f in found]
        result.row(
            f"gain control, {case}, L = {depth}", float(np.median(errors)), "median relative error of a layer",
            range=[min(errors), max(errors)], eps=[f["eps"] for f in found],
            not_set=sum(not f.get("set", True) for f in found),
        )  # fmt: skip


def trees(result: _result.Result) -> None:
    config = result.config
    for overhead, depth in itertools.product(config["overheads"], config["depths"]):
        best, order = least(depth, overhead)
        cuts = str(order) if depth <= 16 else f"first cut {order[0]}"
        result.row(
            f"best tree, L = {depth}, overhead {overhead}", cuts, "cuts",
            **{f"{name}_over_best": of_tree(name, depth, overhead) / best for name in NAMED_TREES},
        )  # fmt: skip
    for overhead, tree in itertools.product(config["overheads"], NAMED_TREES):
        found = [
            result.part(f"noisy/{overhead}/{tree}/{seed}", partial(noisy, config, tree, overhead, seed))
            for seed in result.seeds
        ]
        errors = [f["error"] for f in found]
        result.row(
            f"noisy device, L = {config['noisy_depth']}, overhead {overhead}, {tree}", float(np.median(errors)),
            "relative error", range=[min(errors), max(errors)], repeats=found[0]["repeats"],
        )  # fmt: skip


def main() -> None:
    result = _result.begun("theorems", __doc__, full=FULL, smoke=SMOKE)
    curves: dict[str, list[float]] = {}
    exactness(result)
    growth(result, curves)
    gains(result)
    trees(result)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, values in curves.items():
            axes.loglog(result.config["depths"], values, marker="o", label=name)
        axes.set(xlabel="depth L", ylabel="error of the target at the input, over ||T_L||", title="worst case")
        axes.legend(fontsize="x-small", ncols=2)

    result.finish(draw)


if __name__ == "__main__":
    _result.go(main)
