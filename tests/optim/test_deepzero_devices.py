"""DeepZero through a network whose middle is a device: reuse and replicas save device queries and change no bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.optim import DeepZero, FeatureReuse
from hzo_hil.updates.delta import DeltaRule
from tests.optim.models import batch, loss_of

ROWS, STEPS = 5, 2
BEFORE, DEVICE, AFTER = 16, 40, 15  # parameters


def through_a_device() -> tuple[nn.Sequential, Opaque]:
    torch.manual_seed(0)
    device = FakeDevice.mlp([4, 4, 4], activation="tanh", seed=1)
    chip = Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in range(2)], tree="chain")
    return nn.Sequential(nn.Linear(3, 4), chip, nn.Linear(4, 3)), chip


def trained(reused: bool, copies: int = 0) -> tuple[Tensor, list[int]]:
    """Parameters after two steps, and the queries of each device."""
    made = [through_a_device() for _ in range(1 + copies)]
    models = [FeatureReuse(model) if reused else model for model, _ in made]
    optimizer = DeepZero(models[0].parameters(), model=models[0], replicas=models[1:])
    closures = [loss_of(model, *batch(rows=ROWS, dtype=torch.float32)) for model in models]
    for _ in range(STEPS):
        optimizer.step(*closures)
    asked = [chip.ledger.accounts["evaluation"].queries for _, chip in made]
    return torch.cat([p.detach().flatten() for p in models[0].parameters()]), asked


def test_reuse_asks_the_device_for_what_precedes_or_is_in_it_only() -> None:
    whole, asked = trained(False)
    assert asked == [STEPS * ROWS * (1 + BEFORE + DEVICE + AFTER)]
    reused, fewer = trained(True)
    assert fewer == [STEPS * ROWS * (1 + BEFORE + DEVICE)]
    assert torch.equal(whole, reused)


def test_replicas_share_out_the_devices() -> None:
    alone, (asked,) = trained(True)
    shared, each = trained(True, copies=2)
    assert torch.equal(alone, shared)
    assert sum(each) == asked + 2 * STEPS * ROWS  # replicas ask the unperturbed batch as well
    assert max(each) < 0.4 * asked
