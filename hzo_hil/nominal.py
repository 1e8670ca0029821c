"""What LPP is told of a model: parameter groups, and how the twin of each stage answers to each of its parameters.

Asks no device. Knows no optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil.credit.needs import TIERS
from hzo_hil.credit.twin import run_twin
from hzo_hil.devices.errors import BadInput
from hzo_hil.module import Opaque

LARGEST = 4096
"""Parameters in a group: its metric takes the square of them, its factor the cube."""


class Nominal:
    """The stages of all opaque layers as modules of their own; the host's parameters are one group more.

    Raises BadInput where a stage has no twin, or where a group has more than `LARGEST` parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [m for m in model.modules() if isinstance(m, Opaque)]
        self._stages = [(o, k) for o in layers for k in range(o.network.depth) if _trained(o.stages[k])]
        missing = [o.network.stages[k].label for o, k in self._stages if o.network.stages[k].twin is None]
        if missing:
            raise BadInput(
                f"LPP needs a nominal model, the twin of every stage; none for {', '.join(missing)}. It is of tier"
                f" 'twin' ({TIERS['twin']}): set method.twins: true for a simulated chip or one with a datasheet, or"
                " use FLOPS, which needs losses alone"
            )
        groups = [_trained(o.stages[k]) for o, k in self._stages]
        on_devices = {id(p) for group in groups for p in group}
        self._host = [p for p in _trained(model) if id(p) not in on_devices]
        self.groups: list[dict[str, Any]] = [{"params": g} for g in (*groups, self._host) if g]
        for group in self.groups:
            if (size := sum(p.numel() for p in group["params"])) > LARGEST:
                raise BadInput(
                    f"LPP keeps a matrix of n x n numbers for each stage and for the host's layers, and one of them has"
                    f" {size:,} parameters, more than {LARGEST:,}: use smaller stages, or a method without a metric"
                )

    def jacobians(self) -> list[Tensor]:
        """J [outputs, parameters] of each group at the present parameters: of a stage's answers to unit inputs.

        Of the host's layers nothing is said: their J is 0, which leaves their perturbations as they are drawn.
        """
        found = [_jacobian(o, k) for o, k in self._stages]
        return [*found, torch.zeros(1, sum(p.numel() for p in self._host))] if self._host else found


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _jacobian(module: Opaque, k: int) -> Tensor:
    values = dict(module.stages[k].named_parameters())
    trained = [p for p in values.values() if p.requires_grad]
    inputs = torch.eye(module.network.stages[k].in_width, dtype=trained[0].dtype, device=trained[0].device)
    answers = run_twin(module.network, k, inputs, values).flatten()
    return torch.stack([_row(answer, trained) for answer in answers]).detach()


def _row(answer: Tensor, trained: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(answer, trained, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])
