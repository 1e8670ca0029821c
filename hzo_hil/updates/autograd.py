"""Local autograd: the gradient of a differentiable twin of this one stage, at the device's own activations.

What the authors of HZO run. Exact when the twin is the device; an ideal twin of an imperfect device still points the
right way while its errors are small. Costs no queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Stage
from hzo_hil.updates import Leaf


class LocalAutograd:
    queries = False

    def check(self, stage: Stage) -> None:
        if stage.twin is None:
            raise BadInput(
                f"stage {stage.label} asks for local autograd but has no twin. Give Stage(twin=module), called as"
                " module(inputs, **parameters), or use leaf='probing'"
            )
        modules = stage.twin.modules() if isinstance(stage.twin, nn.Module) else ()
        if any(isinstance(m, _BatchNorm) and (m.training or not m.track_running_stats) for m in modules):
            raise BadInput(
                f"the twin of stage {stage.label} holds batch norm in training mode, which couples the samples of a"
                " batch: no probe of one sample sees that (18 % of error on a residual block). Freeze its statistics,"
                " twin.eval(), as the device must; or end the stage before the norm and make that a host layer"
            )

    def gradients(self, leaf: Leaf) -> dict[str, Tensor]:
        values = {name: v.detach().requires_grad_() for name, v in leaf.parameters.items()}
        with torch.enable_grad(), torch.autocast(leaf.target.device.type, enabled=False):
            outputs = leaf.stage.twin(leaf.inputs, **values)
        if outputs.shape != leaf.target.shape:
            raise BadInput(
                f"the twin of stage {leaf.stage.label} gives {list(outputs.shape)}, the device"
                f" {list(leaf.target.shape)}"
            )
        found = torch.autograd.grad(
            outputs, list(values.values()), leaf.target.to(outputs.dtype), allow_unused=True, materialize_grads=True
        )
        return dict(zip(values, found, strict=True))

    def cost(self, specs: Mapping[str, ParameterSpec]) -> tuple[int, int]:
        return 0, 0
