"""How errors of a target become errors of a stage's gradient, by the leaf rule itself: the host computes, nothing asks.

Targets of the lower stages are not known; they are drawn with the energies and the likeness between samples that gains
and likeness of the Jacobians give them from the known one at the top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hzo_hil.network import Network
from hzo_hil.updates import Leaf, LeafRule

Array = NDArray[Any]
LeafOf = Callable[[int, Array, Array, Array], Leaf]
"""(stage, inputs, outputs, target) to what a rule is given."""
_DRAWS = 6


def energies(
    network: Network,
    rules: Sequence[LeafRule | None],
    wanted: Sequence[bool],
    passes: Sequence[dict[int, Array]],
    products: Sequence[Array],
    leaf_of: LeafOf,
    key: int,
) -> tuple[list[float], list[float], list[float]]:
    """By stage: mean squared norm of one sample's gradient, mean product of two samples' gradients, and squared error
    of one sample's gradient by noise of the activations. `passes`: two forward passes of the same inputs; `products`
    [samples, samples] of the targets at each boundary. All zero for a stage that is not trained.
    """
    rng = np.random.Generator(np.random.Philox(key=key))
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for k, rule in enumerate(rules):
        one, two = ((p[k], p[k + 1]) for p in passes)
        if rule is None or not wanted[k]:
            values = (0.0, 0.0, 0.0)
        elif rule.queries or network.stages[k].tiles:
            values = _as_outer(products[k + 1], one[0], two[0])
        else:
            values = _by_rule(rule, k, one, two, products[k + 1], network.width(k + 1), leaf_of, rng)
        for into, value in zip(found, values, strict=True):
            into.append(value)
    return found


def _as_outer(product: Array, one: Array, two: Array) -> tuple[float, float, float]:
    """For rules that ask, and matrices in blocks: as if the gradient were the product of target and input."""
    inputs = (one + two).astype(np.float64) / 2
    whole = product * (inputs @ inputs.T)
    changed = np.sum((one - two).astype(np.float64) ** 2, axis=1) / 2
    return *_split(float(whole.trace()), float(whole.sum()), len(one)), float(np.mean(np.diag(product) * changed))


def _by_rule(
    rule: LeafRule, k: int, one: tuple[Array, Array], two: tuple[Array, Array], product: Array, width: int,
    leaf_of: LeafOf, rng: np.random.Generator,
) -> tuple[float, float, float]:  # fmt: skip
    samples = len(product)
    together = _root(product)
    apart = np.diag(np.sqrt(np.diag(product)))
    alone = total = changed = 0.0
    with torch.enable_grad():
        for _ in range(_DRAWS):
            drawn = rng.standard_normal((samples, width)) / width**0.5
            likely = rule.gradients(leaf_of(k, *one, together @ drawn))
            other = rule.gradients(leaf_of(k, *two, together @ drawn))
            lone = rule.gradients(leaf_of(k, *one, apart @ drawn))
            alone += _norm(lone)
            total += _norm(likely)
            changed += _norm({n: likely[n] - other[n] for n in likely}) / 2
    own, shared = _split(alone / _DRAWS, total / _DRAWS, samples)
    return own, shared, changed / _DRAWS / samples


def _split(alone: float, total: float, samples: int) -> tuple[float, float]:
    """(per sample, per pair of samples) of the squared norm of a sum."""
    shared = (total - alone) / (samples * (samples - 1)) if samples > 1 else 0.0
    # Gradients of two samples agree or do not, on the average; below zero it is chance.
    return alone / samples, max(shared, 0.0)


def _root(product: Array) -> Array:
    values, vectors = np.linalg.eigh((product + product.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _norm(gradients: dict[str, Tensor]) -> float:
    return float(sum(g.detach().double().pow(2).sum() for g in gradients.values()))


def products_of(top: Array, gains: Sequence[float], likeness: Sequence[float]) -> list[Array]:
    """Products [samples, samples] of the targets at boundaries 0..depth, from the top one downwards."""
    found = [top.astype(np.float64) @ top.T.astype(np.float64)]
    for gain, alike in zip(reversed(gains), reversed(likeness), strict=True):
        below = found[-1] * gain
        apart = below * alike
        np.fill_diagonal(apart, np.diag(below))
        found.append(apart)
    return found[::-1]
