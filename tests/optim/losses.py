"""Losses whose gradients and curvatures are known, and parameters to ask them about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Quadratic:
    """l(w) = w^T A w / 2 + b^T w over a list of parameters, taken as one vector."""

    def __init__(self, curvature: Tensor, slope: Tensor, parameters: Sequence[Tensor]) -> None:
        self.curvature = curvature
        self.slope = slope
        self.parameters = list(parameters)
        self.asked: list[Tensor] = []

    def __call__(self) -> Tensor:
        w = self.vector()
        self.asked.append(w.clone())
        return w @ self.curvature @ w / 2 + self.slope @ w

    def vector(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters]).to(self.slope.dtype)

    def gradient(self) -> Tensor:
        return self.gradient_at(self.vector())

    def gradient_at(self, w: Tensor) -> Tensor:
        return self.curvature @ w + self.slope


def quadratic(
    shapes: Sequence[tuple[int, ...]] = ((3, 2), (4,)),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    curved: bool = True,
    curvature: Callable[[int], Tensor] | None = None,
) -> Quadratic:
    """A random positive definite quadratic; `curved` False: linear."""
    rng = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype)) for s in shapes]
    size = sum(p.numel() for p in parameters)
    root = torch.randn(size, size, generator=rng, dtype=torch.float64)
    a = root @ root.T / size if curvature is None else curvature(size)
    slope = torch.randn(size, generator=rng, dtype=torch.float64)
    return Quadratic(a if curved else torch.zeros_like(a), slope, parameters)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
