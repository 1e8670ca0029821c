"""A mesh whose imperfections are unknowns: the differentiable twin that measurements are fitted with.

Physics only: what errors a mesh may have and what it then does. How they are found is the host's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hzo_hil.simulators import nodewise
from hzo_hil.simulators.crosstalk import neighbours
from hzo_hil.simulators.mesh import coefficients, gather_for, nodes, phasor
from hzo_hil.simulators.mesh_stage import MeshStage
from hzo_hil.simulators.twins import walk

# How large each unknown is expected to be: a fit starts at its scale, and is held to it where nothing is measured.
EXPECTED = {"bias": 1.0, "slope": 0.01, "first": 0.03, "second": 0.03, "crosstalk": 0.01, "port_gain": 0.01}


class FittedMesh(nn.Module):
    """Twin of a `MeshStage` with free errors; `forward(inputs, **values)` as `Twin`, in float64.

    Unknowns, all 0 in the ideal mesh: `bias` `[phases]` rad; `slope` `[phases]`, relative error of a heater's phase per
    commanded phase; `first` and `second` `[nodes]` rad, errors of a node's two couplers; `crosstalk` `[1]`, part of a
    phase that each neighbour in the layout feels; `port_gain` `[ports]`, relative error of what a port reads.
    ValueError for a model that is not one mesh.
    """

    bias: Tensor
    slope: Tensor
    first: Tensor
    second: Tensor
    crosstalk: Tensor
    port_gain: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not isinstance(model, MeshStage):
            raise ValueError(f"a fitted twin is known for a stage of one mesh only, not for a {type(model).__name__}")
        self.model = model
        self.expected = dict(EXPECTED)
        self.layout = layout = model.layout
        sizes = {"bias": layout.phases, "slope": layout.phases, "first": layout.nodes, "second": layout.nodes}
        for name, size in (sizes | {"crosstalk": 1, "port_gain": layout.ports}).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size, dtype=torch.float64), requires_grad=False))
        near = neighbours(layout).tocoo()
        self._feels, self._warms = (torch.as_tensor(np.asarray(i, dtype=np.int64)) for i in (near.row, near.col))

    def commanded(self, values: Mapping[str, Any]) -> Tensor:
        """One array `[phases]` of the values by name."""
        return torch.cat([torch.as_tensor(values[n]).double() for n in ("theta", "phi", "out_phase")])

    def named(self, commanded: Any) -> dict[str, Any]:
        """The values by name of one array `[phases]`."""
        return self.model.named_phases(commanded)

    def questions(self, base: Any) -> Any:
        """Phases to command `[settings, phases]` around `base` for `start`; ValueError where that is not possible."""
        if not self.model.linear:
            raise ValueError(
                "a mesh that reads intensities cannot be measured node by node: that needs both quadratures"
            )
        return nodewise.settings(self.layout, base)

    @torch.no_grad()
    def start(self, commanded: Any, answers: Any) -> None:
        """Take over what `nodewise.solve` finds in the answers to `questions`; every other unknown is 0."""
        for unknown in self.expected:
            getattr(self, unknown).zero_()
        for name, value in nodewise.solve(self.layout, commanded, answers).items():
            getattr(self, name).copy_(torch.as_tensor(value))

    def felt(self, commanded: Tensor) -> Tensor:
        """Phases that the light meets, of commanded ones `[phases]` or `[phases, settings]`."""
        flat = commanded if commanded.ndim == 2 else commanded[:, None]
        heated = flat * (1 + self.slope)[:, None]
        near = torch.zeros_like(heated).index_add(0, self._feels, heated[self._warms])
        found = heated + self.crosstalk * near + self.bias[:, None]
        return found if commanded.ndim == 2 else found[:, 0]

    def matrices(self, felt: Tensor) -> Tensor:
        """Complex transfer matrices `[settings, ports, ports]` at felt phases `[phases, settings]`."""
        theta, phi, out_phase = self.layout.split(felt)
        made = nodes(torch, theta, phi, (self.first[:, None], self.second[:, None]))
        index, partner = gather_for(torch, self.layout, felt)
        keep, take = coefficients(torch, made, index)
        ports, settings = self.layout.ports, felt.shape[1]
        start = torch.eye(ports, dtype=keep.dtype, device=felt.device)[:, None, :].expand(ports, settings, ports)
        behind = walk(torch, keep[..., None], take[..., None], partner, start.contiguous())
        return ((1 + self.port_gain)[:, None, None] * phasor(torch, out_phase)[..., None] * behind).transpose(0, 1)

    def outputs(self, commanded: Tensor, inputs: Tensor) -> Tensor:
        """What is read `[settings, rows, ports]` of `inputs` `[rows, ports]` (or of each setting its own)."""
        turned = self.matrices(self.felt(commanded)).transpose(1, 2)
        real = inputs @ turned.real
        return real if self.model.linear else real**2 + (inputs @ turned.imag) ** 2

    def forward(self, inputs: Tensor, **values: Tensor) -> Tensor:
        found: Tensor = self.outputs(self.commanded(values)[:, None], inputs.double())[0]
        return found.to(inputs.dtype)
