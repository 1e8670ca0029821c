"""Colours: inputs whose outputs never meet share one coordinate probe, and each output says whose change it shows.

Column colouring of a sparse Jacobian (Curtis, Powell, Reid 1974), which for a convolution is the spatial parallel
perturbation of HZO, eq. 6. Dense segments need a colour an element, diagonal ones a single colour, local ones the
product of the colours of their axes. Knows what is declared, never steps, noise or queries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Axis
from hzo_hil.structure import Reach

Array = NDArray[Any]
_PATIENCE = 20_000  # tries of the search for fewer colours on one axis


@lru_cache(maxsize=256)
def colouring(structure: Reach, width: int) -> Colouring:
    """The colours of a segment of this structure, driven at `width` elements."""
    if structure == "dense":
        return Dense(width)
    return Diagonal(width) if structure == "diagonal" else Tiling(structure.axes)


class Colouring(ABC):
    """`members` [colours, places] is the input element behind each place, -1 where a colour has fewer. A probe of a
    colour moves all of its members.
    """

    width: int
    members: Array

    @property
    def count(self) -> int:
        return len(self.members)

    def masks(self, first: int, last: int) -> Array:
        """Directions [last - first, width] of colours first..last-1: 1 at members, else 0."""
        masks = np.zeros((last - first, self.width))
        rows, places = np.nonzero(self.members[first:last] >= 0)
        masks[rows, self.members[first:last][rows, places]] = 1
        return masks

    def gather(self, values: Array) -> Array:
        """[samples, width] as [samples, colours, places]; what an empty place holds means nothing."""
        return values[:, self.members]

    def place(self, values: Array) -> Array:
        """[samples, colours, places] as [samples, width]; inputs that no output depends on get 0."""
        found = np.zeros((len(values), self.width), dtype=values.dtype)
        colours, places = np.nonzero(self.members >= 0)
        found[:, self.members[colours, places]] = values[:, colours, places]
        return found

    def axes(self, outputs: int) -> tuple[Axis, ...] | None:
        """Reach and colours axis by axis, of a segment that gives so many outputs; counted together, first axis
        slowest, colours are in the order of `members`. None where that is not what the colours are.
        """
        return None

    @abstractmethod
    def apply(self, slopes: Array, targets: Array) -> Array:
        """Targets [samples, outputs] through the Jacobian whose columns, colour by colour, lie in `slopes` [colours,
        outputs]: [samples, width]."""


class Dense(Colouring):
    """Every output may depend on every input."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.members = np.arange(width)[:, None]

    def axes(self, outputs: int) -> tuple[Axis, ...]:
        return _all_of(outputs, self.width)

    def apply(self, slopes: Array, targets: Array) -> Array:
        return targets @ slopes.T


@lru_cache(maxsize=256)
def _all_of(outputs: int, inputs: int) -> tuple[Axis, ...]:
    return (Axis(np.broadcast_to(np.True_, (outputs, inputs)), np.arange(inputs)),)


class Diagonal(Colouring):
    """Every output depends on its own input."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.members = np.arange(width)[None]

    def apply(self, slopes: Array, targets: Array) -> Array:
        return targets * slopes


@dataclass(frozen=True)
class _Shade:
    """One colour of one axis: its `owners` (inputs, ascending), the outputs that depend on any of them, sorted by whom
    (`order`), and where each owner's begin (`starts`)."""

    owners: Array
    order: Array
    starts: Array

    def sums(self, values: Array, axis: int) -> Array:
        if len(self.order) != values.shape[axis] or (self.order[:-1] > self.order[1:]).any():
            values = values.take(self.order, axis)
        return np.add.reduceat(values, self.starts, axis)

    @cached_property
    def outputs(self) -> Array:
        """[owners, most outputs], -1 where an owner has fewer."""
        runs = np.split(self.order, self.starts[1:])
        table = np.full((len(runs), max(len(r) for r in runs)), -1)
        for row, run in zip(table, runs, strict=True):
            row[: len(run)] = run
        return table


class Tiling(Colouring):
    """Local: `axes` are boolean [out, in], channels first. A colour is one of each axis."""

    def __init__(self, axes: tuple[Array, ...]) -> None:
        self._reach = axes
        self.shape_in = tuple(a.shape[1] for a in axes)
        self.shape_out = tuple(a.shape[0] for a in axes)
        self.width = math.prod(self.shape_in)
        self.shades = [_shades(a) for a in axes]
        self._of = list(product(*self.shades))
        owned = [np.ravel_multi_index(np.ix_(*(s.owners for s in shades)), self.shape_in) for shades in self._of]
        # Where padding is all that any output sees, one colour is left that moves nothing.
        self.members = np.full((max(1, len(owned)), max((o.size for o in owned), default=1)), -1)
        for row, elements in zip(self.members, owned, strict=False):
            row[: elements.size] = elements.ravel()

    def axes(self, outputs: int) -> tuple[Axis, ...] | None:
        return self._axes if self._of else None

    @cached_property
    def _axes(self) -> tuple[Axis, ...]:
        found = []
        for reach, shades in zip(self._reach, self.shades, strict=True):
            colours = np.full(reach.shape[1], -1)
            for colour, shade in enumerate(shades):
                colours[shade.owners] = colour
            found.append(Axis(reach, colours))
        return tuple(found)

    def reduce(self, colour: int, weighed: Array) -> Array:
        """Give each place the weighed changes of the outputs that follow it: [samples, outputs] to [samples, places],
        output by output in their own order.
        """
        if not self._of:
            return np.zeros((len(weighed), 1), dtype=weighed.dtype)
        values = weighed.reshape(len(weighed), *self.shape_out)
        for axis, shade in enumerate(self._of[colour], start=1):
            values = shade.sums(values, axis)
        found = np.zeros((len(weighed), self.members.shape[1]), dtype=weighed.dtype)
        flat = values.reshape(len(weighed), -1)
        found[:, : flat.shape[1]] = flat
        return found

    def apply(self, slopes: Array, targets: Array) -> Array:
        """Position by position a small matrix over the channels, then every input adds up the outputs it owns."""
        samples, (channels, *space) = len(targets), self.shape_out
        if not self._of:
            return np.zeros((samples, self.width), dtype=targets.dtype)
        positions = math.prod(space)
        spots = list(product(*self.shades[1:]))
        # [colours of space, positions, out channels, channel colours]
        slopes = slopes.reshape(len(self.shades[0]), len(spots), channels, positions).transpose(1, 3, 2, 0)
        ready = np.ascontiguousarray(targets.reshape(samples, channels, positions).transpose(2, 0, 1))
        found = np.zeros((math.prod(self.shape_in[1:]), samples, self.shape_in[0]), dtype=targets.dtype)
        for spot, shades in enumerate(spots):
            pixels = np.ravel_multi_index(np.ix_(*(s.owners for s in shades)), self.shape_in[1:]).ravel()
            outputs = self._outputs(shades)
            for rows, colours, owners in self._classes:
                some = slice(None) if len(rows) == channels else rows
                block = np.ascontiguousarray(slopes[spot][:, some][..., colours])
                shares = np.empty((positions + 1, samples, len(colours)), dtype=found.dtype)
                np.matmul(ready[:, :, some], block, out=shares[:-1])
                shares[-1] = 0  # behind the end: outputs that an owner lacks
                total = shares[outputs[:, 0]]
                for more in outputs.T[1:]:
                    total += shares[more]
                if len(owners) == self.shape_in[0] and (np.diff(owners) == 1).all():
                    found[pixels] = total
                else:
                    found[np.ix_(pixels, np.arange(samples), owners)] = total
        return np.ascontiguousarray(found.transpose(1, 2, 0)).reshape(samples, -1)

    def _outputs(self, shades: tuple[_Shade, ...]) -> Array:
        """Positions [owners, most] that depend on each owner of one colour of space, -1 where it has fewer."""
        table = np.zeros((1, 1), dtype=int)
        for shade, size in zip(shades, self.shape_out[1:], strict=True):
            both = table[:, None, :, None] * size + shade.outputs[None, :, None, :]
            both[(table[:, None, :, None] < 0) | (shade.outputs[None, :, None, :] < 0)] = -1
            table = both.reshape(len(table) * len(shade.outputs), -1)
        return table

    @cached_property
    def _classes(self) -> list[tuple[Array, Array, Array]]:
        """Output channels that see the same input channels: (output channels, colours, the owner of each colour)."""
        owner = np.full((len(self.shades[0]), self.shape_out[0]), -1)
        for colour, shade in enumerate(self.shades[0]):
            for element, outputs in zip(shade.owners, shade.outputs, strict=True):
                owner[colour, outputs[outputs >= 0]] = element
        kinds = {tuple(column) for column in owner.T}
        found = []
        for kind in sorted(kinds):
            colours = np.flatnonzero(np.array(kind) >= 0)
            if len(colours):
                rows = np.flatnonzero((owner.T == kind).all(axis=1))
                found.append((rows, colours, np.array(kind)[colours]))
        return found


def _shades(reach: Array) -> list[_Shade]:
    """The colours of one axis. `reach` [out, in]; inputs that nothing depends on have none."""
    seen = np.flatnonzero(reach.any(axis=0))
    colours = _colour(reach[:, seen])
    found = []
    for colour in range(colours.max(initial=-1) + 1):
        owners = seen[colours == colour]
        outputs, whose = np.nonzero(reach[:, owners])
        order = np.lexsort((outputs, whose))
        found.append(_Shade(owners, outputs[order], np.searchsorted(whose[order], np.arange(len(owners)))))
    return found


def _colour(reach: Array) -> Array:
    """A colour [in] for each input, alike only where no output sees both, as few as a short search finds."""
    counts = reach.astype(int)
    meets = (counts.T @ counts) > 0
    found = next(_coloured(meets, len(meets), len(meets)))
    fewest = int(counts.sum(axis=1).max(initial=0))  # inputs of one output all differ
    # Blocks of equal length, counted through: what suits circular padding, on which a search may take long.
    if not len(meets):
        return found
    places = np.arange(len(meets))
    block = places * max(1, len(meets) // fewest) // len(meets)
    blocks = places - np.searchsorted(block, block)
    if not (meets & (blocks[:, None] == blocks) & (places[:, None] != places)).any() and blocks.max() < found.max():
        found = blocks
    for limit in range(fewest, int(found.max(initial=-1)) + 1):
        better = next(_coloured(meets, limit, _PATIENCE), None)
        if better is not None:
            return better
    return found


def _coloured(meets: Array, limit: int, tries: int) -> Iterator[Array]:
    """Colourings with at most `limit` colours, in order, going back where it does not work out; at most `tries`."""
    size = len(meets)
    colours = np.full(size, -1)
    earlier = [np.flatnonzero(meets[k, :k]) for k in range(size)]
    at = 0
    while at >= 0:
        if at == size:
            yield colours.copy()
            at -= 1
            continue
        if not tries:
            return
        tries -= 1
        taken = set(colours[earlier[at]].tolist())
        # One colour more than used before is as good as any other new one.
        most = min(limit, int(colours[:at].max(initial=-1)) + 2)
        free = next((c for c in range(int(colours[at]) + 1, most) if c not in taken), None)
        if free is None:
            colours[at] = -1
            at -= 1
        else:
            colours[at] = free
            at += 1
