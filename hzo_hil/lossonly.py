"""An `Opaque` of `credit="loss"`: in training mode it answers without gradients, and its answers are paid for as probes.

So that an optimiser that only compares losses is counted, budgeted and keyed like every other way of training. In
evaluation mode it answers as any other does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.reference import forward_pass
from hzo_hil.streams import stream_key

if TYPE_CHECKING:
    from hzo_hil.module import Opaque


def answered(module: Opaque, flat: Tensor) -> Tensor:
    """Outputs [samples, width(depth)] for a loss, with noise of their own each time."""
    if torch.is_grad_enabled():
        raise BadInput(
            f"{module.name} has credit='loss' and gives no gradients. In training call the model within"
            " torch.no_grad(), as an optimiser of hzo_hil.optim does in step(closure); or choose another credit"
        )
    module.written.update(module.stages, module.dispatch.count)
    key = stream_key(module.seed, "loss", module.name, module.forwards)
    module.forwards += 1
    with module.one_step(completes=True):
        inputs = flat.detach().cpu().numpy()
        repeats = module.resolved.at[0].repeats
        found = forward_pass(module.dispatch, inputs, purpose="probes", key=key, repeats=repeats, inner=False)
    return torch.as_tensor(found[module.network.depth]).to(flat)
