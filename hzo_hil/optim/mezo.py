"""MeZO: one normal direction, drawn again from its seed whenever it is needed, so that it is never held.

    c = (l(w + eps z) - l(w - eps z)) / (2 eps),    w <- w - lr (c z + weight_decay w)        2 queries

The published code walks w + eps z, w - eps z, w in place, and rounding lets w drift at every step. Here w is kept and
put back: no drift, for the memory of one copy of the parameters; of z there is never more than one tensor.

Source: Malladi et al., "Fine-tuning language models with just forward passes" (2023), lr 1e-6, eps 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import NOT_NEGATIVE, POSITIVE, Bound


class MeZO(LossOnly):
    """`lr`, `eps` and `weight_decay` may differ from group to group."""

    bounds: ClassVar[dict[str, Bound]] = {"lr": NOT_NEGATIVE, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE}

    def __init__(
        self, params: Any, lr: float = 1e-6, eps: float = 1e-3, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay}, seed)

    @property
    def queries_per_step(self) -> int:
        return 2

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        plus = self._asked(at, w, oracle, 1)
        minus = self._asked(at, w, oracle, -1)
        change = (plus - minus) / 2
        rates, steps, decays = (at.settings(name) for name in ("lr", "eps", "weight_decay"))
        for held, z, rate, step, decay in zip(at.pieces(w), self._direction(at), rates, steps, decays, strict=True):
            held.mul_(1 - rate * decay).sub_(z, alpha=rate * change / step)
        return w, (plus + minus) / 2

    def _asked(self, at: Flat, w: Tensor, oracle: Oracle, sign: int) -> float:
        pieces = zip(at.tensors, at.pieces(w), self._direction(at), at.settings("eps"), strict=True)
        for p, held, z, eps in pieces:
            p.copy_(z.mul_(sign * eps).add_(held))
        return oracle()

    def _direction(self, at: Flat) -> Iterator[Tensor]:
        """z, one parameter at a time: the same at every call within a step."""
        generator = self._generator(at, "directions")
        for p in at.tensors:
            yield torch.randn(p.shape, generator=generator, device=at.device, dtype=at.dtype)
