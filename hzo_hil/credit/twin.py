"""Targets through twins: physics-aware training (Wright et al., Nature 601, 2022).

The device answers forward; backward goes through the differentiable twin of each stage, linearised at the activations
the device really had. No probes. Wrong where the twin is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hzo_hil.credit.rule import Array, OnTarget, Pass, Stateless
from hzo_hil.network import Network


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
    network: Network, values: Sequence[Mapping[str, Array]], activations: Mapping[int, Array], top: Array,
    on_target: OnTarget, lowest: int,
) -> None:  # fmt: skip
    """Targets at every boundary from the last but one down to `lowest`, through twins that hold `values`."""
    target = torch.as_tensor(top)
    for k in range(network.depth - 1, lowest - 1, -1):
        inputs = torch.as_tensor(activations[k]).to(target).requires_grad_()
        held = {n: torch.as_tensor(v).to(target) for n, v in values[k].items()}
        with torch.enable_grad(), torch.autocast(target.device.type, enabled=False):
            outputs = run_twin(network, k, inputs, held)
        (target,) = torch.autograd.grad(outputs, inputs, target)
        on_target(k, target.numpy())


class PhysicsAware(Stateless):
    """The rule as `Opaque(credit="twin")` runs it."""

    credit = "twin"

    def targets(self, given: Pass, on_target: OnTarget) -> None:
        # Down to the input, wanted or not: it asks nothing, and shows the gain of the first stage as well.
        twin_targets(given.network, given.values, given.activations, given.top, on_target, 0)


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
