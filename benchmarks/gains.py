"""Gains kept near 1 in deep narrow chains, and what that does to the gradient's error under noise.

Chains of L low-precision-emulator stages 16 wide, tanh (the last linear), float64, read noise 0.001 at every read-out,
batch 8, bisection with Hadamard probes, each at the best of three steps (printed). `on one chip`: matrices drawn
uniformly in +-1/sqrt(16) as `torch.nn.Linear` draws them, normally with variance 1/16, or by `Gain("orthogonal")`.
`on L chips`: the uniform draw with a chip a stage, so that the host carries every activation on, and the same with
`Gain("none", host=True)`. Rows: geometric mean of a stage's mean-square gain along the targets, by autograd; error of a
stage's gradient (norm, relative to autograd's in float64 on the same weights), the median over the stages, and of the
whole gradient (`whole`), which the last few stages make up where gains are small: the others hardly learn, and are
not missed in it. Calibration queries spent. Median and range over the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import _one_thread  # noqa: F401
import numpy as np
import torch
from _rows import Rows, arguments
from torch import Tensor

import hzo_hil
from hzo_hil import Gain, Opaque, Stage
from hzo_hil.streams import generator
from hzo_hil.updates.delta import DeltaRule

WIDTH, BATCH, NOISE = 16, 8, 1e-3
UNIT = "median relative error of a stage's gradient"
STEPS = (0.003, 0.03, 0.3)


def chip(depth: int, activation: str, seed: int) -> Any:
    options = {"widths": [WIDTH] * (depth + 1), "activation": activation, "read_noise_std": NOISE}
    return hzo_hil.open_device({"kind": "emulator", "options": options, "dtype": "float64", "seed": seed})


def stages(depth: int, apart: bool, normal: bool, seed: int) -> list[Stage]:
    """The last stage of an emulator has no activation; so has a chip of one stage, whose tanh is a chip of two."""
    one = None if apart else chip(depth, "tanh", seed)
    made = []
    for k in range(depth):
        last = k + 1 == depth
        device, index = (one, k) if one is not None else (chip(1 if last else 2, "tanh", seed + k), 0)
        drawn = generator(seed, "normal", k).standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
        initial = {"weight": drawn} if normal else {}
        made.append(Stage(device, index, leaf=DeltaRule("identity" if last else "tanh"), initial=initial))
    return made


def on_host(module: Opaque, x: Tensor) -> list[Tensor]:
    """Activations at every boundary, without noise."""
    found = [x]
    for k, stage in enumerate(module.stages):
        values = dict(stage.named_parameters())
        z = torch.nn.functional.linear(found[-1], values["weight"], values.get("bias"))
        found.append(module.factors[k] * (z if k + 1 == module.network.depth else torch.tanh(z)))
    return found


def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
    return ((outputs - wanted) ** 2).sum() / 2


def relative(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    gap = torch.cat([(a - b).flatten() for a, b in zip(found, exact, strict=True)])
    return float(gap.norm() / torch.cat([g.flatten() for g in exact]).norm())


def by_stage(found: Sequence[Tensor], exact: Sequence[Tensor], depth: int) -> float:
    """Median over the stages of the error of each one's own gradient."""
    each = len(found) // depth
    parts = [slice(k * each, (k + 1) * each) for k in range(depth)]
    return float(np.median([relative(found[p], exact[p]) for p in parts]))


def measured(depth: int, seed: int, gain: Gain | None, apart: bool = False, normal: bool = False) -> dict[str, float]:
    """Of one chain at its best step."""
    draw = torch.Generator().manual_seed(seed)
    x, wanted = (torch.randn(BATCH, WIDTH, generator=draw, dtype=torch.float64) for _ in range(2))
    errors = {}
    for eps in STEPS:
        module = Opaque(
            stages(depth, apart, normal, seed), "bisect", "hadamard", eps, seed=seed, gain=gain
        ).double()  # fmt: skip
        hzo_hil.balance_model(module, x)
        masters = list(module.stages.parameters())
        found = torch.autograd.grad(loss(module(x), wanted), masters)
        passed = on_host(module, x.requires_grad_())
        exact = torch.autograd.grad(loss(passed[-1], wanted), [*masters, *passed])
        gradients, targets = exact[: len(masters)], exact[len(masters) :]
        errors[eps] = by_stage(found, gradients, depth), relative(found, gradients)
        x = x.detach()
    best = min(errors, key=errors.__getitem__)
    stage, whole = errors[best]
    each = float((targets[0].norm() / targets[-1].norm()) ** (2 / depth))
    return {
        "gain": each,
        "error": stage,
        "whole": whole,
        "eps": best,
        "spent": module.ledger.accounts["calibration"].queries,
    }


def main() -> None:
    given = arguments(__doc__)
    seeds, depths = (range(2), (32,)) if given.quick else (range(5), (32, 64))
    rows = Rows()
    rows.environment()
    for depth in depths:
        cases = {
            "one chip, uniform": (None, False, False),
            "one chip, normal": (None, False, True),
            "one chip, orthogonal and scaled": (Gain("orthogonal", host=False), False, False),
            "L chips, uniform": (None, True, False),
            "L chips, uniform, factors of the host": (Gain("none", host=True), True, False),
        }
        first: dict[bool, float] = {}
        for name, (gain, apart, normal) in cases.items():
            found = [measured(depth, seed, gain, apart, normal) for seed in seeds]
            errors = [f["error"] for f in found]
            error = float(np.median(errors))
            against = first.setdefault(apart, error)
            rows.row(
                f"L = {depth}, {name}", error, UNIT, range=[min(errors), max(errors)],
                against="uniform", ratio=error / against, target="<= 0.5" if gain is not None else None,
                whole=float(np.median([f["whole"] for f in found])),
                gain=float(np.median([f["gain"] for f in found])),
                gain_range=[min(f["gain"] for f in found), max(f["gain"] for f in found)],
                eps=[f["eps"] for f in found], calibration_queries=int(np.median([f["spent"] for f in found])),
            )  # fmt: skip
    rows.exit()


if __name__ == "__main__":
    main()
