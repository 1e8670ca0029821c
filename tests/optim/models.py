"""Small networks with batch norm and skips, and batches for them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hzo_hil.layers import Residual
from hzo_hil.zoo import HostConv, resnet20


def residual(seed: int = 0) -> nn.Sequential:
    """Linear layers with norms and two skips, one of them learned; float64."""
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True), nn.Linear(5, 5))
    body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    return nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), Residual(inner), nn.Tanh(), Residual(body, nn.Linear(5, 4)), nn.Linear(4, 3)
    ).double()


def small_resnet20() -> nn.Sequential:
    """ResNet-20 for images of 8 x 8: every parameter of the real one, a sixteenth of the pixels."""
    torch.manual_seed(0)
    return resnet20(HostConv, size=8)


def batch(width: int = 3, rows: int = 7, classes: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, width, generator=rng, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, classes, (rows,), generator=rng)


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    return lambda: functional.cross_entropy(model(inputs), labels)


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit, whatever the models were wrapped in."""
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))
