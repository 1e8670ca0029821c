"""Targets through twins: physics-aware training (Wright et al., Nature 601, 2022).

The device answers forward; backward goes through the differentiable twin of each stage, linearised at the activations
the device really had. No probes. Wrong where the twin is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hzo_hil.masters import Written
from hzo_hil.network import Network

Array = NDArray[Any]


def run_twin(network: Network, k: int, inputs: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Twin of logical stage k (0-based), its blocks added up for a tiled stage. `values` by master name."""
    stage = network.stages[k]
    if stage.tiles is None:
        return torch.as_tensor(stage.twin(inputs, **values))
    outputs = inputs.new_zeros(len(inputs), stage.out_width)
    for part in stage.parts:
        if part.sign < 0:
            continue
        block = inputs[:, part.inputs]
        block = nn.functional.pad(block, (0, stage.core[1] - block.shape[1]))
        answer = stage.twin(block, **{n: v[part.tile] for n, v in values.items()})
        width = part.outputs.stop - part.outputs.start
        outputs = outputs + nn.functional.pad(
            answer[:, :width], (part.outputs.start, stage.out_width - part.outputs.stop)
        )
    return outputs


def twin_targets(
    network: Network, written: Written, activations: Mapping[int, Array], gradient: Tensor,
    on_target: Callable[[int, Array], None],
) -> None:  # fmt: skip
    """Targets at every boundary below the last, from the last down."""
    target = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    for k in range(network.depth - 1, -1, -1):
        inputs = torch.as_tensor(activations[k]).to(target).requires_grad_()
        values = {n: torch.as_tensor(v).to(target) for n, v in written.values[k].items()}
        with torch.enable_grad(), torch.autocast(target.device.type, enabled=False):
            outputs = run_twin(network, k, inputs, values)
        (target,) = torch.autograd.grad(outputs, inputs, target)
        on_target(k, target.cpu().numpy())


class TwinNetwork(nn.Module):
    """The run as its twins alone: ordinary backpropagation, no device. Shares the masters it is given.

    `stages`: an `Opaque`'s `stages`, or a deep copy of them to train apart.
    """

    def __init__(self, network: Network, stages: nn.ModuleList) -> None:
        super().__init__()
        self.network = network
        self.stages = stages

    def forward(self, inputs: Tensor) -> Tensor:
        for k, masters in enumerate(self.stages):
            inputs = run_twin(self.network, k, inputs, dict(masters.named_parameters()))
        return inputs
