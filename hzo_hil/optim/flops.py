"""FLOPS: one-sided normal perturbations of a mesh's phases.

    g = 1/q sum_i (l(w + s z_i) - l(w)) / s z_i,    w <- w - lr g        q + 1 queries

Source: Gu et al., "FLOPS: efficient on-chip learning for optical neural networks through stochastic zeroth-order
optimization" (2020); s = 0.1 rad and q = 20 as in its authors' later code.
"""

from __future__ import annotations

from typing import Any

from hzo_hil.optim.spsa import SPSA


class FLOPS(SPSA):
    """`eps`: s, in the parameters' unit (rad). `directions`: q."""

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 0.1,
        directions: int = 20,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, lr, eps, directions, False, "gaussian", momentum, weight_decay, seed)
