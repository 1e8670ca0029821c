"""HiZOO: random directions scaled by a running estimate of the Hessian's diagonal.

    u = z / sqrt(H),  c = (l(w + eps u) - l(w - eps u)) / (2 eps),  g = c u                     3 queries
    H <- (1 - a) H + a |l(w + eps u) + l(w - eps u) - 2 l(w)| / (2 eps^2) H z^2

On average g is H^-1 times the gradient. For a quadratic with a positive diagonal Hessian A the average of what is mixed
in is A + H tr(A / H) / 2, so H settles at (1 + d/2) A: A's shape, not its size, which the learning rate must absorb.

Source: Zhao et al., "Second-order fine-tuning without pain for LLMs: a Hessian informed zeroth-order optimizer" (2024),
a = 1e-8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hzo_hil.optim.descent import Descent
from hzo_hil.optim.directions import draw
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import FRACTION

FLOOR = 1e-6
"""H may not vanish where the loss is flat: 1/H would run away. (Ours; the authors let it.)"""


class HiZOO(Descent):
    """`smooth`: a. `state["hessian"]` holds H, which begins as ones. Settings of `Descent`."""

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 1e-3,
        smooth: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        FRACTION.check("HiZOO", "smooth", smooth)
        self.smooth = smooth
        super().__init__(params, lr, eps, momentum, weight_decay, seed)

    @property
    def queries_per_step(self) -> int:
        return 3

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        gradient, _, loss = self._probed(at, w, oracle)
        return gradient, loss

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        gradient, hessian, loss = self._probed(at, w, oracle)
        self.state["hessian"] = hessian
        return self._descended(at, w, gradient), loss

    def _probed(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, Tensor, float]:
        """The estimate, the next H, and the loss at `w`."""
        eps = at.setting("eps")
        hessian = self.state.get("hessian")
        if hessian is None:
            hessian = torch.ones_like(w)
        z = draw("gaussian", at, self._generator(at, "directions"))
        u = z / hessian.sqrt()
        base = oracle()
        plus, minus = oracle(w + u * eps), oracle(w - u * eps)
        seen = abs(plus + minus - 2 * base) / 2 / eps**2 * hessian * z**2
        following = ((1 - self.smooth) * hessian + self.smooth * seen).clamp_(min=FLOOR)
        return u * ((plus - minus) / 2 / eps), following, base
