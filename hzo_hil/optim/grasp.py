"""ZO-GraSP: how much of each layer may be left unperturbed, from losses only (DeepZero, eq. 3 and algorithm 1).

It knows a closure and the weights it depends on; it knows neither model nor optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Closure, Oracle
from hzo_hil.optim.settings import COUNT, POSITIVE, Bound, choose
from hzo_hil.streams import stream_key

RANKINGS = ("abs", "signed")
SPARSITY = Bound(high=1.0, open_high=True)


@torch.no_grad()
def grasp_scores(
    weights: Sequence[Tensor],
    closure: Closure,
    queries: int = 192,
    eps: float = 5e-3,
    seed: int = 0,
    fresh: bool = False,
) -> list[Tensor]:
    """S = -w * (g(w + eps g(w)) - g(w)) / eps, where g is a one-sided RGE: 2 (queries + 1) losses.

    Each weight's share of a direction is Gaussian, scaled to unit length, as in the authors' code. Both g use the same
    directions, so that S holds the curvature seen along them; `fresh` draws others for the second, as the authors' code
    does: S then also holds the difference of two samplings, magnified by 1/eps. Returns a tensor for each weight, of
    its shape; the weights are afterwards as before.
    """
    COUNT.check("ZO-GraSP", "queries", queries)
    POSITIVE.check("ZO-GraSP", "eps", eps)
    at = Flat([{"params": list(weights)}])
    oracle = Oracle(at, closure, 0, 2 * (queries + 1))
    w = at.read()
    try:
        g = _random_gradient(at, w, oracle, queries, eps, (seed, 0))
        ahead = _random_gradient(at, w + eps * g, oracle, queries, eps, (seed, int(fresh)))
    finally:
        at.write(w)
    return at.pieces(-w * (ahead - g) / eps)


def pruned_fractions(scores: Sequence[Tensor], sparsity: float, ranking: str = "abs") -> list[float]:
    """The part of each tensor beyond one threshold over all scores, such that `round(sparsity * numbers)` fall in all.

    `abs` prunes the smallest absolute scores, as the authors' code does; `signed` the largest scores: without them
    the gradient keeps most of its flow (Wang et al., "Picking winning tickets", 2020).
    """
    SPARSITY.check("ZO-GraSP", "sparsity", sparsity)
    choose("ZO-GraSP", "ranking", ranking, RANKINGS)
    flat = torch.cat([s.detach().reshape(-1).double().cpu() for s in scores])
    worth = flat.abs() if ranking == "abs" else -flat
    pruned = torch.zeros(len(flat), dtype=torch.bool)
    pruned[torch.argsort(worth, stable=True)[: round(sparsity * len(flat))]] = True
    return [int(part.sum()) / len(part) for part in pruned.split([s.numel() for s in scores])]


def prunable(parameter: Tensor) -> bool:
    """Weights of convolutions and linear layers. Norms and biases have one axis and are always perturbed."""
    return parameter.ndim >= 2


def layer_fractions(
    parameters: Sequence[Tensor],
    closure: Closure,
    sparsity: float,
    ranking: str = "abs",
    queries: int = 192,
    eps: float = 5e-3,
    seed: int = 0,
    fresh: bool = False,
) -> list[float]:
    """The pruned fraction of each trained parameter, 0 for what is always perturbed: `fractions` of `DeepZero`.

    `closure` returns the loss on a batch of its own (the authors: 25 images a class). Asks 2 (queries + 1) losses.
    Running statistics: ask within `statistics_kept(model)`.
    """
    SPARSITY.check("ZO-GraSP", "sparsity", sparsity)
    choose("ZO-GraSP", "ranking", ranking, RANKINGS)
    trained = [p for p in parameters if p.requires_grad]
    weights = [p for p in trained if prunable(p)]
    if not weights:
        raise BadInput("ZO-GraSP found no trained parameter with two axes or more: there is nothing to prune")
    found = iter(pruned_fractions(grasp_scores(weights, closure, queries, eps, seed, fresh), sparsity, ranking))
    return [next(found) if prunable(p) else 0.0 for p in trained]


def _random_gradient(at: Flat, w: Tensor, oracle: Oracle, queries: int, eps: float, stream: tuple[int, int]) -> Tensor:
    base = oracle(w)
    found = torch.zeros_like(w)
    for query in range(queries):
        key = stream_key(*stream, "grasp", query)
        u = _unit_pieces(at, torch.Generator(at.device).manual_seed(key % 2**63))
        found += (oracle(w + eps * u) - base) / (eps * queries) * u
    return found


def _unit_pieces(at: Flat, generator: torch.Generator) -> Tensor:
    u = torch.randn(at.size, generator=generator, dtype=at.dtype, device=at.device)
    for piece in at.pieces(u):
        piece /= torch.linalg.vector_norm(piece)
    return u
