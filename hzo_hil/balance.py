"""Gains near 1 before training: orthogonal starts, scaled weights, and factors of the host, all set from one measured
pass.

Over many stages a mean-square gain away from 1 lets noise grow or targets vanish as its power. Layer by layer in the
order of the network, as Mishkin and Matas (2016) set variances; here the gain of each stage's Jacobian is what is
measured, by the looks of `calibrate`. Knows one layer; the model around it is `balance_model`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hzo_hil.calibrate.asking import Asker
from hzo_hil.calibrate.looks import look
from hzo_hil.calibrate.survey import designed
from hzo_hil.calibration import GAIN_HIGH, GAIN_LOW
from hzo_hil.coded import ScaledTwin
from hzo_hil.devices.errors import BadInput, DeviceError
from hzo_hil.network import Stage
from hzo_hil.streams import generator, stream_key
from hzo_hil.updates.learned import LearnedTwin

if TYPE_CHECKING:
    from hzo_hil.module import Opaque

Array = NDArray[Any]
ROUNDS = 4
CLOSE = 1.1
"""A gain within this factor of 1 is left alone: so few directions find it no better."""


@dataclass(frozen=True)
class Gain:
    """What may be set. `start`: `orthogonal` draws the matrix of each stage that has one orthogonal and scales it,
    `scaled` scales the weights that are there, `none` leaves them. `host`: what the host reads where it carries
    activations on (between devices, tiles and re-programmed stages, and at the end) is multiplied by a fixed factor.
    """

    start: Literal["none", "scaled", "orthogonal"] = "orthogonal"
    host: bool = True

    def __post_init__(self) -> None:
        if self.start not in ("none", "scaled", "orthogonal"):
            raise BadInput(f"unknown gain start {self.start!r}: choose none, scaled or orthogonal")
        if self.start == "none" and not self.host:
            raise BadInput("gain with start none and host false would change nothing: leave it out")


@dataclass(frozen=True)
class Balanced:
    """Mean-square gains by stage as found and as left, and the factors of the host. `outside`: stages (1-based) left
    beyond 1/3..3.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    factors: tuple[float, ...]

    @property
    def outside(self) -> list[int]:
        return [k + 1 for k, g in enumerate(self.after) if not GAIN_LOW <= g <= GAIN_HIGH]


def scaled(stage: Stage, factor: float) -> Stage:
    """The same stage, its outputs multiplied by `factor` > 0 on the host."""
    if factor == 1:
        return stage
    codec = replace(stage.codec_out, gain=stage.codec_out.gain / factor)
    return replace(stage, codec_out=codec, twin=None if stage.twin is None else ScaledTwin(stage.twin, factor))


def scalable(stage: Stage) -> bool:
    """Whether the stage has weights that scale what it answers."""
    spec = stage.block_specs.get("weight")
    return spec is not None and not spec.period and len(stage.specs) == 1


def has_matrix(stage: Stage) -> bool:
    """Whether these weights are its matrix [out, in], of either sign."""
    return scalable(stage) and stage.block_specs["weight"].shape == stage.core


def draw_orthogonal(module: Opaque) -> None:
    """Masters that are matrices, drawn with orthonormal rows or columns (Saxe et al., 2014). Raises BadInput."""
    matrices = [k for k, s in enumerate(module.network.stages) if has_matrix(s)]
    if not matrices:
        raise BadInput(
            f"{module.name}: no stage has a matrix for gain start orthogonal to draw (a mesh is unitary as it is)."
            " Use start scaled, or none with host=True"
        )
    for k in matrices:
        stage = module.network.stages[k]
        spec = stage.block_specs["weight"]
        if spec.low >= 0 or spec.high <= 0:
            raise BadInput(
                f"stage {k + 1} ({stage.label}) of {module.name} takes weights of one sign only, which no orthogonal"
                " matrix has: use gain start scaled"
            )
        if "weight" in stage.initial:
            raise BadInput(
                f"stage {k + 1} ({stage.label}) of {module.name} has an initial 'weight', and gain start orthogonal"
                " draws one: leave one of them out, or use start scaled"
            )
        drawn = _orthogonal(stage, generator(module.seed, "orthogonal", module.name, k))
        drawn *= min(1.0, min(-spec.low, spec.high) / float(np.abs(drawn).max()))
        master = module.stages[k].weight
        with torch.no_grad():
            master.copy_(torch.as_tensor(drawn))  # type: ignore[operator]


def _orthogonal(stage: Stage, rng: np.random.Generator) -> Array:
    """[out, in], or its blocks [rows, columns, out, in] filled up with zeros."""
    out, width = stage.out_width, stage.in_width
    q, r = np.linalg.qr(rng.standard_normal((max(out, width), min(out, width))))
    q = q * np.sign(np.diag(r))
    whole: Array = q if out >= width else q.T
    if stage.tiles is None:
        return whole
    (rows, columns), (high, wide) = stage.grid, stage.core
    filled = np.zeros((rows * high, columns * wide))
    filled[:out, :width] = whole
    return np.ascontiguousarray(filled.reshape(rows, high, columns, wide).transpose(0, 2, 1, 3))


def balance(module: Opaque, inputs: Array) -> Balanced:
    """Set starts and factors from inputs [n, width(0)], stage by stage; purpose `calibration`.

    Raises DeviceError where a stage does not answer to its input.
    """
    network, wanted = module.network, module.gain
    assert wanted is not None
    key = stream_key(module.seed, "balance", module.name)
    asker = Asker(module.dispatch, stream_key(key, "queries"))
    activations = inputs.astype(np.float64)
    before, after, factors = [], [], []
    with module.one_step():
        for k in range(network.depth):
            first = gain = _gain(module, asker, k, activations, key)
            for _ in range(ROUNDS if wanted.start != "none" and scalable(network.stages[k]) else 0):
                if max(gain, 1 / gain) < CLOSE or not _scale(module, k, gain**-0.5):
                    break
                gain = _gain(module, asker, k, activations, key)
            outputs = asker.answers(k, k + 1, activations)
            factor = 1.0
            if wanted.host and _hosted(module, k) and max(gain, 1 / gain) >= CLOSE:
                factor = min(gain**-0.5, _room(module, k + 1, outputs))
            before.append(first)
            after.append(gain * factor**2)
            factors.append(factor)
            activations = outputs * factor
    module.rescale(factors)
    module.balanced = True
    return Balanced(tuple(before), tuple(after), tuple(factors))


def _gain(module: Opaque, asker: Asker, k: int, activations: Array, key: int) -> float:
    asked = designed(module.network, k, activations, key, len(activations))
    found = look(asked, asker.answers(k, k + 1, asked.rows))
    if found.deaf or found.faint:
        raise DeviceError(
            f"stage {k + 1} ({module.network.stages[k].label}) of {module.name} answers the same whatever is driven"
            f" (inputs moved by up to {2 * asked.step:.3g}), or noise hides what it answers: its gain cannot be set. Is"
            " the light or the supply on, are its parameters all zero? hzo-hil device check tells more"
        )
    return found.gain


def _scale(module: Opaque, k: int, factor: float) -> bool:
    """Multiply the weights of stage k (0-based), within their range; whether that moves them."""
    master, spec = module.stages[k].weight, module.network.stages[k].block_specs["weight"]
    assert isinstance(master, torch.Tensor)
    high, low = float(master.max()), float(master.min())
    room = min(spec.high / high if high > 0 else math.inf, spec.low / low if low < 0 else math.inf)
    factor = min(factor, room)
    if abs(factor - 1) < 1e-3:
        return False
    with torch.no_grad():
        master.mul_(factor)
    module.written.update(module.stages, module.dispatch.count)
    return True


def _hosted(module: Opaque, k: int) -> bool:
    """Whether the host carries the outputs of stage k (0-based) on, always, and may multiply them."""
    network = module.network
    hosted = k + 1 == network.depth or len(network.route(k, k + 2)) > 1
    return hosted and not isinstance(module.rules[k], LearnedTwin)


def _room(module: Opaque, boundary: int, outputs: Array) -> float:
    """The largest factor with which these activations can still be driven."""
    if boundary == module.network.depth:
        return math.inf
    reach = min(abs(v) for v in module.network.limits(boundary))
    largest = float(np.abs(outputs).max())
    return max(reach / largest, 1.0) if largest > 0 else math.inf


def unbalanced(module: Opaque, found: Balanced) -> str:
    """Why stages were left outside 1/3..3, and what would help."""
    k = max(found.outside, key=lambda k: abs(math.log(found.after[k - 1])))
    stage = module.network.stages[k - 1]
    if _hosted(module, k - 1):
        why = "what the next stage can be driven with, or the range of its weights, allows no more"
    elif module.gain is not None and module.gain.start != "none" and scalable(stage):
        why = "the range of its weights allows no more, or its curve saturates"
    else:
        why = "it passes its answer on inside the device, where the host has no factor"
    return (
        f"{len(found.outside)} of {len(found.after)} stages stay outside {GAIN_LOW:.2g}..{GAIN_HIGH:.2g}, most of all"
        f" stage {k} ({stage.label}) with {found.after[k - 1]:.3g}: {why}. Lay a known skip around it, or set its gain"
        " on the device"
    )
