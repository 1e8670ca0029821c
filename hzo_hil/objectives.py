"""What training aims at and how it steps: losses, metrics, optimisers, schedules by name, or your own by path."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import lr_scheduler

from hzo_hil.config import Config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.paths import is_object_path, load_object


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


def make_optimizer(config: Config, parameters: Any) -> Any:
    o = config.train.optimizer
    made = load_object(o.name, "optimizer") if is_object_path(o.name) else getattr(torch.optim, o.name, None)
    if made is None:
        near = difflib.get_close_matches(o.name, dir(torch.optim), 1) or ["Adam"]
        raise ConfigError(f"torch.optim has no optimizer {o.name!r}; did you mean {near[0]!r}?")
    try:
        return made(parameters, lr=o.lr, **o.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {o.name!r}: {error}") from error


def make_schedule(config: Config, optimizer: Any, steps: int) -> Any:
    s = config.train.schedule
    try:
        if s.name == "one_cycle":
            return lr_scheduler.OneCycleLR(
                optimizer, **{"max_lr": config.train.optimizer.lr, **s.options}, total_steps=steps
            )
        if s.name == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, steps, **s.options)
        return lr_scheduler.ConstantLR(optimizer, 1.0, 0)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"schedule {s.name!r}: {error}") from error
