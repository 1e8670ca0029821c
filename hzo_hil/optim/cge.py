"""Coordinates one at a time: the coordinate-wise gradient estimate (CGE).

    forward   g_i = (l(w + eps e_i) - l(w)) / eps                    d + 1 queries
    central   g_i = (l(w + eps e_i) - l(w - eps e_i)) / (2 eps)      2d queries

Deterministic. Bias O(eps) forward, O(eps^2) central; on a quadratic central is exact. It divides by the step that the
parameters' dtype really made. Source: Chen et al., "DeepZero" (2024), with eps 5e-3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hzo_hil.optim.descent import Descent
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle


class CGE(Descent):
    """`central`: two-sided differences. Settings of `Descent`."""

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 5e-3,
        central: bool = False,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.central = central
        super().__init__(params, lr, eps, momentum, weight_decay, seed)

    @property
    def queries_per_step(self) -> int:
        size = Flat(self.param_groups).size
        return 2 * size if self.central else size + 1

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        return coordinate_gradient(at, w, oracle, range(at.size), self.central)


def coordinate_gradient(
    at: Flat, w: Tensor, oracle: Oracle, coordinates: Iterable[int], central: bool = False
) -> tuple[Tensor, float]:
    """Differences along some coordinates, zero elsewhere [size], and the loss at `w` (central: the mean around it).

    Queries: one for each coordinate and one more, or two for each. The parameters hold `w` before and after.
    """
    eps = at.setting("eps")
    up = at.settled(w + eps)
    down = at.settled(w - eps) if central else w
    here, plus, minus = w.tolist(), up.tolist(), down.tolist()
    base = 0.0 if central else oracle()
    where: list[int] = []
    changes: list[float] = []
    around = 0.0
    for i in coordinates:
        at.put(i, plus[i])
        high = low = oracle()
        if central:
            at.put(i, minus[i])
            low = oracle()
            around += (high + low) / 2
        at.put(i, here[i])
        where.append(i)
        changes.append(high - (low if central else base))
    gradient = torch.zeros_like(w)
    index = torch.tensor(where, device=at.device, dtype=torch.long)
    moved = (up.double() - down.double())[index]
    change = torch.tensor(changes, dtype=torch.float64, device=at.device)
    # A step too small for the dtype moved nothing and has told nothing.
    gradient[index] = torch.where(moved != 0, change / moved, 0.0).to(w.dtype)
    return gradient, around / max(1, len(where)) if central else base
