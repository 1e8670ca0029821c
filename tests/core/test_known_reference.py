"""One-sided differences: the answer to the point itself is the forward pass's where the device is told to be exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.devices.api import BoundarySpec, Local
from hzo_hil.devices.fake import FakeDevice
from tests.core.nets import affine_opaque, differing, gradients, inputs, spent_and_predicted
from tests.core.test_structure import Conv, conv_stage

ROWS, WIDTHS = 5, [4, 6, 3, 2]


def dense(declared: dict[str, Any], probes: str = "coordinate", tree: str = "chain", **options: Any) -> Opaque:
    device = FakeDevice.mlp(WIDTHS, "tanh", dtype="float64", max_batch=7, virtual_time=True, **declared)
    return affine_opaque(
        WIDTHS, "tanh", device=device, plan=Plan(tree, probes, eps=1e-4, differences="forward"), **options
    )


def local(declared: dict[str, Any], **options: Any) -> Opaque:
    reach = Local.conv(2, 2, (5, 5), 3, padding=1)
    stages = [conv_stage(reach, torch.tanh, name=f"c{k}") for k in range(3)]
    device = FakeDevice.functions(stages, dtype="float64", max_batch=64, virtual_time=True, **declared)
    twin = Conv(reach, torch.tanh)
    plan = Plan("chain", eps=1e-4, differences="forward")
    return Opaque([Stage(device, k, twin=twin) for k in range(3)], plan=plan, **options).double()


def asked(module: Opaque, width: int) -> int:
    """Probes of a step, which must be those forecast."""
    spent, predicted = spent_and_predicted(module, inputs(ROWS, width), memory=module.memory)
    assert differing(spent, predicted) == []
    return spent["probes"].queries


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize(
    ("make", "width"),
    [
        (dense, 4),
        (lambda declared, **o: dense(declared, "hadamard", **o), 4),
        (lambda declared, **o: dense(declared, "rademacher:2", **o), 4),
        (local, 50),
    ],
    ids=["coordinate", "hadamard", "rademacher", "local"],
)
def test_what_the_forward_pass_was_told_is_not_asked_again(make: Any, width: int, memory: str) -> None:
    found = {}
    for noise in (None, 0.0):
        module = make({"read_noise": noise}, memory=memory)
        found[noise] = gradients(module, list(module.parameters()), inputs(ROWS, width)), asked(module, width)
    for reused, again in zip(found[0.0][0], found[None][0], strict=True):
        torch.testing.assert_close(reused, again, rtol=1e-9, atol=1e-9)
    assert found[None][1] - found[0.0][1] == ROWS * 3  # the input has a cut too


@pytest.mark.parametrize(
    ("declared", "options", "saved"),
    [
        ({"read_noise": 0.01}, {}, 0),
        ({"read_noise": 0.0}, {"tree": "direct"}, 2),  # the cut at 1 crosses two stages
        ({"read_noise": 0.0, "taps": True}, {}, 0),  # a pass taps what it does not drive
        ({"read_noise": 0.0, "boundaries": BoundarySpec(low=-3, high=3)}, {}, 3),
        ({"read_noise": 0.0, "boundaries": BoundarySpec(low=-3, high=3)}, {"probes": "hadamard"}, 0),
    ],
)
def test_it_is_asked_where_the_pass_drove_something_else(declared: Any, options: Any, saved: int) -> None:
    undeclared = {**declared, "read_noise": None}
    assert asked(dense(undeclared, **options), 4) - asked(dense(declared, **options), 4) == ROWS * saved


def test_a_range_that_cuts_probes_short_changes_nothing() -> None:
    """Inputs beyond the range and within a step of it: clipped in the pass as in the probe."""
    x = torch.as_tensor(np.linspace(-1.2, 1.2, ROWS * 4).reshape(ROWS, 4)).requires_grad_()
    found = []
    for noise in (None, 0.0):
        module = dense({"read_noise": noise, "boundaries": BoundarySpec(low=-1, high=1)})
        found.append(gradients(module, list(module.parameters()), x))
    for again, reused in zip(*found, strict=True):
        torch.testing.assert_close(reused, again, rtol=1e-9, atol=1e-9)
