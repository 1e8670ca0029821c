"""Networks of the literature with their convolutions, or blocks, left to their builder: on devices, or by torch.

A factory gets the reach of each convolution and its name and returns a module on flat images `[batch, channels x height
x width]`: an `Opaque`, or `HostConv`. Norms, rectifiers, skips and the head are ordinary torch modules on the
host, where they cost no query. Knows no device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from hzo_hil.devices.api import Local
from hzo_hil.devices.errors import BadInput
from hzo_hil.layers import Residual

Make = Callable[[Local, str], nn.Module]


class HostConv(nn.Module):
    """The convolution of a reach, by torch and without bias, on flat images: what a factory returns for the host."""

    def __init__(self, reach: Local, name: str = "") -> None:
        super().__init__()
        kind: Any = nn.Conv1d if len(reach.shape) == 1 else nn.Conv2d
        self.shape = (reach.in_channels, *reach.shape)
        self.conv: nn.Module = kind(
            reach.in_channels, reach.out_channels, reach.kernel, reach.stride, reach.padding, reach.dilation,
            reach.groups, bias=False, padding_mode="circular" if reach.circular else "zeros",
        )  # fmt: skip

    def forward(self, flat: Tensor) -> Tensor:
        outputs: Tensor = self.conv(flat.reshape(-1, *self.shape)).flatten(1)
        return outputs


class FlatNorm(nn.Module):
    """Batch norm of flat images: `nn.BatchNorm2d` between stages, where it may couple samples as it likes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, flat: Tensor) -> Tensor:
        images = flat.reshape(len(flat), self.norm.num_features, -1)
        outputs: Tensor = self.norm(images).flatten(1)
        return outputs


class Shortcut(nn.Module):
    """The skip of a residual network without parameters (He et al., 2016, option A): every `stride`-th pixel, channels
    of zeros on both sides."""

    def __init__(self, channels: int, out: int, shape: Sequence[int], stride: int) -> None:
        super().__init__()
        self.shape, self.stride, self.missing = (channels, *shape), stride, out - channels

    def forward(self, flat: Tensor) -> Tensor:
        if self.stride == 1 and not self.missing:
            return flat
        pixels = flat.reshape(-1, *self.shape)[:, :, :: self.stride, :: self.stride]
        before = self.missing // 2
        return functional.pad(pixels, (0, 0, 0, 0, before, self.missing - before)).flatten(1)


class GlobalMean(nn.Module):
    """The mean of every channel: `[batch, channels x pixels]` to `[batch, channels]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, flat: Tensor) -> Tensor:
        return flat.reshape(len(flat), self.channels, -1).mean(-1)


def resnet20(convolution: Make, classes: int = 10, size: int = 32) -> nn.Sequential:
    """ResNet-20 for images `[3, size, size]`, flat (He et al., 2016, section 4.2): a 3 x 3 convolution, then three
    times three basic blocks of 16, 32 and 64 channels, shortcuts of option A, 269,722 parameters with 10 classes.

    `convolution(reach, name)` makes each of the 19 convolutions, none of which has a bias; norms are on the host.
    """
    stem = Local.conv(3, 16, (size, size), 3, padding=1)
    layers: list[nn.Module] = [convolution(stem, "stem"), FlatNorm(16), nn.ReLU()]
    for number, block in enumerate(_blocks(size), start=1):
        channels, out, shape, stride = block
        first = Local.conv(channels, out, shape, 3, stride, padding=1)
        second = Local.conv(out, out, first.out_shape, 3, padding=1)
        body = nn.Sequential(
            convolution(first, f"block{number}.conv1"), FlatNorm(out), nn.ReLU(),
            convolution(second, f"block{number}.conv2"), FlatNorm(out),
        )  # fmt: skip
        layers += [Residual(body, Shortcut(channels, out, shape, stride)), nn.ReLU()]
    return nn.Sequential(*layers, GlobalMean(64), nn.Linear(64, classes))


def resnet20_blocks(stem: Make, blocks: Callable[[Sequence[tuple[int, int, tuple[int, int], int]]], nn.Module],
                    classes: int = 10, size: int = 32) -> nn.Sequential:  # fmt: skip
    """ResNet-20 cut at its blocks: `stem` makes the first convolution, `blocks` one module of all nine.

    `blocks` gets (channels in, channels out, shape, stride) of each; whatever norms lie inside must be frozen.
    """
    first = stem(Local.conv(3, 16, (size, size), 3, padding=1), "stem")
    return nn.Sequential(first, FlatNorm(16), nn.ReLU(), blocks(_blocks(size)), GlobalMean(64), nn.Linear(64, classes))


def _blocks(size: int) -> list[tuple[int, int, tuple[int, int], int]]:
    if size < 4 or size % 4:
        raise BadInput(f"ResNet-20 halves its images twice: their size must be a multiple of 4, not {size}")
    found = []
    channels = 16
    for out in (16, 32, 64):
        for _ in range(3):
            stride = out // channels
            found.append((channels, out, (size, size), stride))
            channels, size = out, size // stride
    return found


def plain_cnn(convolution: Make, width: int = 64, depth: int = 6, classes: int = 10, size: int = 32) -> nn.Sequential:
    """A plain network of `depth` 3 x 3 convolutions, `width` channels each, every second of stride 2, without skips.

    `convolution(reach, name)` makes each; norms, rectifiers and the head are on the host.
    """
    layers: list[nn.Module] = []
    channels, shape = 3, (size, size)
    for number in range(depth):
        reach = Local.conv(channels, width, shape, 3, stride=1 + number % 2, padding=1)
        layers += [convolution(reach, f"conv{number + 1}"), FlatNorm(width), nn.ReLU()]
        channels, shape = width, (reach.out_shape[0], reach.out_shape[1])
    return nn.Sequential(*layers, GlobalMean(width), nn.Linear(width, classes))


NETWORKS: dict[str, Callable[..., nn.Sequential]] = {"resnet20": resnet20, "plain_cnn": plain_cnn}
"""By the names that configurations use."""


def parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters())


def multiplications(reach: Local) -> int:
    """Multiply-accumulates of one image through the convolution of a reach."""
    outputs = reach.out_channels * math.prod(reach.out_shape)
    return outputs * reach.in_channels // reach.groups * math.prod(reach.kernel)
