"""Curvature in two-dimensional planes, fitted to finite-difference slopes seen along the way (for ZO-SAH).

Knows points, slopes and linear algebra; knows neither losses nor parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SEEN = 1e-3  # directions moved by less than this part of the largest move say nothing about curvature: noise would


def orthonormal(dimension: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random orthonormal rows `[count, dimension]`, uniformly distributed; float64 on the CPU."""
    gaussian = torch.randn(dimension, count, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).T.contiguous()


def curvature(points: Tensor, slopes: Tensor, prior: float) -> Tensor:
    """Hessians `[plane, 2, 2]` whose secants fit best: H (a_t - mean a) = g_t - mean g, least squares over steps t.

    `points` and `slopes` are `[step, plane, 2]`: where each plane stood and the forward differences there. It is the
    least-squares fit of c0 + c1 x + c2 y + c3 x^2 + c4 xy + c5 y^2 to the plane's evaluations, with a constant c0 for
    each step, since other planes and the next batch move the loss between steps. The error eps H_ii / 2 of a forward
    difference is the same in every slope and cancels. Three steps not on one line determine H; what fewer leave open
    stays at `prior` times the identity.
    """
    moves = (points - points.mean(0)).transpose(0, 1)  # [plane, step, 2]
    changes = (slopes - slopes.mean(0)).transpose(0, 1) - prior * moves
    x, y, nothing = moves[..., 0], moves[..., 1], torch.zeros_like(moves[..., 0])
    root = math.sqrt(2)  # unknowns H_xx, sqrt(2) H_xy, H_yy: the least norm is then that of the matrix
    rows = torch.cat([torch.stack([x, y / root, nothing], -1), torch.stack([nothing, x / root, y], -1)], dim=1)
    found = torch.linalg.pinv(rows, rtol=SEEN) @ torch.cat([changes[..., 0], changes[..., 1]], dim=1).unsqueeze(-1)
    xx, xy, yy = found.squeeze(-1).unbind(-1)
    fitted = torch.stack([xx, xy / root, xy / root, yy], -1).unflatten(-1, (2, 2))
    return fitted + prior * torch.eye(2, dtype=points.dtype)


def damped(hessians: Tensor, slopes: Tensor, damping: float) -> Tensor:
    """(|H| + damping)^-1 g in every plane `[plane, 2]`: Newton's step where H is positive, downhill everywhere."""
    values, vectors = torch.linalg.eigh(hessians)
    inside = vectors.mT @ slopes.unsqueeze(-1)
    return (vectors @ (inside / (values.abs() + damping).unsqueeze(-1))).squeeze(-1)
