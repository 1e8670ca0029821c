"""The delta rule for stages sigma(W a + b): dW = T_z^T a, db = T_z, T_z = T * sigma'(z) (HZO eq. 5, with the sigma' it
leaves out). W is a matrix, or the kernel of a convolution that is the same everywhere.

sigma' is known from the output (`identity`, `relu`, `tanh`, `sigmoid`, or your function of the outputs), or `measured`:
one +/- shift of the whole bias moves every z at once and each output answers for itself: 2 writes and 2 queries a
sample. What counts is the bias as written, after range and converter. Exact up to the truncation of the measured
sigma'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from hzo_hil import convolution
from hzo_hil.devices.api import Local, ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Stage
from hzo_hil.parameters import difference, settled, widest_gap
from hzo_hil.structure import Footprint
from hzo_hil.updates import Leaf

KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.ones_like,
    "relu": lambda y: (y > 0).to(y.dtype),
    "tanh": lambda y: 1 - y**2,
    "sigmoid": lambda y: y * (1 - y),
}


class DeltaRule:
    """`derivative`: a known name, a function of the outputs, or `measured`; `eps`: bias shift for `measured` (device
    units).
    """

    def __init__(self, derivative: str | Callable[[Tensor], Tensor] = "identity", eps: float = 1e-2) -> None:
        if isinstance(derivative, str) and derivative not in (*KNOWN, "measured"):
            raise BadInput(
                f"unknown derivative {derivative!r}: choose {', '.join(KNOWN)}, measured, or give a function"
            )
        if not eps > 0:
            raise BadInput(f"eps of the delta rule is {eps}: it must be positive")
        self.derivative = derivative
        self.eps = eps
        self.queries = derivative == "measured"

    @staticmethod
    def fits(stage: Stage) -> bool:
        """Whether the stage is linear with a matrix [out, in], or a kernel, in activations' own units."""
        weight = {s.name: s for s in stage.specs[0].parameters}.get("weight")
        return (
            len(stage.specs) == 1
            and stage.specs[0].linear
            and weight is not None
            and weight.shape == _shapes(stage)[0]
            and stage.codec_in.identity
            and _only_scaled(stage)
            and {s.name for s in stage.specs[0].parameters} <= {"weight", "bias"}
        )

    def check(self, stage: Stage) -> None:
        specs = {s.name: s for s in stage.specs[0].parameters} if len(stage.specs) == 1 else {}
        shape, biases = _shapes(stage)
        if "weight" not in specs or specs["weight"].shape != shape or not set(specs) <= {"weight", "bias"}:
            raise BadInput(
                f"stage {stage.label} is not one for the delta rule: it needs a parameter 'weight' of shape"
                f" {list(shape)} and at most a 'bias', not {sorted(stage.parameters)}. Use a twin or"
                " leaf='probing'"
            )
        if "bias" in specs and specs["bias"].size != biases:
            raise BadInput(
                f"stage {stage.label}: the delta rule needs a 'bias' of {biases} values, not {specs['bias'].size}"
            )
        if self.queries and "bias" in specs and 2 * self.eps < (gap := widest_gap(specs["bias"])):
            raise BadInput(
                f"a shift of {self.eps:g} of the bias of stage {stage.label} is smaller than its converter's steps"
                " (up to"
                f" {gap:g}): the device would not move. Use eps of at least {gap / 2:g}"
            )
        if not (stage.codec_in.identity and _only_scaled(stage)):
            raise BadInput(
                f"stage {stage.label}: the delta rule needs activations in device units (no codec; a plain gain of the"
                " outputs will do)"
            )
        if self.queries and "bias" not in specs:
            raise BadInput(
                f"stage {stage.label} has no 'bias' to shift: sigma' cannot be measured. Name the derivative"
            )

    def gradients(self, leaf: Leaf) -> dict[str, Tensor]:
        gain = leaf.stage.codec_out.gain
        if self.derivative == "identity":
            target = leaf.target if gain == 1 else leaf.target / gain
        else:
            target = leaf.target * (self._measured(leaf) if self.queries else self.slope(leaf.outputs, gain))
        local = _convolution(leaf.stage)
        found = {
            "weight": target.T @ leaf.inputs if local is None else convolution.to_kernel(local, leaf.inputs, target)
        }
        if "bias" in leaf.parameters:
            bias = leaf.parameters["bias"]
            found["bias"] = target.reshape(len(target), bias.numel(), -1).sum((0, 2)).reshape(bias.shape)
        return found

    def slope(self, outputs: Tensor, gain: float = 1.0) -> Tensor:
        """sigma' where it is known from the outputs [samples, out], of which the device's are `gain` times."""
        curve = self.derivative if callable(self.derivative) else KNOWN[self.derivative]
        return curve(outputs * gain) / gain

    def _measured(self, leaf: Leaf) -> Tensor:
        held = {n: leaf.parameters[n].detach().cpu().double().numpy() for n in ("weight", "bias")}
        dtype, where = leaf.stage.device.capabilities.dtype, f"stage {leaf.stage.label}"
        up, down = (
            settled(leaf.specs["bias"], held["bias"] + s * self.eps, dtype, where).astype(np.float64) for s in (1, -1)
        )
        change = leaf.query({**held, "bias": up}) - leaf.query({**held, "bias": down})
        step = difference(leaf.specs["bias"], up, down).reshape(1, -1)
        step = step.repeat(change.shape[1] // step.shape[1], axis=1)
        slope = np.divide(change, step, out=np.zeros_like(change), where=step != 0)
        return torch.as_tensor(slope).to(leaf.target)

    def cost(self, specs: Mapping[str, ParameterSpec]) -> tuple[int, int]:
        return (2, 2) if self.queries else (0, 0)


def _convolution(stage: Stage) -> Local | None:
    """The convolution that a stage is, if its kernel is the same everywhere."""
    reach = stage.structure
    return reach.parts[0] if isinstance(reach, Footprint) and reach.uniform else None


def _shapes(stage: Stage) -> tuple[tuple[int, ...], int]:
    """The shape of the weight and the number of biases of a stage of this kind."""
    local = _convolution(stage)
    if local is None:
        return stage.core, stage.core[0]
    return (local.out_channels, local.in_channels // local.groups, *local.kernel), local.out_channels


def _only_scaled(stage: Stage) -> bool:
    """Whether activations are outputs times a number."""
    return stage.codec_out.form == "plain" and stage.codec_out.offset == 0
