"""Derivatives that need no matrix: of element-wise stages, and sigma' of a stage sigma(W a + b).

For rules that put something else in the place of a stage's matrix, and keep the rest true. An element-wise stage is
differentiated by its twin where it has one; else it is asked with all its inputs moved up and down at once, two rows a
sample, and every output answers for its own input. Stages of known sigma' are read off their outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hzo_hil.credit.rule import Array, Pass, Question
from hzo_hil.credit.twin import run_twin
from hzo_hil.devices.api import Local
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Network
from hzo_hil.structure import Footprint
from hzo_hil.updates import LeafRule
from hzo_hil.updates.delta import KNOWN, DeltaRule


def elementwise(network: Network, k: int) -> bool:
    """Whether stage k (0-based) has a diagonal Jacobian: no matrix to be replaced."""
    return network.structure(k, k + 1) == "diagonal"


def convolution(network: Network, k: int) -> Local | None:
    """Of stage k (0-based) that is one: where it reaches. None for every other."""
    structure = network.structure(k, k + 1)
    return structure.parts[0] if isinstance(structure, Footprint) and len(structure.parts) == 1 else None


def check(credit: str, network: Network, leaves: Sequence[LeafRule | None]) -> None:
    """BadInput where a stage's derivative beside its matrix is not known."""
    for k, (stage, leaf) in enumerate(zip(network.stages, leaves, strict=True)):
        if elementwise(network, k):
            continue
        if network.structure(k, k + 1) != "dense" and convolution(network, k) is None:
            raise BadInput(
                f"credit {credit!r} puts a matrix or a kernel in the place of a stage's own, and stage {k + 1}"
                f" ({stage.label}) is several convolutions in one go. Use credit hzo, align or activity there"
            )
        if not stage.linear and (not isinstance(leaf, DeltaRule) or leaf.queries):
            raise BadInput(
                f"credit {credit!r} needs sigma' of stage {k + 1} ({stage.label}), which is not linear: name it by"
                f" leaf: delta:NAME ({', '.join(KNOWN)}), or drive and read the activation as a stage of its own"
            )


def question(network: Network, k: int) -> list[Question]:
    """What the derivative of stage k (0-based) asks."""
    if not elementwise(network, k) or network.stages[k].twin is not None:
        return []
    return [Question(k, k + 1, 2)]


def through(given: Pass, k: int, target: Array) -> Array:
    """The target at boundary k from that at k + 1, for an element-wise stage."""
    if given.network.stages[k].twin is None:
        return np.asarray(target * _measured(given, k), dtype=target.dtype)
    inputs = torch.as_tensor(given.activations[k]).to(torch.as_tensor(target)).requires_grad_()
    values = {n: torch.as_tensor(v).to(inputs) for n, v in given.values[k].items()}
    with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        outputs = run_twin(given.network, k, inputs, values)
    found: Array = torch.autograd.grad(outputs, inputs, torch.as_tensor(target).to(outputs))[0].numpy()
    return found


def _measured(given: Pass, k: int) -> Array:
    """[samples, width]: outputs over inputs of one shift of them all, as far as the range lets each move."""
    low, high = given.network.limits(k)
    base, eps = given.activations[k], given.eps[k]
    rows = np.clip(np.stack([base + eps, base - eps], axis=1), low, high)
    answers = given.ask(Question(k, k + 1, 2), rows.reshape(-1, base.shape[1])).reshape(len(base), 2, -1)
    change, step = (v[:, 0].astype(np.float64) - v[:, 1] for v in (answers, rows))
    return np.divide(change, step, out=np.zeros_like(change), where=step != 0)


def before_matrix(given: Pass, k: int, target: Array) -> Array:
    """The target at W a + b of stage k (0-based) from that at its output."""
    leaf = given.leaves[k]
    if given.network.stages[k].linear or not isinstance(leaf, DeltaRule):
        return target
    gain = given.network.stages[k].codec_out.gain
    slope = leaf.slope(torch.as_tensor(given.activations[k + 1]), gain).numpy()
    return np.asarray(target * slope, dtype=target.dtype)
