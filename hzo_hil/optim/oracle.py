"""The loss as a method sees it: parameters in, one number out, counted and checked.

It knows neither what the closure does nor what the method makes of the answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.flat import Flat

Closure = Callable[[], Any]


class Oracle:
    """Evaluations of one step. `count`: so far; `planned`: in all, for the text of errors."""

    def __init__(self, at: Flat, closure: Closure, step: int, planned: int) -> None:
        self._at = at
        self._closure = closure
        self._step = step
        self._planned = planned
        self.count = 0

    def __call__(self, point: Tensor | None = None) -> float:
        """The loss at `point` [size], which the parameters hold afterwards; None: where they are."""
        if point is not None:
            self._at.write(point)
        value = self._closure()
        self.count += 1
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, float) and math.isfinite(value):
            return value
        return self._checked(value)

    def _checked(self, value: Any) -> float:
        """A number of another kind, or an error that says which evaluation gave it."""
        where = f"evaluation {self.count} of {self._planned} in step {self._step + 1}"
        if isinstance(value, Tensor):
            raise BadInput(
                f"the closure returned a tensor of shape {tuple(value.shape)} at {where}: a loss is one number. Reduce"
                " it, for example by its mean"
            )
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise BadInput(
                f"the closure returned {value!r} at {where}: it must return the loss of the present parameters"
            ) from None
        if not math.isfinite(number):
            raise BadInput(
                f"the loss is {number} at {where}; the parameters are as they were before that step. A perturbation"
                " left the domain of the loss, or training diverged: lower eps or lr, or look at the data"
            )
        return number
