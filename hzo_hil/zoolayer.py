"""A network of the zoo as a layer of a configuration: its convolutions are the stages of one device, in order.

Says what device a network needs where the one it got has other stages. Knows neither plans nor credits: the caller
makes a module of each stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hzo_hil.config import LayerSection
from hzo_hil.devices.api import Local
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.network import Stage
from hzo_hil.sections import near
from hzo_hil.structure import Footprint
from hzo_hil.zoo import NETWORKS, HostConv


class FlatImages(nn.Module):
    """Images `[batch, *shape]`, or flat already, as the zoo's networks take them: `[batch, channels x pixels]`."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim > 2 and tuple(images.shape[1:]) != self.shape:
            raise BadInput(
                f"this network takes images {list(self.shape)} and gets {list(images.shape[1:])}: give its argument"
                " size, and the device's image, the size of the data"
            )
        return images.flatten(1)


def zoo_layer(
    layer: LayerSection, stages: Sequence[Stage], opaque: Callable[[Stage, str], nn.Module], name: str
) -> nn.Sequential:
    """The network `layer.zoo`, each of its convolutions made by `opaque(stage, name)` of the device's next stage."""
    reaches = _convolutions(layer)
    _check(layer, reaches, stages)
    left = iter(stages)
    network = _made(layer, lambda reach, label: opaque(next(left), f"{name}.{label}"))
    first = reaches[0]
    return nn.Sequential(FlatImages((first.in_channels, *first.shape)), network)


def _convolutions(layer: LayerSection) -> list[Local]:
    reaches: list[Local] = []

    def noted(reach: Local, label: str) -> nn.Module:
        reaches.append(reach)
        return HostConv(reach)

    _made(layer, noted)
    return reaches


def _made(layer: LayerSection, convolution: Callable[[Local, str], nn.Module]) -> nn.Sequential:
    name = str(layer.zoo)
    if name not in NETWORKS:
        raise ConfigError(f"the zoo has no network {name!r}{near(name, NETWORKS)}")
    try:
        return NETWORKS[name](convolution, **layer.arguments)
    except (BadInput, TypeError) as error:
        raise ConfigError(f"zoo layer {name!r} could not be made with {layer.arguments}: {error}") from error


def _check(layer: LayerSection, reaches: Sequence[Local], stages: Sequence[Stage]) -> None:
    differs = next((k for k, (r, s) in enumerate(zip(reaches, stages, strict=False)) if not _is(s, r)), None)
    if differs is None and len(reaches) == len(stages):
        return
    first = reaches[0]
    if differs is None:
        what = f"has {len(stages)} stages with a boundary between, and the network has {len(reaches)} convolutions"
    else:
        what = f"has another stage {differs + 1}, {_seen(stages[differs])}, than {_said(reaches[differs])}"
    convs: list[list[Any]] = [[r.out_channels, r.kernel[0], r.stride[0], r.padding[0]] for r in reaches]
    raise ConfigError(
        f"network: zoo layer {layer.zoo!r} puts its convolutions on the stages of device {layer.device!r}, which"
        f" {what}. A simulated one that fits is kind: conv_emulator with options: {{activation: none, image:"
        f" {[first.in_channels, *first.shape]}, convs: {convs}}}"
    )


def _is(stage: Stage, reach: Local) -> bool:
    if not isinstance(stage.structure, Footprint) or len(stage.structure.parts) != 1:
        return False
    return replace(stage.structure.parts[0], uniform=reach.uniform) == reach


def _seen(stage: Stage) -> str:
    if isinstance(stage.structure, Footprint):
        return " and ".join(map(_said, stage.structure.parts))
    return f"{stage.in_width} inputs and {stage.out_width} outputs that declare no convolution"


def _said(reach: Local) -> str:
    kernel = " x ".join(map(str, reach.kernel))
    return (
        f"a {kernel} convolution of stride {reach.stride[0]} from {[reach.in_channels, *reach.shape]} to"
        f" {[reach.out_channels, *reach.out_shape]}"
    )
