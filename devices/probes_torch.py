"""Probes that a device builds and weighs itself, in torch: no row and no answer leaves the place of its tensors.

Knows what is asked (`Probes`) and a function that runs rows; no stages and no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hzo_hil.devices.api import Axis, Probes

Run = Callable[[Tensor, Tensor], Tensor]
"""Rows [batch, width] and their keys (int64) to answers [batch, outputs]."""
AT_ONCE = {"cuda": 1 << 28, "cpu": 1 << 20}
"""Numbers of rows built at a time: on a GPU few large pieces, on a CPU pieces that stay near its caches."""


def answered(probes: Probes, run: Run, place: torch.device, at_once: int = 0) -> Tensor:
    """What `Probes` asks for: `[samples, width]`."""
    at_once = at_once or AT_ONCE.get(place.type, AT_ONCE["cpu"])
    asked = _Asked(probes, run, place)
    per_colour = math.prod(axis.count for axis in probes.axes[1:])
    width = max(probes.inputs.shape[1], probes.weights.shape[1])
    colours = max(1, min(probes.axes[0].count, at_once // (per_colour * width)))
    samples = max(1, at_once // (colours * per_colour * width))
    return torch.cat([asked.of(some, colours) for some in _slices(len(probes.inputs), samples)])


class _Asked:
    """What is asked, and its axes as index tables, where the device computes."""

    def __init__(self, probes: Probes, run: Run, place: torch.device) -> None:
        self.probes, self.run, self.place = probes, run, place
        self.key = int(np.uint64(probes.key % 2**64).astype(np.int64))
        self.inputs = torch.as_tensor(probes.inputs, device=place)
        self.weights = torch.as_tensor(probes.weights, device=place).to(self.inputs)
        self.sums, self.numbers = _tables(probes.axes, place)
        self.outputs = [len(axis.reach) for axis in probes.axes]

    def of(self, some: slice, colours: int) -> Tensor:
        """[samples, width] of some samples, by so many colours of the first axis at a time."""
        base, weights = self.inputs[some], self.weights[some]
        at = torch.arange(some.start, some.stop, device=self.place) * self.probes.rows + self.key
        reference = self._reference(some, base, at)
        first, *others = self.sums
        found = []
        for part in _slices(first.colours, colours):
            change = self._weighed(base, weights, at, part, reference)
            moved = (part.stop - part.start, *(s.colours for s in others))
            found.append(first.by_owner(change.unflatten(2, self.outputs).unflatten(1, moved), 0, part))
        total = first.in_place(torch.cat(found, 1) if len(found) > 1 else found[0], 0)
        for number, axis in enumerate(others, start=1):
            total = axis.in_place(axis.by_owner(total, number, slice(None)), number)
        lower = base - self.probes.step if self.probes.paired else base
        apart = base + self.probes.step - lower
        # 0 where nothing depends on an input, or it is so large that the step is lost in it.
        return (total.flatten(1) / apart).masked_fill((self.numbers < 0) | (apart == 0), 0)

    def _reference(self, some: slice, base: Tensor, at: Tensor) -> Tensor | None:
        """What moved rows are compared with; None where each has one of its own."""
        if self.probes.paired:
            return None
        known = self.probes.reference
        return self.run(base, at) if known is None else torch.as_tensor(known[some], device=self.place).to(base)

    def _weighed(self, base: Tensor, weights: Tensor, at: Tensor, part: slice, reference: Tensor | None) -> Tensor:
        """[samples, rows, outputs]: weights times how far the rows of some colours of the first axis moved them."""
        each = self.probes.colours // self.sums[0].colours
        numbers = torch.arange(part.start * each, part.stop * each, device=self.place)
        up = self._rows(base, numbers, self.probes.step)
        if reference is not None:
            answers = self._run(up, at[:, None] + (self.probes.reference is None) + numbers)
            # Output by output, not sum by sum, of which rounding leaves less; and in one pass over the answers.
            return torch.addcmul(-(reference * weights)[:, None], answers, weights[:, None], out=answers)
        odd = numbers % 2
        answers = self._run(up, at[:, None] + 2 * numbers + odd)
        answers -= self._run(self._rows(base, numbers, -self.probes.step), at[:, None] + 2 * numbers + 1 - odd)
        answers *= weights[:, None]
        return answers

    def _rows(self, base: Tensor, numbers: Tensor, step: float) -> Tensor:
        return torch.where(self.numbers == numbers[:, None], (base + step)[:, None], base[:, None])

    def _run(self, rows: Tensor, keys: Tensor) -> Tensor:
        return self.run(rows.flatten(0, 1), keys.flatten()).unflatten(0, keys.shape)


@lru_cache(maxsize=256)
def _tables(axes: tuple[Axis, ...], place: torch.device) -> tuple[list[_Sum], Tensor]:
    """A table for each axis; and [width]: which row, of those moved up, moves an input, -1 where none does."""
    numbers = np.zeros((1,), dtype=np.int64)
    for axis in axes:
        deeper = numbers[:, None] * axis.count + axis.colours
        numbers = np.where((numbers[:, None] < 0) | (axis.colours < 0), -1, deeper).ravel()
    return [_Sum(axis, place) for axis in axes], torch.as_tensor(numbers, device=place)


class _Sum:
    """One axis: outputs added up for the input that they follow, colour by colour."""

    def __init__(self, axis: Axis, place: torch.device) -> None:
        self.colours = axis.count
        owners = [np.flatnonzero(axis.colours == colour) for colour in range(self.colours)]
        seen = [[np.flatnonzero(axis.reach[:, i]) for i in some] for some in owners]
        most = max(len(outputs) for some in seen for outputs in some)
        table = np.full((self.colours, max(map(len, owners)), most), -1)
        places = np.zeros(len(axis.colours), dtype=np.int64)
        for colour, some in enumerate(seen):
            for place_of, outputs in enumerate(some):
                table[colour, place_of, : len(outputs)] = outputs
                places[owners[colour][place_of]] = colour * table.shape[1] + place_of
        each = np.arange(len(axis.reach))
        self.all = table.shape[1:] == (1, len(each)) and bool((table == each).all())
        """Whether every colour moves one input, which all outputs follow."""
        self.own = table.shape == (1, len(each), 1) and bool((table[0, :, 0] == each).all())
        """Whether every output follows its own input."""
        self.ordered = np.array_equal(places, np.arange(table.shape[0] * table.shape[1]))
        """Whether sums come out in the order of inputs."""
        self.table = torch.as_tensor(table, device=place)
        self.places = torch.as_tensor(places, device=place)
        """[in]: where an input's sum is, of [colours x owners]; anywhere if nothing depends on it."""

    def by_owner(self, values: Tensor, number: int, part: slice) -> Tensor:
        """Outputs of axis `number` added up. `values` [samples, those inputs (axes before), colours (this axis and
        those behind it), outputs (the same)]: the colours, of this `part`, become colours x owners.
        """
        colours, outputs = 1 + number, (values.dim() + 1 + number) // 2
        if self.all:
            return values.sum(outputs)
        if self.own:
            return values.squeeze(colours).movedim(outputs - 1, colours)
        table = self.table[part]
        rows = torch.arange(len(table), device=table.device)[:, None, None]
        picked = values.movedim((colours, outputs), (0, 1))[rows, table]
        picked = picked * (table >= 0).view(*table.shape, *(1,) * (picked.dim() - 3))
        return picked.sum(2).flatten(0, 1).movedim(0, colours)

    def in_place(self, total: Tensor, number: int) -> Tensor:
        """[..., colours x owners, ...] of axis `number` as [..., inputs, ...]."""
        return total if self.ordered else total.index_select(1 + number, self.places)


def _slices(total: int, size: int) -> Iterator[slice]:
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))
