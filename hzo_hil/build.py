"""From configuration to models: opaque layers on devices, host layers and skips around them.

How a device is opened `opening` knows, what a stage is made of `staging`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from hzo_hil.balance import Gain
from hzo_hil.config import Config, LayerSection
from hzo_hil.credit.difference import DifferenceTargets
from hzo_hil.credit.rule import TargetRule
from hzo_hil.credit.twin import TwinNetwork
from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import ConfigError
from hzo_hil.layers import Residual
from hzo_hil.localloss import LocalBlocks
from hzo_hil.module import Opaque
from hzo_hil.network import Stage
from hzo_hil.opening import open_device
from hzo_hil.paths import load_object
from hzo_hil.plan import Plan
from hzo_hil.staging import stages_for
from hzo_hil.zoolayer import zoo_layer


def open_devices(config: Config) -> dict[str, Device]:
    return {name: open_device(section, config.seed) for name, section in config.devices.items()}


def build_model(config: Config, devices: Mapping[str, Device], credit: str | None = None) -> nn.Sequential:
    """The whole model: opaque layers on `devices`, host layers as they are. Initial values follow `config.seed`."""
    # Host layers draw their initial values from torch's global stream: keep it to ourselves.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _layers(config, config.network, devices, credit or config.method.credit, "")


def _layers(
    config: Config, layers: list[LayerSection], devices: Mapping[str, Device], credit: str, prefix: str
) -> nn.Sequential:
    modules: list[nn.Module] = []
    for position, layer in enumerate(layers):
        name = layer.name or f"{prefix}{position}"
        if layer.skip is not None:
            modules.append(Residual(_layers(config, layer.skip, devices, credit, f"{name}.")))
        elif layer.host is not None:
            modules.append(_host(layer))
        elif layer.zoo is not None:
            stages = stages_for(config, layer, devices, name)
            modules.append(zoo_layer(layer, stages, lambda stage, label: _opaque(config, [stage], credit, label), name))
        else:
            modules.append(_opaque_layer(config, layer, devices, credit, name))
    return nn.Sequential(*modules)


def _host(layer: LayerSection) -> nn.Module:
    path = str(layer.host)
    make = load_object(path, "host layer")
    try:
        module = make(**layer.arguments)
    except Exception as error:
        raise ConfigError(f"host layer {path!r} could not be made with {layer.arguments}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"host layer {path!r} gave a {type(module).__name__}, not a torch.nn.Module")
    return module


def _opaque_layer(
    config: Config, layer: LayerSection, devices: Mapping[str, Device], credit: str, name: str
) -> nn.Module:
    stages, local = stages_for(config, layer, devices, name), config.method.local_losses
    if local is None:
        return _opaque(config, stages, credit, name)
    ends = local.boundaries
    if ends != sorted(set(ends)) or ends[-1] >= len(stages):
        raise ConfigError(
            f"method.local_losses.boundaries {ends} of layer {name!r}: give inner boundaries in ascending order, of"
            f" 1..{len(stages) - 1} ({len(stages)} stages)"
        )
    cuts = zip([0, *ends], [*ends, len(stages)], strict=True)
    blocks = [_opaque(config, stages[lo:hi], credit, f"{name}.{number}") for number, (lo, hi) in enumerate(cuts)]
    return LocalBlocks(blocks, [stages[end].in_width for end in ends], local.outputs)


def _opaque(config: Config, stages: list[Stage], credit: str, name: str) -> Opaque:
    m = config.method
    unknown = [s.label for s in stages if s.twin is None]
    if credit == "deployed" and unknown:
        raise ConfigError(
            f"method.credit: deployed trains the ideal model of every stage, and none is known of {', '.join(unknown)}:"
            " it takes a simulated chip (kind:) or a datasheet, and open inner boundaries. Or choose credit: hzo"
        )
    tree = tuple(m.tree) if isinstance(m.tree, list) else m.tree
    plan = m.plan or Plan(tree, m.probes, m.eps, m.differences, m.repeats, shared=m.shared, average=m.average)
    return Opaque(
        stages,
        plan=plan,
        shared=m.shared if m.plan else None,  # a plan of the caller's own has it already
        tolerance=m.tolerance,
        queries_per_step=m.queries_per_step,
        seconds_per_step=m.seconds_per_step,
        credit=_credit(config, credit, name),
        memory=m.memory if credit == "hzo" else "store",
        seed=config.seed,
        name=name,
        max_bad_steps=config.train.max_bad_steps,
        max_saturated=config.train.max_saturated,
        gain=None if m.gain is None else Gain(m.gain.start, m.gain.host),
    )


def _credit(config: Config, credit: str, name: str) -> str | TargetRule:
    if credit == "difference":
        return DifferenceTargets(config.seed, name, **config.method.inverse.model_dump())
    return "twin" if credit == "deployed" else credit


def opaques(model: nn.Module) -> list[Opaque]:
    return [m for m in model.modules() if isinstance(m, Opaque)]


def replaced(
    model: nn.Module,
    stand_in: Callable[[Opaque], nn.Module],
    host: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> nn.Module:
    """A model as `build_model` makes them, with something else in place of its opaque (and host) layers."""
    if isinstance(model, Opaque):
        return stand_in(model)
    if isinstance(model, nn.Sequential):
        return nn.Sequential(*(replaced(m, stand_in, host) for m in model))
    if isinstance(model, Residual):
        return Residual(replaced(model.body, stand_in, host), host(model.skip))
    if isinstance(model, LocalBlocks):
        heads = [host(head) for head in model.heads]
        return model.replaced([replaced(block, stand_in, host) for block in model.blocks], heads)
    return host(model)


def twin_model(model: nn.Module) -> nn.Module:
    """The same model with every opaque layer replaced by its twins; parameters are shared, not copied."""
    return replaced(model, lambda layer: TwinNetwork(layer.network, layer.stages))


def trained_model(config: Config, model: nn.Module) -> nn.Module:
    """What the loss of training goes through: the model itself or, where it is deployed afterwards, its twins."""
    return twin_model(model) if config.method.credit == "deployed" else model
