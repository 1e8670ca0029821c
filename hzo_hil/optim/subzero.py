"""SubZero: directions of low rank, drawn in a random subspace of each layer.

    Z_l = U_l R_l V_l^T for each matrix l, R_l an r x r matrix of normal numbers, U_l and V_l with r orthonormal columns
    c = (l(w + eps Z) - l(w - eps Z)) / (2 eps),    w <- w - lr c Z                             2 queries

U and V are drawn anew every `refresh` steps. Tensors of more than two dimensions count as matrices with their first
dimension as rows; vectors and scalars get normal directions. On average c Z is the gradient's projection onto the
subspace, with the variance of a problem of r x r elements per layer instead of all.

Source: Yu et al., "SubZero: random subspace zeroth-order optimization for memory-efficient LLM fine-tuning" (2024),
r = 24, refresh 1000 (without the reshaping of very oblong matrices).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hzo_hil.optim.descent import Descent
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import COUNT

Basis = tuple[Tensor, Tensor]


class SubZero(Descent):
    """`rank`: r, at most a matrix's smaller side. Settings of `Descent`."""

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 1e-3,
        rank: int = 24,
        refresh: int = 1000,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        COUNT.check("SubZero", "rank", rank)
        COUNT.check("SubZero", "refresh", refresh)
        self.rank = rank
        self.refresh = refresh
        self._held: tuple[tuple[int, int, torch.device], list[Basis | None]] | None = None
        super().__init__(params, lr, eps, momentum, weight_decay, seed)

    @property
    def queries_per_step(self) -> int:
        return 2

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        eps = at.setting("eps")
        z = self._direction(at)
        plus, minus = oracle(w + z * eps), oracle(w - z * eps)
        return z * ((plus - minus) / 2 / eps), (plus + minus) / 2

    def _direction(self, at: Flat) -> Tensor:
        generator = self._generator(at, "directions")

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=at.device, dtype=at.dtype)

        parts = []
        for p, basis in zip(at.tensors, self.bases(at), strict=True):
            if basis is None:
                parts.append(normal(p.numel()))
            else:
                left, right = basis
                parts.append((left @ normal(left.shape[1], right.shape[1]) @ right.T).reshape(-1))
        return torch.cat(parts)

    def bases(self, at: Flat) -> list[Basis | None]:
        """Orthonormal columns (U [rows, r], V [columns, r]) for each parameter, None for vectors.

        Keyed by their turn, so that they need not be saved.
        """
        key = (self.state["seed"], self.state["step"] // self.refresh, at.device)
        if self._held is None or self._held[0] != key:
            generator = self._generator(at, "subspace", key[1])
            self._held = key, [self._basis(p, at, generator) for p in at.tensors]
        return self._held[1]

    def _basis(self, p: Tensor, at: Flat, generator: torch.Generator) -> Basis | None:
        if p.ndim < 2 or not p.numel():
            return None
        rows, columns = p.shape[0], p.numel() // p.shape[0]
        rank = min(self.rank, rows, columns)

        def orthonormal(size: int) -> Tensor:
            drawn = torch.randn(size, rank, generator=generator, device=at.device, dtype=at.dtype)
            return torch.linalg.qr(drawn)[0]

        return orthonormal(rows), orthonormal(columns)
