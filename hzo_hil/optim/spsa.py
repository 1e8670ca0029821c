"""Random directions: SPSA and the randomised gradient estimate (RGE).

    two-sided   g = 1/q sum_i (l(w + eps u_i) - l(w - eps u_i)) / (2 eps) u_i     2q queries
    one-sided   g = 1/q sum_i (l(w + eps u_i) - l(w)) / eps u_i                   q + 1 queries

For a linear loss both are unbiased, with E |g - grad|^2 = c/q |grad|^2: c = d - 1 for signs and the sphere, d + 1 for
normal directions, d the number of parameters. Curvature biases the two-sided estimate by O(eps^2), the one-sided by
O(eps) for asymmetric losses, and adds variance.

Sources: Spall, IEEE Trans. Automatic Control 37, 332 (1992): signs, two-sided, q = 1; Nesterov and Spokoiny, Found.
Comput. Math. 17, 527 (2017): normal directions, one-sided.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hzo_hil.optim.descent import Descent
from hzo_hil.optim.directions import KINDS, draw
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import COUNT, choose


class SPSA(Descent):
    """`directions`: q. `distribution`: `rademacher`, `gaussian` or `sphere`."""

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 1e-3,
        directions: int = 1,
        two_sided: bool = True,
        distribution: str = "rademacher",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        COUNT.check(type(self).__name__, "directions", directions)
        self.directions = directions
        self.two_sided = two_sided
        self.distribution = choose(type(self).__name__, "distribution", distribution, KINDS)
        super().__init__(params, lr, eps, momentum, weight_decay, seed)

    @property
    def queries_per_step(self) -> int:
        return 2 * self.directions if self.two_sided else self.directions + 1

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        eps = at.setting("eps")
        generator = self._generator(at, "directions")
        base = None if self.two_sided else oracle()
        gradient: Tensor | None = None
        around = 0.0
        for _ in range(self.directions):
            u = draw(self.distribution, at, generator)
            # Where eps differs from group to group, the loss sees eps u and each element is divided by its own eps.
            move = u * eps
            plus = oracle(w + move)
            if base is None:
                minus = oracle(w - move)
                change = (plus - minus) / 2
                around += (plus + minus) / 2
            else:
                change = plus - base
            part = u.mul_(change / self.directions / eps)
            gradient = part if gradient is None else gradient.add_(part)
        assert gradient is not None
        return gradient, around / self.directions if base is None else base


class RGE(SPSA):
    """SPSA as the zeroth-order literature writes it: normal directions, one-sided."""

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 1e-3,
        directions: int = 1,
        two_sided: bool = False,
        distribution: str = "gaussian",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, lr, eps, directions, two_sided, distribution, momentum, weight_decay, seed)
