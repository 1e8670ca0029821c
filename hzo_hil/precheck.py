"""Find out that data, network, loss and metric do not fit before any device time is spent.

Shapes go through the host's layers; an opaque layer answers with zeros. Asks no device and changes no module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil.config import Config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.layers import Residual
from hzo_hil.localloss import LocalBlocks
from hzo_hil.module import Opaque
from hzo_hil.objectives import loss_function, make_optimizer, make_schedule, metric_function
from hzo_hil.tensors import Tensors, steps_of


def check_fit(config: Config, model: nn.Module, data: Tensors) -> None:
    """Raise ConfigError, naming the layer or the objective, where two things do not fit each other."""
    labels = not data.y_train.is_floating_point()
    if config.train.metric == "accuracy" and not labels:
        raise ConfigError(
            f"train.metric 'accuracy' counts labels, and data {config.data.name!r} has regression targets."
            " Use metric: mse and loss: mse, or module:function"
        )
    # The largest label must have an output, too.
    rows = torch.tensor([0, int(data.y_train.argmax()) if labels else len(data.y_train) - 1])
    x, y = data.inputs(data.x_train[rows]), data.y_train[rows]
    training = model.training
    model.eval()  # statistics of normalising layers stay as they are
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = _through(config, model, x)
    finally:
        model.train(training)
    _check_objectives(config, outputs, y)
    local = config.method.local_losses
    if local is not None and outputs.shape[-1] != local.outputs:
        raise ConfigError(
            f"method.local_losses.outputs is {local.outputs}, and the network has {outputs.shape[-1]} outputs: the loss"
            " of a block is that of the whole, so they must be as many"
        )
    steps = steps_of(config, len(data.x_train))
    make_schedule(config, make_optimizer(config, model, steps), steps * config.train.epochs)


def _through(config: Config, module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, Opaque):
        return _opaque(config, module, x)
    if isinstance(module, nn.Sequential):
        for child in module:
            x = _through(config, child, x)
        return x
    if isinstance(module, LocalBlocks):
        return _blocks(config, module, x)
    shape = list(x.shape[1:])
    if isinstance(module, Residual):
        inside, beside = _through(config, module.body, x), _through(config, module.skip, x)
        if inside.shape != beside.shape:
            raise ConfigError(
                f"network: a skip's layers take {shape} per sample and give {list(inside.shape[1:])}: they cannot be"
                " added"
            )
        return beside + inside
    try:
        outputs = module(x)
    except Exception as error:
        raise ConfigError(
            f"network: host layer {module} does not take data of shape {shape} per sample: {error}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ConfigError(f"network: host layer {module} gave a {type(outputs).__name__}, not a tensor")
    return outputs


def _blocks(config: Config, module: LocalBlocks, x: Tensor) -> Tensor:
    for block in module.blocks:
        x = _through(config, block, x)
    return x


def _opaque(config: Config, module: Opaque, x: Tensor) -> Tensor:
    width = module.network.width(0)
    if x.ndim < 2 or x.shape[-1] != width:
        raise ConfigError(
            f"network: layer {module.name!r} takes [..., {width}], and gets {list(x.shape[1:])} per sample from data"
            f" {config.data.name!r} and the layers before it. Put a host layer in between, or data.flatten: true"
        )
    return x.new_zeros(*x.shape[:-1], module.network.width(module.network.depth))


def _check_objectives(config: Config, outputs: Tensor, y: Tensor) -> None:
    got = f"the network's outputs {_shape(outputs)} and the data's targets {_shape(y)}"
    if config.train.loss == "mse" and outputs.shape != y.shape:
        raise ConfigError(f"train.loss 'mse' needs outputs and targets of one shape, not {got}")
    if config.train.loss == "cross_entropy" and not y.is_floating_point() and int(y.max()) >= outputs.shape[1]:
        raise ConfigError(
            f"train.loss 'cross_entropy' needs an output for each class: the data has a label {int(y.max())}, the"
            f" network {outputs.shape[1]} outputs"
        )
    # Where outputs of zeros have no gradient there is still a value.
    loss: Any = _try("loss", config.train.loss, loss_function(config.train.loss), outputs, y, got)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.ndim:
        what = _shape(loss) if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(f"train.loss {config.train.loss!r} must give a tensor of one number, not {what}")
    _try("metric", config.train.metric, metric_function(config.train.metric), outputs, y, got)


def _try(what: str, name: str, function: Any, outputs: Tensor, y: Tensor, got: str) -> Any:
    try:
        return function(outputs, y)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"train.{what} {name!r} does not take {got}: {type(error).__name__}: {error}") from error


def _shape(tensor: Tensor) -> str:
    return (
        f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape[1:])} per sample"
        if tensor.ndim
        else "one number"
    )
