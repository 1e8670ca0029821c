"""Methods that estimate a gradient from losses and descend along it: SGD with momentum and weight decay.

Another rule for the estimate, Adam say: `estimate` it, put the pieces into `.grad` and step that optimiser.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Closure, Oracle
from hzo_hil.optim.settings import FRACTION, NOT_NEGATIVE, POSITIVE, Bound


class Descent(LossOnly):
    """`lr`, `momentum`, `weight_decay` as in `torch.optim.SGD` (no dampening); `eps`: the size of a perturbation.

    All four may differ from group to group, and schedulers may change them.
    """

    bounds: ClassVar[dict[str, Bound]] = {
        "lr": NOT_NEGATIVE,
        "momentum": FRACTION,
        "weight_decay": NOT_NEGATIVE,
        "eps": POSITIVE,
    }

    def __init__(
        self, params: Any, lr: float, eps: float, momentum: float = 0.0, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}, seed)

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        """The estimate [size] at `w`, and the step's loss. It may leave the parameters anywhere."""
        raise NotImplementedError

    @torch.no_grad()
    def estimate(self, closure: Closure) -> list[Tensor]:
        """The gradient estimate that the next step would use, in the parameters' shapes; nothing moves.

        Its evaluations are counted; asked again before a step, it draws the same directions.
        """
        at = self._flat()
        return self._asking(at, closure, lambda w, oracle: self._estimated(at, w, oracle))

    def _estimated(self, at: Flat, w: Tensor, oracle: Oracle) -> list[Tensor]:
        gradient, _ = self._gradient(at, w, oracle)
        at.write(w)
        return at.pieces(gradient)

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        gradient, loss = self._gradient(at, w, oracle)
        return self._descended(at, w, gradient), loss

    def _descended(self, at: Flat, w: Tensor, gradient: Tensor) -> Tensor:
        decay, momentum = at.setting("weight_decay"), at.setting("momentum")
        if _some(decay):
            gradient = gradient + decay * w
        if _some(momentum):
            past = self.state.get("momentum")
            gradient = gradient if past is None else momentum * past + gradient
            self.state["momentum"] = gradient
        return w - at.setting("lr") * gradient


def _some(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) or value != 0
