"""What training aims at and how it steps: losses, metrics, optimisers, schedules by name, or your own by path."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from hzo_hil import optim
from hzo_hil.config import Config
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.nominal import Nominal
from hzo_hil.optim import LossOnly
from hzo_hil.optim.searched import Searched
from hzo_hil.paths import is_object_path, load_object

OBJECTS = {"model", "jacobian", "replicas"}
"""Keywords of loss-only optimisers that are no numbers or names."""


def loss_function(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    known: dict[str, Any] = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}
    return known[name] if name in known else _own(name, "loss", known)


def metric_function(name: str) -> Callable[[Tensor, Tensor], float]:
    known: dict[str, Any] = {
        "accuracy": lambda outputs, targets: float((outputs.argmax(-1) == targets).double().mean()),
        "mse": lambda outputs, targets: float(((outputs - targets) ** 2).double().mean()),
    }
    if name in known:
        return known[name]
    own = _own(name, "metric", known)
    return lambda outputs, targets: float(own(outputs, targets))


def _own(name: str, what: str, known: Mapping[str, Any]) -> Any:
    if not is_object_path(name):
        raise ConfigError(f"unknown {what} {name!r}: choose {', '.join(known)}, or give module:function")
    return load_object(name, what)


def make_optimizer(config: Config, model: nn.Module, steps_per_epoch: int = 1) -> Any:
    """For all parameters of `model`. Loss-only classes are given what they ask for by name; see `_settings`."""
    o = config.train.optimizer
    made = load_object(o.name, "optimizer") if is_object_path(o.name) else _named(o.name, config.method.credit)
    try:
        parameters, settings = _settings(made, config, model, steps_per_epoch)
        found = made(parameters, **settings)
    except (TypeError, ValueError, BadInput) as error:
        raise ConfigError(f"optimizer {o.name!r}: {error}") from error
    if isinstance(found, LossOnly) != (config.method.credit == "loss"):
        raise ConfigError(
            f"train.optimizer {o.name!r} and method.credit {config.method.credit!r} do not go together: an optimiser of"
            " hzo_hil.optim moves parameters by losses alone, which is credit: loss; every other needs gradients"
        )
    return found


def _named(name: str, credit: str) -> Any:
    """A class of torch.optim, or for credit loss of hzo_hil.optim."""
    by_losses = [n for n in optim.__all__ if _trains(getattr(optim, n))]
    made = getattr(optim, name) if name in by_losses else getattr(torch.optim, name, None)
    if made is None:
        home, known = ("hzo_hil.optim", by_losses) if credit == "loss" else ("torch.optim", dir(torch.optim))
        near = difflib.get_close_matches(name, known, 1) or ["SPSA" if credit == "loss" else "Adam"]
        raise ConfigError(f"{home} has no optimizer {name!r}; did you mean {near[0]!r}?")
    return made


def _trains(made: Any) -> bool:
    bases = (optim.Descent, LossOnly)
    return isinstance(made, type) and issubclass(made, LossOnly) and made not in bases


def _settings(made: Any, config: Config, model: nn.Module, steps_per_epoch: int) -> tuple[Any, dict[str, Any]]:
    """Parameters and keywords of an optimiser. A loss-only one gets, where its class has the keyword: `lr`, the run's
    `seed`, the `model`, `mask_steps` of one epoch, and `jacobian` of the twins with a parameter group for each stage.
    """
    o, parameters = config.train.optimizer, list(model.parameters())
    if config.method.credit != "loss" and not _trains(made):
        return parameters, {"lr": o.lr, **o.options}
    takes = inspect.signature(made).parameters
    if objects := sorted(OBJECTS & o.options.keys() & takes.keys()):
        raise BadInput(
            f"options {', '.join(objects)}: no text says what that is. Leave it out: the trainer passes what is needed"
        )
    usual: dict[str, Any] = {"lr": o.lr, "seed": config.seed, "model": model, "mask_steps": steps_per_epoch}
    groups: Any = parameters
    if "jacobian" in takes:
        nominal = Nominal(model)
        groups, usual["jacobian"] = nominal.groups, nominal.jacobians
    return groups, {n: v for n, v in usual.items() if n in takes} | o.options


def make_schedule(config: Config, optimizer: Any, steps: int) -> Any:
    s = config.train.schedule
    if isinstance(optimizer, Searched) and s.name != "constant":
        raise ConfigError(
            f"train.schedule {s.name!r} changes lr at every step, and {type(optimizer).__name__} takes it once, as the"
            " spread to begin with, and adapts it itself: use constant"
        )
    try:
        if s.name == "one_cycle":
            usual: dict[str, Any] = {"max_lr": config.train.optimizer.lr}
            if isinstance(optimizer, LossOnly) and "momentum" not in optimizer.defaults:
                usual["cycle_momentum"] = False
            return lr_scheduler.OneCycleLR(optimizer, **(usual | s.options), total_steps=steps)
        if s.name == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, steps, **s.options)
        return lr_scheduler.ConstantLR(optimizer, 1.0, 0)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"schedule {s.name!r}: {error}") from error
    except ZeroDivisionError as error:
        raise ConfigError(
            f"schedule {s.name!r} over {steps} steps has no step left for one of its phases (of one_cycle: pct_start"
            " times the steps is 1). Train for more epochs, or give options: {pct_start: ...}"
        ) from error
