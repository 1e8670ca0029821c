"""Differentiable torch twins of stage models: the data sheet, without noise, errors or converters; and the copy of one
specimen, with its errors, that gradients are judged by.

With `convolution` (which computes by it) the only file here that needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hzo_hil.simulators.model import StageModel


class Twin(nn.Module):
    """`forward(inputs, **values)` is the model's ideal function; it owns no parameters.

    Inputs `[batch, in_width]` and values (by parameter name) are tensors of one dtype, float32 or float64, on one
    device. ValueError names parameters that are missing or unknown.
    """

    def __init__(self, model: StageModel) -> None:
        super().__init__()
        self.model = model
        self._names = {p.name for p in model.parameters}
        self._fast = {"walk": walk} if "theta" in self._names or "theta_v" in self._names else {}

    def forward(self, inputs: Tensor, **values: Tensor) -> Tensor:
        if set(values) != self._names:
            wanted, given = sorted(self._names), sorted(values)
            raise ValueError(f"twin of {self.model.name!r} takes parameters {wanted}, not {given}")
        return self._computed(inputs, values)

    def _computed(self, inputs: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        outputs: Tensor = self.model.ideal(torch, values, inputs, **self._fast)
        return outputs

    def extra_repr(self) -> str:
        return f"{self.model.name}: {self.model.in_width} -> {self.model.out_width}"


class Noiseless(Twin):
    """As `Twin`, of the very specimen: its fabrication errors and the ends of its converters, but no noise, drift,
    converter steps or number formats. What is read is multiplied by `power`, that of the light.

    The forward raises ValueError for a model that is not known in a differentiable form.
    """

    def __init__(self, model: StageModel, power: float = 1.0) -> None:
        super().__init__(model)
        self.power = power

    def _computed(self, inputs: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        driven = inputs.clamp(self.model.input.low, self.model.input.high)
        outputs: Tensor = self.model.noiseless(torch, values, driven, **self._fast)
        return outputs.clamp(self.model.output.low, self.model.output.high) * self.power


def walk(xp: Any, keep: Tensor, take: Tensor, partner: Tensor, fields: Tensor) -> Tensor:
    """`mesh.walk` with a hand-made backward pass: autograd's own costs several times more on small meshes."""
    outputs: Tensor = _Walk.apply(keep, take, partner, fields)
    return outputs


class _Walk(torch.autograd.Function):
    """Column c: x_{c+1} = keep_c x_c + take_c x_c[partner_c]; fields are constants."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, take: Tensor, partner: Tensor, fields: Tensor) -> Tensor:
        xp, (d, o, p, x) = _native(keep.detach(), take.detach(), partner, fields)
        trail = [x]
        for column in range(len(d)):
            x = d[column] * x + o[column] * x[p[column]]
            trail.append(x)
        ctx.xp, ctx.walked, ctx.like = xp, (d, o, p, trail), keep
        return torch.as_tensor(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            # torch's own guard (once_differentiable) stays silent under autograd.grad with chosen inputs.
            raise RuntimeError(
                "the twin of a mesh has first derivatives only, and create_graph was asked for:"
                " use model.ideal(torch, values, inputs), which is slower, for higher ones"
            )
        xp, (d, o, p, trail) = ctx.xp, ctx.walked
        # partner is its own inverse, so the adjoint of a gather is the same gather.
        back, crossed = d.conj(), o.conj()
        signal = _native(grad)[1][0]
        signals = [signal]
        for column in range(len(d) - 1, 0, -1):
            signal = back[column] * signal + (crossed[column] * signal)[p[column]]
            signals.append(signal)
        stack = xp.stack(signals[::-1])
        before = xp.stack(trail[:-1]).conj()
        partners = xp.stack([x[index] for x, index in zip(before, p, strict=True)])
        grads = ((before * stack).sum(-1), (partners * stack).sum(-1))
        return (*(torch.as_tensor(g)[..., None] for g in grads), None, None)


def _native(*tensors: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """The tensors as numpy arrays on the CPU (less overhead for each small operation), as they are elsewhere."""
    if tensors[0].device.type == "cpu":
        return np, tuple(t.detach().resolve_conj().resolve_neg().numpy() for t in tensors)
    return torch, tensors
