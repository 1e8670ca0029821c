"""What is declared about Jacobians, and how that composes along a segment.

Diagonal with diagonal stays diagonal, anything with dense is dense; local stages in sequence reach as far as their
reaches together. A reach is kept axis by axis (channels, then space), so that strides, dilation, groups and circular
padding need no case of their own. What is left to probe is the business of `colouring`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Local, Structure

Array = NDArray[Any]


@dataclass(frozen=True)
class Footprint:
    """The reach of local stages in sequence, first to last.

    An output (channel, position) may depend on an input only where each of its coordinates does.
    """

    parts: tuple[Local, ...]

    @property
    def uniform(self) -> bool:
        """Whether it is one convolution, with the same kernel at every position."""
        return len(self.parts) == 1 and self.parts[0].uniform

    @cached_property
    def axes(self) -> tuple[Array, ...]:
        """Boolean arrays [out, in]: channels first, then one for each axis of space."""
        found = _axes(self.parts[0])
        for part in self.parts[1:]:
            found = tuple((later.astype(int) @ earlier) > 0 for earlier, later in zip(found, _axes(part), strict=True))
        return found

    @property
    def shape_in(self) -> tuple[int, ...]:
        return tuple(axis.shape[1] for axis in self.axes)

    @property
    def shape_out(self) -> tuple[int, ...]:
        return tuple(axis.shape[0] for axis in self.axes)

    @property
    def seen(self) -> float:
        """Inputs that an output depends on, on average."""
        return math.prod(float(axis.sum(axis=1).mean()) for axis in self.axes)

    @property
    def widths(self) -> tuple[int, int]:
        return math.prod(self.shape_in), math.prod(self.shape_out)


Reach = Literal["dense", "diagonal"] | Footprint


def compose(structures: Iterable[Structure | Footprint]) -> Reach:
    """Structure of the Jacobian of stages in sequence. Local stages that lay out their values differently are dense."""
    listed = list(structures)
    if any(s == "dense" for s in listed):
        return "dense"
    parts: list[Local] = []
    for s in listed:
        parts += s.parts if isinstance(s, Footprint) else [s] if isinstance(s, Local) else []
    if len(listed) > 1:
        # Two kernels in a row are none at the edges, and what a diagonal stage does may differ from place to place.
        parts = [replace(p, uniform=False) for p in parts]
    for left, right in zip(parts, parts[1:], strict=False):
        if (left.out_channels, left.out_shape) != (right.in_channels, right.shape):
            return "dense"
    return Footprint(tuple(parts)) if parts else "diagonal"


def _axes(local: Local) -> tuple[Array, ...]:
    into, out = (np.arange(n) * local.groups // n for n in (local.in_channels, local.out_channels))
    return (out[:, None] == into, *(_axis(local, k) for k in range(len(local.shape))))


def _axis(local: Local, k: int) -> Array:
    """[out, in] of one axis of space."""
    size, count = local.shape[k], local.out_shape[k]
    seen = np.arange(count)[:, None] * local.stride[k] - local.padding[k]
    seen = seen + np.arange(local.kernel[k]) * local.dilation[k]
    rows = np.broadcast_to(np.arange(count)[:, None], seen.shape)
    reach = np.zeros((count, size), dtype=bool)
    if local.circular:
        seen = seen % size
    inside = (seen >= 0) & (seen < size)
    reach[rows[inside], seen[inside]] = True
    return reach
