"""The gradient that a network on simulated devices would have without noise: by autograd on copies of these devices.

Asks no device anything, and moves no stream of random numbers. Where a device is not simulated there is no such copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hzo_hil.build import opaques, replaced
from hzo_hil.coded import CodedTwin
from hzo_hil.credit.twin import TwinNetwork
from hzo_hil.devices.errors import BadInput
from hzo_hil.masters import Written
from hzo_hil.module import Opaque
from hzo_hil.network import Network, Stage
from hzo_hil.simulators.twins import Noiseless

Loss = Callable[[Tensor, Tensor], Tensor]
Gradients = dict[str, list[Tensor]]
"""By name of an opaque layer, the gradient of each stage `[values]` in float64, empty where it has no parameters."""


def noiseless_layer(layer: Opaque) -> TwinNetwork:
    """The layer on copies of its devices, in float64, with parameters of its own: what the devices would hold now.

    Copies have the fabrication errors of their specimens and the ends of their converters; noise, drift, converter
    steps and number formats are left out. Raises BadInput where a device is not simulated, or has no differentiable
    form.
    """
    network = Network([replace(stage, twin=_copy_of(stage)) for stage in layer.network.stages])
    stages = copy.deepcopy(layer.stages).double()
    codes = Written(network)
    codes.update(stages, lambda *_: None)
    for values, masters in zip(codes.values, stages, strict=True):
        for name, master in masters.named_parameters():
            master.data.copy_(torch.as_tensor(values[name]))
    made = TwinNetwork(network, stages)
    with torch.no_grad():  # what has no differentiable form says so now
        try:
            made(torch.zeros(1, network.width(0), dtype=torch.float64))
        except ValueError as error:
            raise BadInput(f"{layer.name}: {error}") from error
    return made


def _copy_of(stage: Stage) -> nn.Module:
    device = stage.device
    models = getattr(device, "models", None)
    if models is None or len(stage.segment) > 1:
        why = "it is not simulated in this process" if models is None else "its inner boundaries are closed"
        raise BadInput(
            f"there is no noise-free copy of stage {stage.label} of {device.capabilities.identity!r}, since {why}: a"
            " gradient can be compared on simulated chips (kind:) with open boundaries only"
        )
    twin = Noiseless(models[stage.segment.lo], getattr(device, "power", 1.0))
    return CodedTwin(twin, stage.codec_in, stage.codec_out, stage.drive.low, stage.drive.high)


def noiseless_gradients(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Gradients:
    """Of the minibatch's loss, for the parameters of every opaque layer of `model` (as `build.build_model` makes them).

    Host layers are copied too: their running statistics do not move. Random draws of theirs are torch's next ones.
    """
    made: dict[Opaque, TwinNetwork] = {}

    def stand_in(layer: Opaque) -> nn.Module:
        if layer not in made:
            made[layer] = noiseless_layer(layer)
        return made[layer]

    copied = replaced(model, stand_in, lambda host: copy.deepcopy(host).double())
    with torch.enable_grad():
        value = loss(copied(x.double()).to(x.dtype), y)
        masters = [p for twin in made.values() for p in twin.stages.parameters()]
        found = iter(torch.autograd.grad(value, masters))
    return {
        layer.name: [_flat([next(found) for _ in stage.parameters()]) for stage in twin.stages]
        for layer, twin in made.items()
    }


def present_gradients(model: nn.Module) -> Gradients:
    """What backward has left in the opaque layers of `model`; zeros where nothing came."""
    return {
        layer.name: [
            _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in stage.parameters()])
            for stage in layer.stages
        ]
        for layer in opaques(model)
    }


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().double().flatten().cpu() for p in parts] or [torch.zeros(0, dtype=torch.float64)])


def cosine(found: Tensor, true: Tensor) -> float:
    """Of the angle between two gradients; NaN where one of them is zero."""
    size = float(found.norm() * true.norm())
    return float(found @ true) / size if size > 0 else float("nan")


def relative_error(found: Tensor, true: Tensor) -> float:
    """||found - true|| / ||true||, a norm; NaN where the true gradient is zero."""
    size = float(true.norm())
    return float((found - true).norm()) / size if size > 0 else float("nan")
