"""Networks of the literature: their sizes, and that convolutions on devices give the gradients of those on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.devices.api import Local
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.layers import Residual
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach
from hzo_hil.simulators.residual_block import ResidualBlock
from hzo_hil.simulators.twins import Twin
from hzo_hil.zoo import (
    FlatNorm,
    GlobalMean,
    HostConv,
    Shortcut,
    multiplications,
    parameters,
    plain_cnn,
    resnet20,
    resnet20_blocks,
)


def on_device(reach: Local, name: str, **plan: Any) -> Opaque:
    model = EmulatedConv(Reach(**vars(reach)), name=name)
    device = SimulatedDevice([model], identity=name, dtype="float64")
    return Opaque([Stage(device, twin=Twin(model))], plan=Plan(**plan), name=name).double()


def test_resnet_20_has_the_size_of_the_paper():
    reaches: list[Local] = []

    def made(reach: Local, name: str) -> nn.Module:
        reaches.append(reach)
        return HostConv(reach, name)

    network = resnet20(made)
    assert parameters(network) == 269_722
    assert len(reaches) == 19
    assert sum(multiplications(r) for r in reaches) == 40_550_400
    assert [r.shape for r in reaches if r.stride == (2, 2)] == [(32, 32), (16, 16)]
    assert network(torch.randn(2, 3 * 32 * 32)).shape == (2, 10)


def test_resnet_20_cut_at_blocks_has_as_many():
    def blocks(shapes: Any) -> nn.Module:
        models = [ResidualBlock(*shape, name=f"block{k}") for k, shape in enumerate(shapes)]
        device = SimulatedDevice(models)
        return Opaque([Stage(device, k, twin=Twin(m)) for k, m in enumerate(models)], tree="chain")

    network = resnet20_blocks(HostConv, blocks)
    assert parameters(network) == 269_722
    assert network(torch.randn(2, 3 * 32 * 32)).shape == (2, 10)


def test_the_plain_network_has_its_size():
    """3 x 64 x 9 weights, five times 64 x 64 x 9, six norms of 128, the head of 650."""
    network = plain_cnn(HostConv)
    assert parameters(network) == 1_728 + 5 * 36_864 + 6 * 128 + 650
    assert network(torch.randn(2, 3 * 32 * 32)).shape == (2, 10)


def test_sizes_that_cannot_be_halved_twice_are_refused():
    with pytest.raises(BadInput, match="must be a multiple of 4, not 30"):
        resnet20(HostConv, size=30)


def test_the_skip_of_option_a():
    x = torch.arange(2.0 * 16).reshape(1, 32)
    skip = Shortcut(2, 4, (4, 4), 2)(x).reshape(4, 2, 2)
    assert not skip[0].any() and not skip[3].any()
    torch.testing.assert_close(skip[1:3], x.reshape(2, 4, 4)[:, ::2, ::2])
    assert Shortcut(2, 2, (4, 4), 1)(x) is x


def test_norms_and_means_of_flat_images():
    images = torch.randn(5, 3, 4, 4)
    norm = FlatNorm(3)
    torch.testing.assert_close(norm(images.flatten(1)), nn.BatchNorm2d(3)(images).flatten(1))
    torch.testing.assert_close(GlobalMean(3)(images.flatten(1)), images.mean((2, 3)))


@pytest.mark.parametrize("shared", [True, False])
def test_a_small_residual_network_learns_by_queries_as_by_autograd(shared):
    """Norms in training mode on the host, between convolutions on devices."""
    torch.manual_seed(0)
    first, second = Local.conv(1, 2, (4, 4), 3, stride=2, padding=1), Local.conv(2, 2, (2, 2), 3, padding=1)
    stem = Local.conv(2, 1, (4, 4), 3, padding=1)

    def network(make: Any) -> nn.Module:
        body = nn.Sequential(make(first, "a"), FlatNorm(2), nn.ReLU(), make(second, "b"), FlatNorm(2))
        skip = Shortcut(1, 2, (4, 4), 2)
        return nn.Sequential(make(stem, "stem"), FlatNorm(1), Residual(body, skip), nn.ReLU(), GlobalMean(2)).double()

    host, device = network(HostConv), network(lambda r, n: on_device(r, n, shared=shared))
    with torch.no_grad():
        for ours, theirs in zip(device.parameters(), host.parameters(), strict=True):
            ours.copy_(theirs)
    x = torch.randn(5, 32, dtype=torch.float64)
    for net in (host, device):
        (net(x) ** 2).sum().backward()
    for ours, theirs in zip(device.parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)
