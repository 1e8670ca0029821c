"""Steps down a loss, by an optimiser of gradients or of losses. It knows neither model nor data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[int], Tensor]
"""Of the minibatch of a step, by the step's number."""


def descend(loss: Loss, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """`steps` steps down `loss(step)`, at a rate that falls to 0 as a cosine."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            found = loss(step)
            if found.requires_grad:  # not for DeepZero
                optimizer.zero_grad()
                found.backward()
            return found

        optimizer.step(closure)
        schedule.step()
