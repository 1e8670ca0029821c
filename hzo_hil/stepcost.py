"""What one training step of a model will ask of its devices, layer by layer, and whether a budget has room for one.

Beforehand, from capabilities and plans alone; asks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from hzo_hil.config import Config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.forecast import Forecast, evaluations, forecast
from hzo_hil.ledger import Account
from hzo_hil.localloss import LocalBlocks
from hzo_hil.module import Opaque
from hzo_hil.objectives import make_optimizer
from hzo_hil.optim import LossOnly

Layer = tuple[Opaque, bool]
"""An opaque layer, and whether its input needs a gradient."""


def layers_of(model: nn.Module) -> list[Layer]:
    return _layers(model, False)[0]


def _layers(module: nn.Module, upstream: bool) -> tuple[list[Layer], bool]:
    """With whether something trained lies before the end."""
    if isinstance(module, Opaque):
        return [(module, upstream)], upstream or any(p.requires_grad for p in module.parameters())
    found: list[Layer] = []
    for child in module.blocks if isinstance(module, LocalBlocks) else module.children():
        inside, upstream = _layers(child, upstream)
        found += inside
        if isinstance(module, LocalBlocks):
            upstream = False  # the gradient is stopped between blocks
    return found, upstream or any(p.requires_grad for p in module.parameters(recurse=False))


def step_of(layer: Layer, optimizer: Any, batch: int, credit: str) -> Forecast:
    """One training step of `batch` samples by this optimiser and `method.credit`."""
    module, needs_input = layer
    wanted = [any(p.requires_grad for p in s.parameters()) for s in module.stages]
    if isinstance(optimizer, LossOnly):
        return evaluations(module.network, batch, optimizer.queries_per_step, module.resolved.at[0].repeats, wanted)
    return forecast(
        module.network, module.resolved, module.rules, batch, wanted=wanted, needs_input=needs_input,
        credit="none" if credit == "deployed" else module.credit, memory=module.memory,
        asks=module.target_questions(wanted, needs_input),
    )  # fmt: skip


def preparation(layer: Layer, optimizer: Any, batch: int) -> Account:
    """What a loss-only optimiser asks of a layer once, before its first step, with `batch` samples."""
    if not isinstance(optimizer, LossOnly) or not optimizer.queries_before:
        return Account()
    module, _ = layer
    wanted = [any(p.requires_grad for p in s.parameters()) for s in module.stages]
    return evaluations(module.network, batch, optimizer.queries_before, module.resolved.at[0].repeats, wanted).total


def check_budget(config: Config, model: nn.Module, samples: int) -> None:
    """ConfigError where not one step on `samples`, and what it needs beforehand, fits the budget; layers still to be
    planned are left out.
    """
    budget, batch = config.budget, min(config.train.batch_size, samples)
    optimizer = make_optimizer(config, model)
    layers = [layer for layer in layers_of(model) if layer[0].auto is None or layer[0].calibration is not None]
    before = _total(preparation(layer, optimizer, batch) for layer in layers)
    needed = _total([before, *(step_of(layer, optimizer, batch, config.method.credit).total for layer in layers)])
    what = f"one training step of {batch} samples" + (", with what precedes the first," if before.queries else "")
    limits: tuple[tuple[str, float | None, float], ...] = (
        ("max_queries", budget.max_queries, needed.queries),
        ("max_device_seconds", budget.max_device_seconds, _least_seconds(layers, needed)),
    )
    for name, limit, cost in limits:
        if limit is not None and cost > limit:
            raise ConfigError(
                f"budget.{name} is {limit:,} and {what} needs {cost:,.6g}, so that"
                " nothing would be trained. Nothing was asked. Raise it, lower train.batch_size, or choose a method"
                " that asks less (see hzo-hil plan)"
            )


def _least_seconds(layers: Iterable[Layer], needed: Account) -> float:
    """Declared seconds count only where they are what the ledger enters."""
    declared = all(d.capabilities.virtual_time for module, _ in layers for d in module.network.devices)
    return needed.device_seconds if declared else 0.0


def _total(accounts: Iterable[Account]) -> Account:
    total = Account()
    for account in accounts:
        total.add(account)
    return total
