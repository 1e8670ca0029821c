"""Learned inverses of stages, on the host: from a block's outputs back to its inputs.

A linear map beside one hidden layer of tanh, fitted by Adam to pairs as they come. In units of its own first batch, so
that no rate depends on how large activations are. Knows neither devices nor targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Inverse(nn.Module):
    """`[samples, out]` to `[samples, in]`; `generator` draws its start."""

    sizes: Tensor

    def __init__(self, outputs: int, inputs: int, generator: torch.Generator, rate: float) -> None:
        super().__init__()
        hidden = max(outputs, inputs)
        # Made without torch's own draws, which belong to the user.
        self.straight: nn.Linear = nn.utils.skip_init(nn.Linear, outputs, inputs)
        self.bend: nn.Linear = nn.utils.skip_init(nn.Linear, outputs, hidden)
        self.back: nn.Linear = nn.utils.skip_init(nn.Linear, hidden, inputs, bias=False)
        with torch.no_grad():
            for matrix in (self.straight.weight, self.bend.weight):
                matrix.normal_(0, outputs**-0.5, generator=generator)
            for offset in (self.straight.bias, self.bend.bias):
                offset.zero_()
            self.back.weight.zero_()
        self.double()
        self.register_buffer("sizes", torch.zeros(2, dtype=torch.float64))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=rate)

    def forward(self, outputs: Tensor) -> Tensor:
        drive, read = self.sizes.clamp(min=1e-12)
        scaled = outputs.double() / read
        found: Tensor = drive * (self.straight(scaled) + self.back(torch.tanh(self.bend(scaled))))
        return found

    def fit(self, inputs: Tensor, outputs: Tensor, steps: int) -> None:
        """Least squares of the inputs that gave these outputs, `steps` of Adam."""
        if not bool(self.sizes.any()):
            self.sizes.copy_(
                torch.stack([inputs.double().square().mean().sqrt(), outputs.double().square().mean().sqrt()])
            )
        scale = self.sizes[0].clamp(min=1e-12)
        for _ in range(steps):
            self.optimizer.zero_grad()
            with torch.enable_grad():
                ((self(outputs) - inputs.double()) / scale).square().mean().backward()
            self.optimizer.step()

    def kept(self) -> dict[str, Any]:
        return {"net": self.state_dict(), "adam": self.optimizer.state_dict()}

    def take(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["adam"])
