"""Who holds a stage: two modules on one device, re-programmed at every change, counted or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.errors import DeviceError
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.programming import Policy
from hzo_hil.updates.delta import DeltaRule


def opaque(device: FakeDevice, *, stages: Any = (0, 1), **options: Any) -> Opaque:
    return Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in stages], **options).double()


def mlp(**options: Any) -> FakeDevice:
    return FakeDevice.mlp([5, 5, 5], dtype="float64", **options)


def batch(count: int = 4) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mirror(module: Opaque, x: Tensor) -> Tensor:
    for masters in module.stages:
        x = torch.tanh(x @ masters.weight.T + masters.bias)
    return x


def test_two_modules_take_turns_on_one_device_and_each_change_is_counted() -> None:
    device = mlp()
    first, second = opaque(device, name="first"), opaque(device, name="second", seed=1)
    with torch.no_grad():
        for turn in range(3):
            torch.testing.assert_close(first(batch()), mirror(first, batch()))
            torch.testing.assert_close(second(batch()), mirror(second, batch()))
            assert first.ledger.events["owner_changes"] == 2 * turn
            assert second.ledger.events["owner_changes"] == 2 * (turn + 1)
    assert first.ledger.accounts["evaluation"].writes == 2 * 3


def test_two_modules_on_one_device_in_one_model_train_as_on_two() -> None:
    found = []
    for devices in ([mlp()] * 2, [mlp(), mlp()]):
        torch.manual_seed(0)
        model = nn.Sequential(
            opaque(devices[0], name="first"), nn.Linear(5, 5).double(), opaque(devices[1], name="second")
        )
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            (model(batch()) ** 2).sum().backward()
            optimiser.step()
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_modules_on_different_stages_of_one_device_do_not_disturb_each_other() -> None:
    device = mlp()
    model = nn.Sequential(opaque(device, stages=[0], name="a"), opaque(device, stages=[1], name="b"))
    for _ in range(3):
        model(batch()).sum().backward()
    assert len(device.writes) == 2
    assert all(m.ledger.events["owner_changes"] == 0 for m in model)  # type: ignore[union-attr]


def test_exclusive_use_refuses_another_owner_and_says_what_to_do() -> None:
    device = mlp()
    first = opaque(device)
    second = opaque(device, policy=Policy(exclusive=True))
    first(batch())
    asked = len(device.calls)
    with pytest.raises(DeviceError, match="stage 0 of device 'fake' holds another module's param.*exclusive=False"):
        second(batch())
    assert len(device.calls) == asked and len(device.writes) == 2


def test_exclusive_use_holds_for_a_copy_too() -> None:
    device = mlp()
    first = opaque(device, policy=Policy(exclusive=True))
    first(batch())
    with pytest.raises(DeviceError, match="exclusive use"):
        copy.deepcopy(first)(batch())
    first(batch())


def test_a_closed_module_leaves_the_device_to_others() -> None:
    device = mlp()
    first, second = opaque(device), opaque(device, policy=Policy(exclusive=True))
    first(batch())
    first.close()
    assert device.closed == 1
    torch.testing.assert_close(second(batch()), mirror(second, batch()))
    assert device.opened == 2


def test_all_calls_come_from_one_thread() -> None:
    device = mlp(script=Script(one_thread=True))
    first, second = opaque(device), opaque(device, seed=1)
    for module in (first, second, first):
        module(batch()).sum().backward()
    first.close()
    assert len(device.threads) == 1


def test_a_step_of_another_owner_between_forward_and_backward_does_no_harm() -> None:
    device = mlp()
    first, second, alone = opaque(device), opaque(device, seed=1), opaque(mlp())
    loss = (first(batch()) ** 2).sum()
    second(batch()).sum().backward()
    loss.backward()
    (alone(batch()) ** 2).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(first.parameters(), alone.parameters(), strict=True))
