"""LPP, layered-parameter perturbation: perturb a mesh's phases so that its outputs move evenly in all directions.

    delta ~ N(0, S),  S = (1 + rho) (F + rho I)^-1,  F a running mean of J^T J of a nominal model
    w <- w - lr/q sum_i (l(w + eps delta_i) - l(w)) / eps delta_i                               q + 1 queries

On average the step is lr S times the gradient: a natural gradient in the nominal model's output space. Each parameter
group is one module with its own F (n x n for n parameters: memory n^2, a Cholesky factor n^3 at each refresh). F is
scaled to a mean diagonal of 1, so that rho means the same for every module (ours).

Source: Sawada, Aoyama and Notomi, "Layered-parameter perturbation for zeroth-order optimization of optical neural
networks" (2025), rho 0.1, refreshed every 100 steps. The rate of the running mean is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.descent import Descent
from hzo_hil.optim.directions import draw
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import COUNT, POSITIVE, SHARE

Jacobian = Callable[[], Sequence[Tensor]]


class LPP(Descent):
    """`jacobian`: called without arguments on the host every `refresh` steps; returns for each parameter group J
    [outputs, parameters of the group] of a nominal model at the present parameters. It asks no loss.

    `rate`: share of the newest J^T J in F. `directions`: q. Settings of `Descent`.
    """

    tier: ClassVar[str] = "twin"

    def __init__(
        self,
        params: Any,
        lr: float,
        jacobian: Jacobian,
        eps: float = 1e-2,
        directions: int = 1,
        rho: float = 0.1,
        refresh: int = 100,
        rate: float = 0.5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        COUNT.check("LPP", "directions", directions)
        COUNT.check("LPP", "refresh", refresh)
        POSITIVE.check("LPP", "rho", rho)
        SHARE.check("LPP", "rate", rate)
        self.jacobian = jacobian
        self.directions = directions
        self.rho = rho
        self.refresh = refresh
        self.rate = rate
        self._held: tuple[list[Tensor], list[Tensor]] = [], []
        super().__init__(params, lr, eps, momentum, weight_decay, seed)

    @property
    def queries_per_step(self) -> int:
        return self.directions + 1

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        metrics = self._metrics(at)
        gradient, loss = self._along(at, w, oracle, metrics)
        self.state.update({f"metric.{k}": metric for k, metric in enumerate(metrics)})
        return self._descended(at, w, gradient), loss

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        return self._along(at, w, oracle, self._metrics(at))

    def _along(self, at: Flat, w: Tensor, oracle: Oracle, metrics: list[Tensor]) -> tuple[Tensor, float]:
        eps = at.setting("eps")
        generator = self._generator(at, "directions")
        factors = self._factors(metrics)
        base = oracle()
        total = torch.zeros_like(w)
        for _ in range(self.directions):
            delta = self._correlated(draw("gaussian", at, generator), factors)
            total += delta * ((oracle(w + delta * eps) - base) / self.directions / eps)
        return total, base

    def _metrics(self, at: Flat) -> list[Tensor]:
        """F of each group, [n, n]: brought up to date where it is time to."""
        held = [self.state.get(f"metric.{k}") for k in range(len(at.counts))]
        if self.state["step"] % self.refresh and all(m is not None for m in held):
            return [m for m in held if m is not None]
        with torch.enable_grad():
            matrices = self.jacobian()
        if not isinstance(matrices, Sequence) or len(matrices) != len(at.counts):
            found = f"{len(matrices)} matrices" if isinstance(matrices, Sequence) else type(matrices).__name__
            raise BadInput(
                f"LPP: jacobian returned {found} for {len(at.counts)} parameter groups: it must return a list of one"
                " matrix for each"
            )
        fresh = [self._metric(k, j, at) for k, j in enumerate(matrices)]
        return [f if m is None else m + self.rate * (f - m) for m, f in zip(held, fresh, strict=True)]

    def _metric(self, k: int, jacobian: Tensor, at: Flat) -> Tensor:
        count = at.counts[k]
        j = jacobian.detach().to(device=at.device, dtype=torch.float64)
        if j.ndim != 2 or j.shape[1] != count or not torch.isfinite(j).all():
            raise BadInput(
                f"LPP: jacobian of parameter group {k} must be a finite matrix [outputs, {count}]; it is"
                f" {tuple(jacobian.shape)}" + ("" if torch.isfinite(j).all() else " and not finite")
            )
        metric = j.T @ j
        scale = metric.diagonal().mean() if count else torch.tensor(0.0)
        return metric / scale if scale > 0 else torch.eye(count, device=at.device, dtype=torch.float64)

    def _factors(self, metrics: list[Tensor]) -> list[Tensor]:
        """Of the metrics, which are the same objects until the next refresh."""
        past, factors = self._held
        if len(past) != len(metrics) or any(a is not b for a, b in zip(past, metrics, strict=True)):
            factors = [self._factor(metric) for metric in metrics]
            self._held = metrics, factors
        return factors

    def _factor(self, metric: Tensor) -> Tensor:
        """L with L L^T = (F + rho I) / (1 + rho)."""
        identity = torch.eye(len(metric), device=metric.device, dtype=metric.dtype)
        return torch.linalg.cholesky((metric + self.rho * identity) / (1 + self.rho))

    def _correlated(self, z: Tensor, factors: list[Tensor]) -> Tensor:
        """delta = L^-T z, whose covariance is S, group by group."""
        parts = z.to(torch.float64).split([len(f) for f in factors])
        solved = [
            torch.linalg.solve_triangular(f.T, part[:, None], upper=True)[:, 0]
            for f, part in zip(factors, parts, strict=True)
        ]
        return torch.cat(solved).to(z.dtype)
