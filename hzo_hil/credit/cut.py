"""One cut: the rows that perturb boundary `at`, and how their answers become its target.

Pure arithmetic on arrays; sends nothing. Rows of a sample are laid out as pairs (probe by probe, level by level; + - -
+, so that slow drift cancels), or as one reference and then the probes. Axes: [sample, pair or row, width].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.colouring import Colouring, Dense, Tiling
from hzo_hil.devices.errors import BadInput
from hzo_hil.differences import Scheme
from hzo_hil.impulses import Impulses
from hzo_hil.network import Part
from hzo_hil.plan import Cut
from hzo_hil.probes import ProbeSet

Array = NDArray[Any]
_FEW = 16  # one number in this many, or fewer, moves: rows are copied and changed, not added up
_BLOCK = 1 << 17  # numbers of rows built at a time


@dataclass
class Probing:
    """Everything about a cut that does not depend on its target.

    `base` [samples, width]: activations at the boundary, in the device's dtype. `low`, `high`: its drivable range.
    `colouring`: which elements of the boundary may move in one probe, and whose change each output then shows; the
    probe set is asked where it needs one colour an element (dense), elsewhere colours are coordinate probes. `step`: of
    the converter that drives the boundary (0: none), so that a probe cut short still moves by whole steps. `repeats`:
    shots averaged per row. `reference` [samples, outputs]: answers to `base` where they are known, so that one-sided
    differences need not ask for them. `offloaded`: the device builds the rows and weighs the answers by itself.
    """

    cut: Cut
    set: ProbeSet
    scheme: Scheme
    eps: float
    base: Array
    low: float
    high: float
    colouring: Colouring
    key: int
    step: float = 0.0
    repeats: int = 1
    reference: Array | None = None
    offloaded: bool = False

    shifted: int = 0

    def __post_init__(self) -> None:
        base = np.clip(self.base, self.low, self.high)
        self._beyond = base != self.base
        if self.spread:
            reach = self.eps * self.set.reach(self.width)
            if 2 * reach > self.high - self.low:
                raise BadInput(
                    f"{self.set.name} probes at boundary {self.cut.at} move an element by up to {reach:g}, which does"
                    " not fit into"
                    f" its range {self.low:g}..{self.high:g}. Use a smaller eps or coordinate probes"
                )
            inside = np.clip(base, self.low + reach, self.high - reach)
            self.shifted = int(np.count_nonzero(inside != base))
            base = inside
        self.base = np.ascontiguousarray(base)

    @property
    def samples(self) -> int:
        return len(self.base)

    @property
    def width(self) -> int:
        return self.base.shape[1]

    @property
    def dense(self) -> bool:
        return isinstance(self.colouring, Dense)

    @property
    def spread(self) -> bool:
        """Whether a probe moves several elements that the same outputs answer for."""
        return self.dense and self.set.spread

    @property
    def probes(self) -> int:
        return self.set.count(self.width) if self.dense else self.colouring.count

    @property
    def rows(self) -> int:
        """Rows per sample."""
        return self.scheme.queries(self.probes) - (self.reference is not None)

    @property
    def asked(self) -> int:
        """Rows in all."""
        return self.samples * self.rows

    @property
    def group(self) -> int:
        return 2 if self.scheme.paired else 1

    # --- rows --------------------------------------------------------------------------------------------------

    def build(self, first: int, last: int, columns: slice) -> Array:
        """Rows first..last-1 of the flat (sample, row) order, for some columns of the boundary."""
        width = columns.stop - columns.start
        out = np.empty((last - first, width), dtype=self.base.dtype)
        for (b0, b1), (r0, r1), at in _rectangles(first, last, self.rows):
            target = out[at : at + (b1 - b0) * (r1 - r0)].reshape(b1 - b0, r1 - r0, width)
            if isinstance(self.colouring, (Tiling, Impulses)):
                self._scatter(target, b0, b1, r0)
            elif self._few is not None:
                self._move_few(target, b0, r0, columns, *self._few)
            else:
                offsets = self._offsets(b0, b1)[:, r0:r1, columns]
                if self._down is not None:
                    offsets = offsets * self._down[b0:b1, None, columns]
                np.add(self.base[b0:b1, None, columns], offsets, out=target)
            if self._edges:
                bottom, top = (end[b0:b1, None, columns] for end in self._ends)
                np.clip(target, bottom, top, out=target)
        return out

    def _offsets(self, b0: int, b1: int) -> Array:
        """[1 or samples, rows, width]"""
        if self._common is None:
            return self._lay_out(self.set.directions(self.width, self.key, b0, b1))
        return self._common

    @cached_property
    def _common(self) -> Array | None:
        """Rows that all samples have in common."""
        if not self.dense:
            return self._lay_out(np.ones((1, 1, self.width)))
        return None if self.set.per_sample else self._lay_out(self.set.directions(self.width, self.key, 0, 1))

    @cached_property
    def _few(self) -> tuple[Array, Array, Array] | None:
        """Rows that all samples have in common as (row, element, move), by row, where few elements move: else None."""
        if self._common is None:
            return None
        rows, elements = np.nonzero(self._common[0])
        if len(rows) * _FEW > self._common[0].size:
            return None
        return rows, elements, self._common[0, rows, elements]

    def _move_few(
        self, target: Array, b0: int, r0: int, columns: slice, rows: Array, elements: Array, moves: Array
    ) -> None:
        """Base and offsets added up where the offset is not 0: most of a row is a copy, which costs far less."""
        _, count, width = target.shape
        here = slice(*np.searchsorted(rows, (r0, r0 + count)))
        rows, elements, moves = rows[here], elements[here], moves[here]
        if width < self.width:
            inside = (elements >= columns.start) & (elements < columns.stop)
            rows, elements, moves = rows[inside], elements[inside], moves[inside]
        places = (rows - r0) * width + (elements - columns.start)
        # A few samples at a time, so that what is copied is still in the cache when it is moved.
        step = max(1, _BLOCK // max(1, count * width))
        for first in range(0, len(target), step):
            block = target[first : first + step]
            samples = slice(b0 + first, b0 + first + len(block))
            block[...] = self.base[samples, None, columns]
            signs = 1 if self._down is None else self._down[samples, elements]
            block.reshape(len(block), -1)[:, places] += moves * signs

    def _lay_out(self, directions: Array) -> Array:
        moves = (directions * self.eps).astype(self.base.dtype)
        if not self.scheme.paired:
            nothing = np.zeros_like(moves[:, : self._leading])
            return np.concatenate([nothing, moves], axis=1)
        samples, probes, width = moves.shape
        multipliers = np.array([m for m, _ in self.scheme.levels], dtype=moves.dtype)
        rows = np.empty((samples, probes, len(multipliers), 2, width), dtype=moves.dtype)
        np.multiply(moves[:, :, None], multipliers[:, None], out=rows[:, :, :, 0])
        rows = rows.reshape(samples, -1, 2, width)
        rows[:, 1::2, 0] *= -1
        np.negative(rows[:, :, 0], out=rows[:, :, 1])
        return rows.reshape(samples, -1, width)

    def _scatter(self, target: Array, b0: int, b1: int, r0: int) -> None:
        """Rows r0, r0 + 1, ... of a local segment, as `_offsets` would lay them out: few elements move in each."""
        target[...] = self.base[b0:b1, None]
        for number, row in enumerate(range(r0, r0 + target.shape[1])):
            if not self.scheme.paired:
                colour, multiplier = row - self._leading, 1.0
            else:
                colour, level = divmod(row // 2, len(self.scheme.levels))
                multiplier = self.scheme.levels[level][0] * (-1.0 if (row + row // 2) % 2 else 1.0)
            if colour >= 0:
                members = self._members[colour]
                move = np.asarray(self.eps, self.base.dtype) * np.asarray(multiplier, self.base.dtype)
                target[:, number, members] += move if self._down is None else move * self._down[b0:b1, members]

    @cached_property
    def _members(self) -> list[Array]:
        return [m[m >= 0] for m in self.colouring.members]

    @cached_property
    def _down(self) -> Array | None:
        """Signs [samples, width]: no minus row makes up for a probe lost at the upper end, so it steps down there."""
        if self.scheme.paired or not self._edges:
            return None
        return np.where(self.base + self.eps > self.high, -1, 1).astype(self.base.dtype)

    @cached_property
    def _edges(self) -> bool:
        """Whether some probe of a set that may become one-sided meets the end of the range."""
        if self.spread:
            return False
        return bool((self.base - self.eps < self.low).any() or (self.base + self.eps > self.high).any())

    @cached_property
    def _ends(self) -> tuple[Array, Array]:
        """How far down and up each element may be driven, [samples, width].

        Behind a converter these are whole steps from the base: the device rounds base and end alike, so that the
        distance is as planned.
        """
        base = self.base.astype(np.float64)
        below, above = base - self.low, self.high - base
        if self.step:
            # 1e-4 of a step: the rounding of a float32 base.
            below, above = (np.floor(room / self.step + 1e-4) * self.step for room in (below, above))
        bottom, top = (base - below).clip(self.low), (base + above).clip(None, self.high)
        return bottom.astype(self.base.dtype), top.astype(self.base.dtype)

    # --- answers -----------------------------------------------------------------------------------------------

    @property
    def kept(self) -> tuple[int, ...]:
        """What one part's answers are contracted to: a number per pair (or row) if dense, else one per place of a
        colour. A reference is contracted by every colour before that."""
        numbers = self.rows // self.group
        if self.dense:
            return (self.samples, numbers)
        numbers += self._references - self._leading
        return (self.samples, numbers, self.colouring.members.shape[1])

    @property
    def _leading(self) -> int:
        """Rows of a sample ahead of its probes: a reference that must be asked for."""
        return int(not self.scheme.paired and self.reference is None)

    @property
    def _references(self) -> int:
        """Numbers kept of that row: outputs of a tiling are added up by colour."""
        return self._leading * (self.probes if isinstance(self.colouring, Tiling) else 1)

    def contract(self, outputs: Array, target: Array, first: int, part: Part, into: Array) -> None:
        """Reduce the answers to rows first.. against `target` [samples, out] into `into` (shape `kept`), at their
        places.
        """
        per_sample = self.rows // self.group
        start = first // self.group
        for (b0, b1), (j0, j1), at in _rectangles(start, start + len(outputs) // self.group, per_sample):
            block = outputs[at * self.group : (at + (b1 - b0) * (j1 - j0)) * self.group]
            block = block.reshape(b1 - b0, j1 - j0, self.group, -1)
            if self.reference is not None:
                block = block - self.reference[b0:b1, None, None, part.outputs]
            weights = part.sign * target[b0:b1, None, None, part.outputs]
            # Weighed row by row, one after the other: no sum depends on how rows were batched.
            if isinstance(self.colouring, Tiling):
                change = block[:, :, 0] - block[:, :, 1] if self.scheme.paired else block[:, :, 0]
                self._reduce(self.colouring, change, weights[:, 0, 0], into[b0:b1], j0)
                continue
            numbers = np.vecdot(block, weights) if self.dense else block * weights
            into[b0:b1, j0:j1] = numbers[:, :, 0] - numbers[:, :, 1] if self.scheme.paired else numbers[:, :, 0]

    def _reduce(self, tiling: Tiling, change: Array, weights: Array, into: Array, first: int) -> None:
        levels = len(self.scheme.levels)
        for number in range(change.shape[1]):
            weighed = change[:, number] * weights
            row = first + number
            if self.scheme.paired:
                into[:, row] = tiling.reduce(row // levels, weighed)
            elif row >= self._leading:
                probe = row - self._leading
                into[:, self._references + probe] = tiling.reduce(probe, weighed)
            else:
                for colour in range(self.probes):
                    into[:, colour] = tiling.reduce(colour, weighed)

    def decode(self, contracted: Array) -> tuple[Array, int]:
        """Target [samples, width] at the cut from all answers (shape `kept`), and how many probes were one-sided."""
        dtype = np.result_type(contracted.dtype, np.float32)
        values = contracted.astype(np.float64)
        if not self.scheme.paired:
            change = values[:, -self.probes :]
            if self._references:
                change = change - values[:, : self._references]
            steps, one_sided = self._realised(0, 1.0)
            derivatives = _ratio(change, steps)
        else:
            values[:, 1::2] *= -1
            levels = values.reshape(self.samples, self.probes, len(self.scheme.levels), *values.shape[2:])
            derivatives, one_sided = np.zeros_like(levels[:, :, 0]), 0
            for v, (multiplier, weight) in enumerate(self.scheme.levels):
                steps, clipped = self._realised(v, multiplier)
                derivatives = derivatives + weight * _ratio(levels[:, :, v], steps)
                one_sided += clipped
        if self.dense:
            found = self.set.decode(derivatives, self.width, self.key, 0)
        else:
            found = self.colouring.place(derivatives)
        # What lies beyond the range is clipped on its way in: nothing depends on it.
        return np.where(self._beyond, 0, found).astype(dtype), one_sided

    def _realised(self, level: int, multiplier: float) -> tuple[Array | float, int]:
        """Distance between the two ends of each element's probe, as sent, and how many were cut short."""
        if self.spread:
            return (2.0 if self.scheme.paired else 1.0) * self.eps * multiplier, 0
        move = np.asarray(self.eps * multiplier, dtype=self.base.dtype)
        upper, lower = self.base + move, self.base - move
        too_high, too_low = upper > self.high, lower < self.low
        clipped = int(np.count_nonzero(too_high | too_low if self.scheme.paired else too_high))
        if self._edges:
            bottom, top = self._ends
            upper, lower = np.minimum(upper, top), np.maximum(lower, bottom)
        ends, start = (upper, lower) if self.scheme.paired else (np.where(too_high, lower, upper), self.base)
        steps = ends.astype(np.float64) - start
        return steps if self.dense else self.colouring.gather(steps), clipped


def _ratio(change: Array, step: Array | float) -> Array:
    """change / step, and 0 where the step has been clipped away entirely: the device is flat there."""
    return np.divide(change, step, out=np.zeros_like(change), where=np.asarray(step) != 0)


def _rectangles(first: int, last: int, per_sample: int) -> Iterator[tuple[tuple[int, int], tuple[int, int], int]]:
    """A flat range of (sample, row) as at most three rectangles: ((b0, b1), (r0, r1), offset in the range)."""
    position = first
    while position < last:
        sample, row = divmod(position, per_sample)
        if row or last - position < per_sample:
            stop = min(last, (sample + 1) * per_sample)
            yield (sample, sample + 1), (row, row + stop - position), position - first
        else:
            whole = (last - position) // per_sample
            stop = position + whole * per_sample
            yield (sample, sample + whole), (0, per_sample), position - first
        position = stop
