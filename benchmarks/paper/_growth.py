"""How wrong targets get over L stages: chains whose every derivative is known, and the bounds they are held against.

`worst`: a -> sin(Lip a), coordinate by coordinate, at a = 0, where slope and third derivative are the largest there
are: Lip and Lip^3. `typical`: a -> sin(Lip Q a) with rotations Q at random activations. Both have Lipschitz constant
Lip and a Hessian whose Lipschitz constant along coordinates is at most beta = Lip^3. Knows no noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from _layers import Layer, batch_of, chain_of, drawn, forward, module_of

KINDS = ("worst", "typical")


def error(kind: str, lip: float, depth: int, tree: str, width: int, eps: float, seed: int) -> float:
    """||T_0 found - T_0|| / ||T_L||, the largest over the samples. The cut at the input adds one to the tree's."""
    layers = chain_of(Layer(width, "sin"), depth)
    weights = drawn(layers, "orthogonal", seed, lip) if kind == "typical" else [lip * np.eye(width)] * depth
    x, ahead = batch_of(4, width, seed)
    x = x * (0.3 if kind == "typical" else 0.0)
    module = module_of(layers, weights, tree=tree, probes="coordinate", eps=eps, seed=seed)
    found, exact = (
        torch.autograd.grad((model(at) * ahead).sum(), at)[0]
        for model, at in (
            (module, x.clone().requires_grad_()),
            (lambda a: forward(layers, [p.detach() for p in module.parameters()], a), x.clone().requires_grad_()),
        )
    )
    return float(((found - exact).norm(dim=1) / ahead.norm(dim=1)).max())


def constant(kind: str, width: int) -> float:
    """C of |central difference - derivative| <= C beta eps^2 |T|: 1/6 a coordinate, which add up where they mix."""
    return 1 / 6 if kind == "worst" else math.sqrt(width) / 6


def first_order(lip: float, depth: int) -> float:
    """L Lip^(L-1): equation 23 with 24, to first order in eps^2."""
    return depth * lip ** (depth - 1)


def equation_25(lip: float, depth: int) -> float:
    """The paper's (Lip^L - 1) / (Lip - 1), L in the limit of 1."""
    return depth if lip == 1 else (lip**depth - 1) / (lip - 1)


def equation_12(lip: float, depth: int) -> float:
    """The paper's Lip^(2L) for one difference through all stages."""
    return float(lip ** (2 * depth))


def bounds(kind: str, lip: float, depth: int, width: int, eps: float) -> dict[str, Any]:
    """Each of them times C beta eps^2, an error relative to ||T_L||."""
    unit = constant(kind, width) * lip**3 * eps**2
    return {
        "first order": unit * first_order(lip, depth),
        "eq25": unit * equation_25(lip, depth),
        "eq12": unit * equation_12(lip, depth),
    }
