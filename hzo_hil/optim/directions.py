"""Random directions u with E[u u^T] = I. It knows neither losses nor steps."""

from __future__ import annotations

import torch
from torch import Tensor

from hzo_hil.optim.flat import Flat

KINDS = ("rademacher", "gaussian", "sphere")


def draw(kind: str, at: Flat, generator: torch.Generator) -> Tensor:
    """One direction [size]: signs, standard normal numbers, or a point on the sphere of radius sqrt(size)."""
    if kind == "rademacher":
        signs = torch.randint(0, 2, (at.size,), generator=generator, device=at.device, dtype=at.dtype)
        return signs.mul_(2).sub_(1)
    normal = torch.randn(at.size, generator=generator, device=at.device, dtype=at.dtype)
    if kind == "sphere":
        normal *= at.size**0.5 / torch.linalg.vector_norm(normal)
    return normal
