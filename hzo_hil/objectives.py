"""What training aims at and how it steps: losses, metrics, optimisers, schedules by name, or your own by path."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import lr_scheduler

from hzo_hil import optim
from hzo_hil.config import Config
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.optim import LossOnly
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
    made = load_object(o.name, "optimizer") if is_object_path(o.name) else _named(o.name, config.method.credit)
    try:
        found = made(parameters, **_settings(made, config))
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
    by_losses = [n for n in optim.__all__ if n not in ("Descent", "LossOnly")]  # which are bases
    made = getattr(optim, name) if name in by_losses else getattr(torch.optim, name, None)
    if made is None:
        home, known = ("hzo_hil.optim", by_losses) if credit == "loss" else ("torch.optim", dir(torch.optim))
        near = difflib.get_close_matches(name, known, 1) or ["SPSA" if credit == "loss" else "Adam"]
        raise ConfigError(f"{home} has no optimizer {name!r}; did you mean {near[0]!r}?")
    return made


def _settings(made: Any, config: Config) -> dict[str, Any]:
    """Keywords of an optimiser: loss-only ones draw from the run's seed, and some have no learning rate."""
    o = config.train.optimizer
    if config.method.credit != "loss":
        return {"lr": o.lr, **o.options}
    usual = {"lr": o.lr, "seed": config.seed}
    return {n: v for n, v in usual.items() if n in inspect.signature(made).parameters} | o.options


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
    except ZeroDivisionError as error:
        raise ConfigError(
            f"schedule {s.name!r} over {steps} steps has no step left for one of its phases (of one_cycle: pct_start"
            " times the steps is 1). Train for more epochs, or give options: {pct_start: ...}"
        ) from error
