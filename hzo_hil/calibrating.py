"""One opaque layer calibrates itself: its forwards that are watched, what it asks for, its gradient's noise.

What a calibration is, `calibrate` knows; what becomes of it, `autoplan`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hzo_hil import calibrate as measuring
from hzo_hil.calibrate.asking import PURPOSE
from hzo_hil.calibration import Calibration
from hzo_hil.devices.errors import BadInput
from hzo_hil.reference import forward_pass
from hzo_hil.streams import stream_key
from hzo_hil.updates import Leaf

if TYPE_CHECKING:
    from hzo_hil.module import Opaque

Array = NDArray[Any]
Watched = list[tuple[dict[int, Array], Tensor]]
"""Activations and outputs of each forward."""
Pass = tuple[dict[int, Array], Array]
"""One forward: activations by boundary, and the gradient at its outputs."""
_ASIDE = 1 << 40
"""Numbers of forwards that training never reaches."""


def calibrate(module: Opaque, flat: Tensor, loss: Callable[[Tensor], Tensor], batch: int | None) -> Calibration:
    """From inputs [n, width(0)] and the loss of the layer's own outputs."""
    few = flat[: measuring.rows_of(module.network, len(flat))]
    tops = []
    with module.watched() as seen, torch.enable_grad():
        for _ in range(2):
            outputs = module(few)
            tops.append(torch.autograd.grad(loss(outputs), outputs)[0].detach().cpu().numpy())
    return take(module, [(found, top) for (found, _), top in zip(seen, tops, strict=True)], batch or len(flat))


def watch(module: Opaque, flat: Tensor, into: Watched) -> Tensor:
    """A forward paid for as calibration; its outputs are cut off from what came before."""
    module.written.update(module.stages, module.dispatch.count)
    module.upstream = flat.requires_grad
    key = stream_key(module.seed, PURPOSE, module.name, module.calibrated, len(into))
    with module.one_step():
        found = forward_pass(module.dispatch, flat.detach().cpu().numpy(), purpose=PURPOSE, key=key, inner=True)
    outputs = torch.as_tensor(found[module.network.depth]).to(flat).requires_grad_()
    into.append((found, outputs))
    return outputs


def take(module: Opaque, seen: Sequence[Pass], batch: int) -> Calibration:
    """Ask the rest, and plan. `seen`: two forwards of the same inputs, with the gradients at their outputs."""
    (first, top), (second, other) = seen
    key = stream_key(module.seed, PURPOSE, module.name, module.calibrated)
    with module.one_step():
        found = measuring.calibrate(
            module.dispatch, measuring.Seen((first, second), (top, other)), module.rules, _trained(module),
            partial(_leaf_of, module), key=key,
        )  # fmt: skip
    module.calibrated += 1
    for text in found.warnings():
        warnings.warn(f"{module.name}: {text}", stacklevel=4)
    module.adopt(found, batch, module.upstream)
    return found


def look_again(module: Opaque, seen: Sequence[Pass], known: Calibration) -> Calibration:
    """What a short look makes of `known`; `seen` as for `take`. Its keys are those of the next calibration's number."""
    (first, top), (second, other) = seen
    key = stream_key(module.seed, "look", module.name, module.calibrated)
    with module.one_step():
        return measuring.look_again(
            module.dispatch, measuring.Seen((first, second), (top, other)), known, module.rules, _trained(module),
            partial(_leaf_of, module), key=key,
        )  # fmt: skip


def _trained(module: Opaque) -> list[bool]:
    return [any(p.requires_grad for p in s.parameters()) for s in module.stages]


def _leaf_of(module: Opaque, k: int, inputs: Array, outputs: Array, target: Array) -> Leaf:
    """What the leaf rule of stage k (0-based) is given; a rule that asks is not given a way to."""
    stage = module.network.stages[k]
    like = next(module.stages[k].parameters())
    driven = np.clip(inputs, *module.network.limits(k))
    given, answered, weights = (torch.as_tensor(v).to(like) for v in (driven, outputs, target))
    return Leaf(
        stage, stage.block_specs, module.written.tensors(k, None, like), given, answered, weights, _asks_nothing,
        stream_key(module.seed, PURPOSE, module.name, k),
    )  # fmt: skip


def _asks_nothing(_: Mapping[str, Array]) -> Array:
    raise BadInput("a leaf rule that says it asks nothing asked the device while it was being calibrated")


def spread(module: Opaque, loss: Callable[[], Tensor]) -> float:
    """Relative error by noise of a minibatch's gradient; see `Opaque.spread_of_gradient`."""
    masters = [p for p in module.stages.parameters() if p.requires_grad]
    before, kept, gains, found = module.forwards, module.jacobians, module.gains.state(), []
    try:
        for again in range(2):
            module.forwards = _ASIDE + 2 * module.calibrated + again
            # Each measures for itself: a shared Jacobian that the first left would hide its noise from the second.
            module.jacobians = kept.afresh()
            with module.dispatch.charged_to(PURPOSE), torch.enable_grad():
                gradients = torch.autograd.grad(loss(), masters)
            found.append(torch.cat([g.flatten().double() for g in gradients]))
    finally:
        module.forwards, module.jacobians = before, kept
        module.gains.load(gains)
    difference = float((found[0] - found[1]).norm()) / 2**0.5
    size = float(((found[0] + found[1]) / 2).norm()) ** 2 - difference**2 / 2
    return difference / size**0.5 if size > 0 else float("inf")
