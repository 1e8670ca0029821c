"""Calibrate and balance the opaque layers of a whole model, where host layers and a loss lie around them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil import calibrating
from hzo_hil.balance import Balanced, balance, unbalanced
from hzo_hil.calibrate import ROWS, rows_of
from hzo_hil.calibration import Calibration
from hzo_hil.devices.errors import BadInput
from hzo_hil.entrance import checked
from hzo_hil.ledger import Account
from hzo_hil.module import Opaque
from hzo_hil.network import Stage
from hzo_hil.streams import torch_generator

Seen = dict[str, list[tuple[Any, Tensor]]]


def calibrate_model(
    model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor], batch: int | None = None
) -> dict[str, Calibration]:
    """Calibrate, and where `plan="auto"` plan, every `Opaque` in `model` by name; see `Opaque.calibrate`.

    `inputs` [n, ...] is a training batch; `loss` takes the model's outputs for its *first* rows, of whichever number
    they are. Host layers run in evaluation mode; no parameter, gradient or running statistic changes. What an opaque
    layer below another one passes on is only known by probing: its target is taken as random, alike for no two samples.
    """
    layers = [m for m in model.modules() if isinstance(m, Opaque)]
    if not layers:
        raise BadInput("the model has no Opaque layer: there is nothing to calibrate")
    seen = passes_of(model, layers, inputs, loss)
    return {layer.name: calibrating.take(layer, seen[layer.name], batch or len(inputs)) for layer in layers}


def passes_of(
    model: nn.Module, layers: Sequence[Opaque], inputs: Tensor, loss: Callable[[Tensor], Tensor]
) -> dict[str, list[calibrating.Pass]]:
    """Two forward passes of the first rows, paid for as calibration: what each of `layers` saw, and its targets."""
    few = inputs[: min(rows_of(layer.network, len(inputs)) for layer in layers)]
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with ExitStack() as open_, torch.enable_grad(), torch.random.fork_rng(devices=[]):
            seen = {id(layer): open_.enter_context(layer.watched()) for layer in layers}
            tops: dict[int, list[Any]] = {id(layer): [] for layer in layers}
            for _ in range(2):
                value = loss(model(few))
                outputs = [seen[id(layer)][-1][1] for layer in layers]
                for layer, found in zip(layers, torch.autograd.grad(value, outputs, allow_unused=True), strict=True):
                    tops[id(layer)].append(found)
            passes = {key: [(s[len(s) // 2 - 1][0]), s[-1][0]] for key, s in seen.items()}
    finally:
        for module, mode in training.items():
            module.training = mode
    result = {}
    for layer in layers:
        targets = _targets(layer, tops[id(layer)], passes[id(layer)][0][layer.network.depth])
        result[layer.name] = list(zip(passes[id(layer)], targets, strict=True))
    return result


def balance_model(model: nn.Module, inputs: Tensor) -> dict[str, Balanced]:
    """Bring gains near 1 in every `Opaque` of `model` that has `gain=` and was not balanced yet, by name.

    `inputs` [n, ...] is a training batch, of which the first 16 rows are asked. Layer by layer, so that each is set
    for what those before it now give. Starting weights and factors change, nothing else; counted as calibration.
    """
    layers = [m for m in model.modules() if isinstance(m, Opaque) and m.gain is not None and not m.balanced]
    found: dict[str, Balanced] = {}

    def first(layer: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(layer, Opaque)
        if not layer.balanced:
            found[layer.name] = balance(layer, checked(layer, given[0]).detach().cpu().numpy())

    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with ExitStack() as open_, torch.no_grad(), torch.random.fork_rng(devices=[]):
            for layer in layers:
                open_.enter_context(layer.watched())
                open_.callback(layer.register_forward_pre_hook(first).remove)
            if layers:
                model(inputs[:ROWS])
    finally:
        for module, mode in training.items():
            module.training = mode
    for layer in layers:
        if layer.name in found and found[layer.name].outside:
            warnings.warn(f"{layer.name}: {unbalanced(layer, found[layer.name])}", stacklevel=2)
    return found


def balanced(model: nn.Module, first_batch: Callable[[], tuple[Tensor, Tensor]]) -> list[str]:
    """Balance what asks for it and was not yet; what was done, in words."""
    layers = {m.name: m for m in model.modules() if isinstance(m, Opaque) and m.gain is not None and not m.balanced}
    if not layers:
        return []
    before = {name: layer.ledger.accounts["calibration"].queries for name, layer in layers.items()}
    return [
        f"{name}: balanced with {layers[name].ledger.accounts['calibration'].queries - before[name]:,} queries; gains"
        f" were {min(b.before):.3g}..{max(b.before):.3g}, are {min(b.after):.3g}..{max(b.after):.3g}"
        for name, b in balance_model(model, first_batch()[0]).items()
    ]


def _targets(layer: Opaque, found: list[Tensor | None], like: Any) -> list[Any]:
    if all(t is not None for t in found):
        return [t.detach().reshape(like.shape).cpu().numpy() for t in found if t is not None]
    drawn = torch.randn(like.shape, generator=torch_generator(layer.seed, "calibration", layer.name)).numpy()
    return [drawn, drawn]


def planned(
    model: nn.Module, first_batch: Callable[[], tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> list[str]:
    """Calibrate a model some of whose layers have `plan="auto"` and no plan yet; what was done, in words."""
    layers = [m for m in model.modules() if isinstance(m, Opaque) and m.auto is not None]
    if all(layer.calibration is not None for layer in layers):
        return []
    inputs, wanted = first_batch()
    before = {layer.name: layer.ledger.accounts["calibration"].queries for layer in layers}
    calibrate_model(model, inputs, lambda outputs: loss(outputs, wanted[: len(outputs)]))
    return [_said(layer, layer.ledger.accounts["calibration"].queries - before[layer.name]) for layer in layers]


def _said(layer: Opaque, queries: int) -> str:
    assert layer.outcome is not None
    found = layer.outcome.prediction
    cost = layer.outcome.cost
    return (
        f"{layer.name}: calibrated with {queries:,} queries; planned {layer.resolved.tree.name}, predicted gradient"
        f" error {found.error:.3g}, {cost:.4g} {layer.outcome.planned.unit} of probes a step"
    )


def calibrate_device(stages: Sequence[Stage], seed: int, rows: int = 64) -> tuple[Calibration, Account]:
    """A device on its own, and what it was asked. There is no data and no loss: inputs are uniform over the range, or
    normal with deviation 1/2 where there is none, and the loss is a random weighing of the outputs. What is said of
    gradients is for these; what is said of stages holds for any.
    """
    layer = Opaque(stages, seed=seed, name="device")
    draw = torch_generator(seed, "calibrate device")
    low, high = layer.network.limits(0)
    shape = (rows, layer.network.width(0))
    if math.isfinite(low) and math.isfinite(high):
        inputs = low + (high - low) * torch.rand(shape, generator=draw)
    else:
        inputs = (0.5 * torch.randn(shape, generator=draw)).clamp(low, high)
    weights = torch.randn(layer.network.width(layer.network.depth), generator=draw)
    try:
        with warnings.catch_warnings():  # they are in the text
            warnings.simplefilter("ignore")
            found = layer.calibrate(inputs, lambda outputs: (outputs * weights).mean())
    finally:
        layer.close()
    return found, layer.ledger.accounts["calibration"]
