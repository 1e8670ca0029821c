"""QuZO: directions and weights of few bits, rounded at random so that nothing is lost on average.

    Q(z): z in units of reach / (2^(bits-1) - 1), rounded to a whole number at random, cut at +-reach
    c = (l(w + eps Q1(z)) - l(w - eps Q1(z))) / (2 eps),    g = c Q2(z) / v                     2q queries
    w <- w - grid Q(lr g / grid)

Q1 and Q2 round the same normal z independently: with one rounding for both its error would be squared into the
estimate. v = E[min(|z|, reach)^2] makes g unbiased for a linear loss. Weights lie on a grid, and with eps a whole
number of grid steps per unit the perturbed weights do, too.

Source: Zhou et al., "QuZO: quantized zeroth-order fine-tuning for large language models" (2025); the cut, v and
the tie between eps and the grid are ours.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.directions import draw
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import COUNT, NOT_NEGATIVE, POSITIVE, Bound

REACH = 3.0
"""Where normal directions are cut, in standard deviations."""
_RARE = math.erfc(REACH / math.sqrt(2))
VARIANCE = 1 - _RARE - 2 * REACH * math.exp(-(REACH**2) / 2) / math.sqrt(2 * math.pi) + REACH**2 * _RARE


class QuZO(LossOnly):
    """`bits`: of directions. `grid`: the weights' spacing, 0: weights are not quantised. `directions`: q.

    `eps` None: such that one unit of a direction is one step of the grid; without a grid 1e-3. `lr`, `eps` and `grid`
    may differ from group to group. Weights off the grid are taken to their nearest at the first step.
    """

    bounds: ClassVar[dict[str, Bound]] = {"lr": NOT_NEGATIVE, "eps": POSITIVE, "grid": NOT_NEGATIVE}

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float | None = None,
        bits: int = 4,
        grid: float = 0.0,
        directions: int = 1,
        seed: int = 0,
    ) -> None:
        Bound(low=2, high=16, whole=True).check("QuZO", "bits", bits)
        COUNT.check("QuZO", "directions", directions)
        NOT_NEGATIVE.check("QuZO", "grid", grid)
        self.unit = REACH / (2 ** (bits - 1) - 1)
        self.directions = directions
        if eps is None:
            eps = grid / self.unit if grid else 1e-3
        super().__init__(params, {"lr": lr, "eps": eps, "grid": grid}, seed)

    @property
    def queries_per_step(self) -> int:
        return 2 * self.directions

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["grid"]:
            steps = group["eps"] * self.unit / group["grid"]
            if steps < 0.5 or abs(steps - round(steps)) > 1e-6 * steps:
                raise BadInput(
                    f"QuZO: eps {group['eps']:g} makes one unit of a direction {steps:g} steps of the weights' grid: it"
                    f" must be a whole number. Use a multiple of {group['grid'] / self.unit:g}, or leave eps out"
                )

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        eps, grid = at.setting("eps"), at.setting("grid")
        generator = self._generator(at, "directions")
        w = _nearest(w, grid)
        gradient = torch.zeros_like(w)
        around = 0.0
        for _ in range(self.directions):
            z = draw("gaussian", at, generator).clamp_(-REACH, REACH) / self.unit
            asked, used = (_rounded(z, generator) * self.unit for _ in range(2))
            plus = oracle(_nearest(w + asked * eps, grid))
            minus = oracle(_nearest(w - asked * eps, grid))
            gradient += used * ((plus - minus) / 2 / eps)
            around += (plus + minus) / 2
        change = at.setting("lr") * gradient / (VARIANCE * self.directions)
        if isinstance(grid, Tensor) or grid:
            coarse = torch.as_tensor(grid, dtype=at.dtype, device=at.device).expand_as(w)
            on = coarse > 0
            steps = _rounded(torch.where(on, change / torch.where(on, coarse, 1.0), 0.0), generator)
            change = torch.where(on, steps * coarse, change)
        return _nearest(w - change, grid), around / self.directions


def _rounded(value: Tensor, generator: torch.Generator) -> Tensor:
    """To a whole number at random, up with the probability of the fraction: unbiased."""
    chance = torch.rand(value.shape, generator=generator, device=value.device, dtype=value.dtype)
    return (value + chance).floor()


def _nearest(w: Tensor, grid: float | Tensor) -> Tensor:
    """On the grid, where there is one: sums in floating point land beside it."""
    if isinstance(grid, Tensor):
        coarse = torch.where(grid > 0, grid, 1.0)
        return torch.where(grid > 0, (w / coarse).round() * coarse, w)
    return (w / grid).round() * grid if grid else w
