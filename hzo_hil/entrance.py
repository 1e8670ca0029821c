"""What an `Opaque` may be called with, and from where: refused in words before a device is asked.

Looks at tensors and at torch's state, never at a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.values import not_finite

if TYPE_CHECKING:
    from hzo_hil.module import Opaque


def checked(module: Opaque, inputs: Tensor) -> Tensor:
    """Inputs [..., width(0)] as [samples, width(0)], float32 or float64. Raises BadInput."""
    width = module.network.width(0)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = getattr(inputs, "dtype", type(inputs).__name__)
        raise BadInput(f"{module.name} takes a float tensor [..., {width}], not {kind}")
    if inputs.ndim < 1 or inputs.shape[-1] != width:
        raise BadInput(f"{module.name} takes inputs [..., {width}], not {list(inputs.shape)}")
    bad = not_finite(inputs)
    if bad:
        raise BadInput(
            f"{bad} of {inputs.numel()} inputs of {module.name} are NaN or infinite; nothing was sent to a device."
            " Look at what comes before it: data, or a layer that diverged"
        )
    flat = inputs.reshape(-1, width)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def refuse_transforms(module: Opaque) -> None:
    """Raise BadInput where torch calls the module in a way that a device cannot follow."""
    if torch._C._are_functorch_transforms_active():
        raise BadInput(f"{module.name} does not work under torch.func (vmap, grad, jvp): a device has no batching rule")
    if getattr(module, "_is_replica", False):
        raise BadInput(
            f"{module.name} cannot be replicated by DataParallel: use DistributedDataParallel, one device a rank"
        )
    if torch._C._current_graph_task_id() != -1:
        raise BadInput(
            f"{module.name} was called within a backward pass. Activation checkpointing asks the device again for what"
            " it already answered, with other noise: leave this module out of it"
        )


def refuse_narrow(module: Opaque, dtype: torch.dtype) -> None:
    """Raise BadInput for masters of half precision."""
    if dtype in (torch.float16, torch.bfloat16):
        raise BadInput(
            f"master parameters of {module.name} stay float32 or float64: small updates would be lost in {dtype}."
            " For mixed precision use torch.autocast, and cast the other modules one by one"
        )
