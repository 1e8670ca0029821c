"""Block-wise local losses: a run of opaque blocks, each trained by a loss of its own (Ren et al., ICLR 2023).

Between blocks the gradient is stopped; behind each but the last a linear head on the host turns the block's outputs
into outputs of the whole, for the same loss. Whoever trains adds the losses of `outputs_of` to that of the model. In
evaluation the heads are idle.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class LocalBlocks(nn.Module):
    """`widths` of the outputs of each block but the last; `outputs`: those of the whole model."""

    def __init__(self, blocks: Sequence[nn.Module], widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for width in widths)
        self.local: list[Tensor] = []
        """What the heads made of the last training batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.local = []
        for block, head in zip(self.blocks, self.heads, strict=False):
            inputs = block(inputs)
            if self.training:
                self.local.append(head(inputs))
            inputs = inputs.detach()
        outputs: Tensor = self.blocks[-1](inputs)
        return outputs

    def replaced(self, blocks: Sequence[nn.Module], heads: Sequence[nn.Module]) -> LocalBlocks:
        """The same of other blocks and heads."""
        found = LocalBlocks(blocks, [], 1)
        found.heads = nn.ModuleList(heads)
        return found


def outputs_of(model: nn.Module) -> list[Tensor]:
    """What all local heads of a model made of the last training batch."""
    return [made for m in model.modules() if isinstance(m, LocalBlocks) for made in m.local]
