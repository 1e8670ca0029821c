"""MGD, multiplexed gradient descent: all parameters are perturbed at once, each by a code of its own.

    at each of `period` times t:  dC(t) = C(w + eps s(t)) - C(w),   G_i += dC(t) s_i(t) / eps      period + 1 queries
    then                          w_i <- w_i - lr G_i / sum_t s_i(t)^2

The division makes lr mean the same for every code: G is an estimate of the gradient. With the code `time` over its
period it is CGE with forward differences. `walsh` and `frequency` are orthogonal over their periods, so a linear loss
gives its gradient exactly; curvature mixes parameters, an error O(eps). `random` adds variance. A shorter period leaves
`time` with parameters not visited, which rest in that step: codes go on where they stopped.

Noise that a device would have, for studies without one: of the cost, each time it is read; of the update, each time
parameters are written.

Source: McCaughan et al., "Multiplexed gradient descent" (2023), in discrete time, with the three time constants
perturbation 1, update `period`, sample at least `period` (a step sees one minibatch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hzo_hil.optim import codes
from hzo_hil.optim.descent import Descent
from hzo_hil.optim.directions import draw
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import COUNT, NOT_NEGATIVE, choose


class MGD(Descent):
    """`code`: `time`, `walsh`, `frequency` or `random`; `period`: time steps before an update, None: the code's own.

    `cost_noise`: standard deviation added to each cost, in its unit; `update_noise`: to each parameter at each update,
    in the parameters' unit. Settings of `Descent`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 1e-3,
        code: str = "random",
        period: int | None = None,
        cost_noise: float = 0.0,
        update_noise: float = 0.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.code = choose("MGD", "code", code, codes.CODES)
        if period is not None:
            COUNT.check("MGD", "period", period)
        NOT_NEGATIVE.check("MGD", "cost_noise", cost_noise)
        NOT_NEGATIVE.check("MGD", "update_noise", update_noise)
        self.period = period
        self.cost_noise = cost_noise
        self.update_noise = update_noise
        super().__init__(params, lr, eps, momentum, weight_decay, seed)

    @property
    def queries_per_step(self) -> int:
        return self._times(Flat(self.param_groups)) + 1

    def _times(self, at: Flat) -> int:
        return self.period or codes.period(self.code, at.size)

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        eps = at.setting("eps")
        times = self._times(at)
        noise = self._noise(at, times + 1)
        generator = self._generator(at, "directions")
        base = oracle() + noise[-1]
        total, energy = torch.zeros_like(w), torch.zeros_like(w)
        for k in range(times):
            s = codes.signal(self.code, at, self.state["step"] * times + k, generator)
            change = oracle(w + s * eps) + noise[k] - base
            total += s * (change / eps)
            energy += s**2
        return torch.where(energy > 0, total / energy, 0.0), base

    def _noise(self, at: Flat, count: int) -> list[float]:
        if not self.cost_noise:
            return [0.0] * count
        generator = self._generator(at, "cost noise")
        drawn = torch.randn(count, generator=generator, device=at.device, dtype=torch.float64)
        return (self.cost_noise * drawn).tolist()

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        found, loss = super()._moved(at, w, oracle)
        if self.update_noise:
            found = found + self.update_noise * draw("gaussian", at, self._generator(at, "update noise"))
        return found, loss
