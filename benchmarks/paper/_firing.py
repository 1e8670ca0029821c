"""Firing neurons as layers of a torch model: opaque, as a measured curve, and as both.

It knows the neurons of `_neurons` by their currents and rates only.
"""

from __future__ import annotations

from typing import Literal

import torch
from _neurons import HIGHEST, LOWEST, Array, rates
from torch import Tensor, nn

from hzo_hil import Opaque
from hzo_hil.devices.adapters.function import FunctionDevice
from hzo_hil.streams import stream_key

MIDDLE, SPREAD = 12.0, 8.0  # uA/cm^2: a layer's outputs around 0 become currents around the onset of firing
CURVE_QUERIES = 181
ROWS = 256  # at a time: the state of a layer then stays in the cache


def layer(neurons: int, gap: float, structure: Literal["dense", "diagonal"], eps: float, seed: int) -> Opaque:
    """Currents [rows, neurons] to rates; what `structure` says is not tried."""

    def fire(currents: Array) -> Array:
        return rates(currents, gap)

    device = FunctionDevice(
        fire, neurons, neurons, low=LOWEST, high=HIGHEST, structure=structure, dtype="float64", max_batch=ROWS,
        longest_call_s=60.0,
    )  # fmt: skip
    return Opaque(device, eps=eps, name="neurons", seed=seed)


class Curve(nn.Module):
    """Rate against current, linear between the points at which it was measured; beyond them, as at the last."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    @classmethod
    def measured(cls, neurons: Opaque) -> Curve:
        """By `CURVE_QUERIES` queries with the same current for all neurons."""
        currents = torch.linspace(LOWEST, HIGHEST, CURVE_QUERIES, dtype=torch.float64)
        with torch.no_grad():
            answers = neurons(currents[:, None].expand(-1, neurons.network.width(0)).contiguous())
        return cls(answers.mean(dim=1))

    def forward(self, currents: Tensor) -> Tensor:
        last = len(self.values) - 1
        place = ((currents - LOWEST) * (last / (HIGHEST - LOWEST))).clamp(0, last)
        below = place.detach().floor().clamp(max=last - 1).long()
        return self.values[below] + (place - below) * (self.values[below + 1] - self.values[below])


class Surrogate(nn.Module):
    """Answers as the neurons do; its gradient is the curve's."""

    def __init__(self, neurons: Opaque, curve: Curve) -> None:
        super().__init__()
        self.neurons, self.curve = neurons, curve

    def forward(self, currents: Tensor) -> Tensor:
        soft = self.curve(currents)
        with torch.no_grad():
            real = self.neurons(currents)
        return soft + (real - soft).detach()


class Classifier(nn.Module):
    """Linear, neurons, linear, in float64. Rows [rows, features] to scores [rows, classes]."""

    def __init__(self, features: int, neurons: int, classes: int, layer: nn.Module, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_key(seed, "classifier") % 2**63)
            self.encoder = nn.Linear(features, neurons).double()
            self.head = nn.Linear(neurons, classes).double()
        self.neurons = layer

    def forward(self, rows: Tensor) -> Tensor:
        found = self.encoder(rows)
        if not isinstance(self.neurons, nn.ReLU):
            found = MIDDLE + SPREAD * found
        return self.head(self.neurons(found))
