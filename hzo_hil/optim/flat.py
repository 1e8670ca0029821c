"""The parameters of an optimiser as one vector: read, write, and settings spread over it.

It knows no method and no loss. The vector's order is that of the groups, then of the parameters in them, row by row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput


class Flat:
    """A view of the parameters that require a gradient: frozen ones stay as they are.

    `counts`: parameters in each group. Vectors [size] are at least float32, however small the parameters' own dtypes.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._groups = groups
        self.counts: list[int] = []
        self.tensors: list[Tensor] = []
        for group in groups:
            trained = [p for p in group["params"] if p.requires_grad]
            self.counts.append(sum(p.numel() for p in trained))
            self.tensors += trained
        if not self.tensors:
            raise BadInput("no parameter to train: none of those given has requires_grad set")
        self.sizes = [p.numel() for p in self.tensors]
        self._shapes = [p.shape for p in self.tensors]
        self.size = sum(self.sizes)
        self.device = self.tensors[0].device
        self.dtype = torch.float32
        for p in self.tensors:
            if p.device != self.device:
                raise BadInput(
                    f"parameters are on {self.device} and on {p.device}: a loss-only optimiser perturbs them all as one"
                    " vector. Move the model to one device before you construct the optimiser"
                )
            if not p.dtype.is_floating_point:
                raise BadInput(
                    f"a parameter of shape {tuple(p.shape)} is {p.dtype}: only real floating point is trained"
                )
            if p.dtype != self.dtype:
                self.dtype = torch.promote_types(self.dtype, p.dtype)
        self._rows: list[Tensor | None] | None = None

    def read(self) -> Tensor:
        """A copy of the parameters, [size]."""
        if len(self.tensors) == 1:
            return self.tensors[0].detach().to(self.dtype, copy=True).reshape(-1)
        return torch.cat([p.detach().reshape(-1) for p in self.tensors]).to(self.dtype)

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """A vector as views in the parameters' shapes."""
        parts = [vector] if len(self.tensors) == 1 else vector.split(self.sizes)
        # A view costs as much as copying a small tensor: none where there is nothing to reshape.
        return [v if len(shape) == 1 else v.view(shape) for v, shape in zip(parts, self._shapes, strict=True)]

    def write(self, vector: Tensor) -> None:
        """Set the parameters, rounded to their own dtypes."""
        for p, values in zip(self.tensors, self.pieces(vector), strict=True):
            p.copy_(values)

    def settled(self, vector: Tensor) -> Tensor:
        """What the parameters hold once `vector` has been written: it rounded to their dtypes."""
        if all(p.dtype == self.dtype for p in self.tensors):
            return vector
        parts = zip(self.pieces(vector), self.tensors, strict=True)
        return torch.cat([values.to(p.dtype).to(self.dtype).reshape(-1) for values, p in parts])

    def put(self, index: int, value: float) -> None:
        """Set one element of the vector and leave all others alone."""
        if self._rows is None:
            self._starts = [0, *accumulate(self.sizes)]
            self._rows = [p.detach().view(-1) if p.is_contiguous() else None for p in self.tensors]
        which = bisect_right(self._starts, index) - 1
        row, index = self._rows[which], index - self._starts[which]
        if row is not None:
            row[index] = value
        else:
            p = self.tensors[which].detach()
            p[_position(index, p.shape)] = value

    def setting(self, name: str) -> float | Tensor:
        """A setting of the groups: one number where all agree, else one for each element, [size]."""
        values = [(float(g[name]), count) for g, count in zip(self._groups, self.counts, strict=True) if count]
        if len({value for value, _ in values}) == 1:
            return values[0][0]
        parts = [torch.full((count,), value, dtype=self.dtype, device=self.device) for value, count in values]
        return torch.cat(parts)

    def settings(self, name: str) -> list[float]:
        """A setting of the groups for each parameter."""
        return [float(group[name]) for group in self._groups for p in group["params"] if p.requires_grad]


def _position(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Where the index-th element, counted row by row, lies in a tensor.

    >>> _position(5, (2, 3))
    (1, 2)
    """
    found: list[int] = []
    for length in reversed(shape):
        index, at = divmod(index, length)
        found.append(at)
    return tuple(reversed(found))
