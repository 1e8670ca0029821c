"""Feedback alignment under convolutions: with the true kernels it is backpropagation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hzo_hil import Opaque, Stage
from hzo_hil.credit.feedback import FeedbackAlignment
from hzo_hil.devices.api import Local, Segment
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach
from hzo_hil.simulators.twins import Twin

REACHES = [Local.conv(2, 3, (6, 5), 3, padding=1), Local.conv(3, 4, (6, 5), 3, stride=2, padding=1, circular=True)]


def on_device(credit: str | FeedbackAlignment) -> Opaque:
    models = [EmulatedConv(Reach(**vars(reach))) for reach in REACHES]
    device = SimulatedDevice(models, identity="convs", dtype="float64")
    return Opaque([Stage(device, k, twin=Twin(m)) for k, m in enumerate(models)], credit=credit, seed=3).double()


def gradients(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x.grad = None
    (module(x) ** 2).sum().backward()
    assert x.grad is not None
    return [*(p.grad.clone() for p in module.parameters() if p.grad is not None), x.grad.clone()]


def test_feedback_through_the_true_kernels_is_backpropagation() -> None:
    x = torch.randn(4, REACHES[0].widths[0], dtype=torch.float64, requires_grad=True)
    rule = FeedbackAlignment(0, "opaque")
    module = on_device(rule)
    rule.matrices = {k: s.weight.detach().numpy() for k, s in enumerate(module.stages)}
    found, exact = gradients(module, x), gradients(on_device("twin"), x)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, exact, strict=True))
    assert module.ledger.accounts["probes"].queries == 0


def test_a_drawn_kernel_keeps_the_size_of_targets_and_survives_a_checkpoint() -> None:
    """64 x 64 x 9 normal numbers of variance 1 / (64 x 9), to 5 deviations of their mean square: false alarm 6e-7."""
    reach = Local.conv(64, 64, (8, 8), 3, padding=1)
    device = SimulatedDevice([EmulatedConv(Reach(**vars(reach)))], identity="one")
    module = Opaque([Stage(device, 0, leaf="probing")], credit="feedback", seed=1)
    rule = module.target_rule
    assert isinstance(rule, FeedbackAlignment)
    kernel = rule.matrix(module.network, 0)
    assert kernel.shape == (64, 64, 3, 3)
    assert abs((kernel**2).mean() * 64 * 9 - 1) < 5 * np.sqrt(2 / kernel.size)
    other = FeedbackAlignment(9, "other")
    other.load(rule.state())
    assert np.array_equal(other.matrix(module.network, 0), kernel)


def test_several_convolutions_in_one_stage_are_refused() -> None:
    first, second = REACHES[0], Local.conv(3, 2, (6, 5), 3, padding=1)
    models = [EmulatedConv(Reach(**vars(r))) for r in (first, second, first)]
    device = SimulatedDevice(models, identity="convs")
    with pytest.raises(BadInput, match=r"stage 1 .* is several convolutions in one go"):
        Opaque([Stage(device, Segment(0, 2), leaf="probing"), Stage(device, 2, leaf="probing")], credit="feedback")
