"""An `Opaque` of `credit="loss"`: in training mode it answers without gradients, and answers are paid for as probes.

So that an optimiser that only compares losses is counted, budgeted and keyed like every other way of training. In
evaluation mode it answers as any other does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput, BadStep
from hzo_hil.reference import forward_pass
from hzo_hil.streams import stream_key

if TYPE_CHECKING:
    from hzo_hil.module import Opaque


@contextmanager
def undone_on_error(modules: Sequence[Opaque]) -> Iterator[None]:
    """Around a step of a loss-only optimiser: interrupted, it will be done again with the same draws and writes.

    What devices are to hold starts from the masters as they are, whatever a step before has tried last, so that epochs
    do not depend on where a run was resumed.
    """
    for module in modules:
        module.written.update(module.stages, module.dispatch.count)
    before = [(list(m.written.epochs), list(m.written.values)) for m in modules]
    try:
        yield
    except BadStep:  # over, not to be done again
        raise
    except BaseException:
        for module, (epochs, values) in zip(modules, before, strict=True):
            module.written.take_back(epochs, values)
        raise


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
