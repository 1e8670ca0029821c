"""Figure 5 of the HZO paper: ReLU against GELU and number formats, across depth, with a fixed step and with our own.

Residual dense chains, a + f(W a) / sqrt(L) with weights of variance 2 / fan-in (activations stay near 1 at any depth),
bisection with coordinates, the cosine of the whole gradient to autograd in float64 on the same weights. float64 and
float32 are the device's own arithmetic. The other formats are emulated: inputs, weights and outputs of every stage are
rounded to them, sums are not, so that a device computing in them throughout does no better. int8 is fixed point, 3
integer and 4 fractional bits, saturating. The paper gives no step: `fixed` is `eps`, one for all formats. `ours` is the
power of two nearest to u^(1/3), u the relative spacing of the format near 1, where truncation and rounding balance but
for a constant (More & Wild, 2011); for int8 two of its steps.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import _result  # isort: skip
import numpy as np
from _layers import Layer, alignment, batch_of, chain_of, drawn, exact_gradients, found_gradients, module_of

# name: the device's dtype, the format of its values, their spacing near 1
FORMATS = {
    "float64": ("float64", "float", 2.0**-52),
    "float32": ("float32", "float", 2.0**-23),
    "float16": ("float32", "fp16", 2.0**-10),
    "bf16": ("float32", "bf16", 2.0**-7),
    "fp8 e4m3": ("float32", "fp8_e4m3", 2.0**-3),
    "fp8 e5m2": ("float32", "fp8_e5m2", 2.0**-2),
    "int8": ("float32", "fixed3.4", 2.0**-4),
}
CURVES = ("relu", "gelu")
FULL: dict[str, Any] = {"depths": [4, 16, 32, 64, 128], "width": 32, "batch": 4, "eps": 1e-3, "seeds": 5}
SMOKE = {"depths": [4, 8], "width": 6, "seeds": 1}


def ours(name: str) -> float:
    spacing = FORMATS[name][2]
    return 2 * spacing if name == "int8" else 2.0 ** round(math.log2(spacing) / 3)


def cosines(config: dict[str, Any], curve: str, name: str, depth: int, eps: float, seed: int) -> dict[str, float]:
    dtype, number, _ = FORMATS[name]
    width = config["width"]
    layers = chain_of(Layer(width, curve, skip=1.0, branch=depth**-0.5, number=number), depth)
    weights = drawn(layers, "he", seed)
    x, ahead = batch_of(config["batch"], width, seed)
    module = module_of(layers, weights, dtype, tree="bisect", probes="coordinate", eps=eps, seed=seed)
    return alignment(found_gradients(module, x, ahead), exact_gradients(layers, module, x, ahead))


def main() -> None:
    result = _result.begun("fig5", __doc__, full=FULL, smoke=SMOKE)
    config = result.config
    curves: dict[tuple[str, str, str], list[float]] = {}
    for curve, name, step, depth in itertools.product(CURVES, FORMATS, ("fixed", "ours"), config["depths"]):
        eps = config["eps"] if step == "fixed" else ours(name)
        found = [
            result.part(
                f"{curve}/{name}/{step}/{depth}/{seed}", partial(cosines, config, curve, name, depth, eps, seed)
            )
            for seed in result.seeds
        ]
        each = [f["whole"] for f in found]
        curves.setdefault((curve, name, step), []).append(float(np.median(each)))
        result.row(
            f"{curve}, {name}, {step} step, L = {depth}", float(np.median(each)), "cosine",
            against="float64 autograd", eps=eps, range=[min(each), max(each)],
            first_layer=float(np.median([f["first"] for f in found])),
        )  # fmt: skip

    def draw(figure: Any) -> None:
        grid = figure.subplots(1, 4, sharey=True)
        panels = [(c, s) for c in CURVES for s in ("fixed", "ours")]
        for axes, (curve, step) in zip(grid, panels, strict=True):
            for name in FORMATS:
                axes.plot(config["depths"], curves[curve, name, step], marker="o", label=name)
            axes.set(title=f"{curve}, {step} step", xlabel="depth L", ylim=(-0.05, 1.05))
        grid[0].set_ylabel("cosine to float64 autograd")
        grid[0].legend(fontsize="small")

    result.finish(draw)


if __name__ == "__main__":
    _result.go(main)
