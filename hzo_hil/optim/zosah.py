"""ZO-SAH: Newton steps in random two-dimensional planes (Kim et al., arXiv 2507.06125, 2025), as a reconstruction.

    planes P_j [2, size], all rows orthonormal, drawn anew every `keep` steps
    g_j = (l(w + eps p_ji) - l(w)) / eps for i = 1, 2
    H_j: of the quadratic fit in plane j to all that was asked there since it was drawn
    w -= lr sum_j P_j^T clip((|H_j| + damping)^-1 g_j)
    queries: 1 + 2 planes a step

|H| has the absolute eigenvalues of H. Published are the planes, the differences, the fit, its reuse of earlier
evaluations and the query count. Chosen here: a constant of its own in the fit for every step (`planes.curvature`), the
damping, `clip` as a bound on the length of the step in each plane, and, where a fit is not yet determined, the mean
|eigenvalue| of the last ones that were.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.planes import curvature, damped, orthonormal
from hzo_hil.optim.settings import COUNT, NOT_NEGATIVE, POSITIVE, Bound
from hzo_hil.streams import torch_generator


class ZOSAH(LossOnly):
    """`planes`: how many, m/2 of the paper. `keep`: steps with the same ones, T_s. `lr`: 1 is the damped Newton step.

    `damping` is added to curvatures, in their unit (loss per squared parameter); `clip` is a distance. All but `lr` are
    the same for every group.
    """

    bounds: ClassVar[dict[str, Bound]] = {"lr": NOT_NEGATIVE}

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        planes: int = 5,
        keep: int = 2,
        eps: float = 1e-3,
        damping: float = 1e-2,
        clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        COUNT.check("ZOSAH", "planes", planes)
        COUNT.check("ZOSAH", "keep", keep)
        for name, value in (("eps", eps), ("damping", damping), ("clip", clip)):
            POSITIVE.check("ZOSAH", name, value)
        self.planes, self.keep, self.eps, self.damping, self.clip = planes, keep, eps, damping, clip
        super().__init__(params, {"lr": lr}, seed)
        size = Flat(self.param_groups).size
        if 2 * planes > size:
            raise BadInput(
                f"ZOSAH: {planes} planes need {2 * planes} parameters and there are {size}: use fewer planes"
            )
        self.state["prior"] = 0.0
        self._basis: tuple[int, Tensor] | None = None  # of which period

    @property
    def queries_per_step(self) -> int:
        return 1 + 2 * self.planes

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        basis = self._rows(at)
        loss = oracle()
        slope = torch.tensor([(oracle(w + self.eps * row) - loss) / self.eps for row in basis], dtype=torch.float64)
        origin, points, slopes = self._seen(w, basis, slope)
        hessians = curvature(points, slopes, self.state["prior"])
        moves = damped(hessians, slopes[-1], self.damping)
        moves *= (self.clip / moves.norm(dim=-1, keepdim=True).clamp(min=self.clip)).clamp(max=1)
        self.state.update(origin=origin, points=points, slopes=slopes)
        if len(points) > 1:
            self.state["prior"] = float(torch.linalg.eigvalsh(hessians).abs().mean())
        return w - at.setting("lr") * (moves.flatten().to(w) @ basis), loss

    def _seen(self, w: Tensor, basis: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where these planes were entered [size]; points and slopes since [step, plane, 2], this step's last."""
        fresh = self.state["step"] % self.keep == 0
        origin = w if fresh else self.state["origin"]
        point = (basis @ (w - origin)).cpu().double().view(1, -1, 2)
        slope = slope.view(1, -1, 2)
        if fresh:
            return origin, point, slope
        return origin, torch.cat([self.state["points"], point]), torch.cat([self.state["slopes"], slope])

    def _rows(self, at: Flat) -> Tensor:
        """This period's directions [2 planes, size], two a plane: a function of seed and period, kept in no state."""
        period = self.state["step"] // self.keep
        if self._basis is None or self._basis[0] != period:
            drawn = orthonormal(at.size, 2 * self.planes, torch_generator(self.state["seed"], "planes", period))
            self._basis = (period, drawn.to(at.dtype).to(at.device))
        return self._basis[1]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._basis = None  # perhaps of another seed
