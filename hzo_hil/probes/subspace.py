"""Learned subspaces: probe where past targets were, and a little elsewhere.

U: the r leading eigenvectors of the running covariance of past target estimates at a boundary; V: s random orthonormal
directions outside them, drawn anew in every pass. D = U^T U + V^T V, a projection: what lies outside is lost, so the
estimate is *biased*, and the biases of a chain of cuts multiply. The energy that is captured is estimated at every
pass, e_in / (e_in + e_out (M - r) / s), and where it falls too low the next pass probes in full. r + s probes instead
of M. Searching along past gradients and a little elsewhere: Maheswaranathan et al., "Guided evolutionary strategies"
(2019), there for weights and from surrogate gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import BadInput
from hzo_hil.probes import ProbeSet, working_dtype
from hzo_hil.probes.coordinate import Coordinate
from hzo_hil.probes.memory import RATE, Memory

Array = NDArray[Any]

WANTED = 0.5
"""Energy the size is chosen to capture, and"""
ENOUGH = 0.25
"""that below which the next pass probes in full: both through the whole chain of cuts, so per cut their n-th root."""
LARGEST = 0.5
"""Of the width: with more probes than this there is too little to save."""


@dataclass(eq=False)
class Subspace:
    """`size` None: from the captured energy. As an ordinary set it is `full`: what is asked at first, and whenever a
    subspace will not do.

    `chain`: cuts between the loss and the deepest target that depends on this one. `grid`: the driving converter's step
    in units of eps (0: none).

    >>> Subspace.named("16+4").name, Subspace.named("").name
    ('subspace:16+4', 'subspace')
    """

    size: int | None = None
    explore: int | None = None
    full: ProbeSet = Coordinate()
    chain: int = 1
    grid: float = 0.0
    name: str = field(init=False)
    spread: bool = field(init=False)

    certified = False
    """A planner with a tolerance to keep must not choose it: the lost energy is estimated, never bounded."""
    per_sample = False

    @classmethod
    def named(cls, numbers: str) -> Subspace:
        """From what follows `subspace:`, `r` or `r+s`."""
        if not numbers:
            return cls()
        size, plus, explore = numbers.partition("+")
        if not (size.isdigit() and int(size) and (explore.isdigit() and int(explore) if plus else True)):
            raise BadInput(
                f"unknown probes 'subspace:{numbers}': give subspace, subspace:r or subspace:r+s with r leading"
                " directions and s exploring ones, both at least 1 (without exploring ones it could not go on learning)"
            )
        return cls(int(size), int(explore) if plus else None)

    def __post_init__(self) -> None:
        numbers = "+".join(str(n) for n in (self.size, self.explore) if n is not None)
        self.name = f"subspace:{numbers}" if numbers else "subspace"
        self.spread = self.full.spread

    def count(self, width: int) -> int:
        return self.full.count(width)

    def reach(self, width: int) -> float:
        return 1.0

    def directions(self, width: int, key: int, first: int, last: int) -> Array:
        return self.full.directions(width, key, first, last)

    def decode(self, derivatives: Array, width: int, key: int, first: int) -> Array:
        return self.full.decode(derivatives, width, key, first)

    # --- pass by pass ------------------------------------------------------------------------------------------

    def for_step(self, memory: Memory | None) -> ProbeSet:
        """The ordinary set of the next pass."""
        if memory is None or memory.basis is None:
            return self.full
        return Directions(memory.basis, memory.explore, self.name, self.grid)

    def observe(self, memory: Memory, asked: ProbeSet, targets: Array, key: int, noise: float | None) -> None:
        """Learn from targets [samples, width] that the set `asked`, drawn by `key`, has decoded.

        `noise`: variance that read noise gives a directional derivative (eps = 1 per element), None where unknown.
        """
        targets = targets.astype(np.float64)
        energy = float((targets**2).sum(axis=1).mean()) if len(targets) else 0.0
        if not energy > 0:
            return
        if isinstance(asked, Directions):
            self._narrow(memory, asked, targets, key, noise, energy)
        else:
            self._whole(memory, targets, noise, energy)

    def _whole(self, memory: Memory, targets: Array, noise: float | None, energy: float) -> None:
        """All of the target is known: how much of it would the past have caught?"""
        width = targets.shape[1]
        past, judged = memory, targets
        if memory.moment is None:
            # Nothing yet: one half of the samples stands for the past, the other is judged by it.
            past, judged = Memory(), targets[1::2]
            past.add(targets[::2], np.zeros(width))
        if past.moment is None or not len(judged):
            memory.add(targets, np.zeros(width))
            return
        along = ((judged @ past.leading(width).T) ** 2).mean(axis=0)
        # Of targets they were not made from, the weakest directions hold little but read noise.
        floor = float(along[width // 2 :].mean()) if noise is None else noise * self._passed_on(width)
        memory.noise = floor / energy
        memory.add(targets, np.full(width, floor))
        caught = np.cumsum(along - floor)
        if caught[-1] > 0:
            self._choose(memory, caught / caught[-1], width)
        else:
            memory.basis = None  # nothing but noise

    def _passed_on(self, width: int) -> float:
        """What a full set's decoder lets through of a derivative's noise, per element."""
        return 1 / self.full.count(width) if self.full.spread else 1.0

    def _choose(self, memory: Memory, caught: Array, width: int) -> None:
        size = self.size
        if size is None:
            enough = np.flatnonzero(caught >= WANTED ** (1 / self.chain))
            size = int(enough[0]) + 1 if len(enough) else width
        explore = self.explore or max(2, math.ceil(size / 4))
        memory.basis = None
        if size + explore > LARGEST * width or caught[size - 1] < ENOUGH ** (1 / self.chain):
            return
        memory.captured = float(min(1.0, caught[size - 1]))
        memory.basis, memory.explore = memory.leading(size), explore

    def _narrow(
        self, memory: Memory, asked: Directions, targets: Array, key: int, noise: float | None, energy: float
    ) -> None:
        size, width = asked.basis.shape
        axes, scales = asked.axes(key)
        floor = np.full(len(axes), memory.noise * energy) if noise is None else noise * scales**2
        along = ((targets @ axes.T) ** 2).mean(axis=0) - floor
        inside = max(0.0, float(along[:size].sum()))
        outside = max(0.0, float(along[size:].mean()) * (width - size))
        memory.add(targets, floor, axes)
        if inside + outside > 0:
            memory.captured += RATE * (inside / (inside + outside) - memory.captured)
        poor = memory.captured < ENOUGH ** (1 / self.chain)
        memory.basis = None if poor else memory.leading(size)

    def placed(self, full: ProbeSet, chain: int, grid: float) -> Subspace:
        """The same at one boundary of a network."""
        return replace(self, full=full, chain=chain, grid=grid)


class Directions:
    """The set of one pass: `basis` [r, width] and s random directions outside it.

    Each is scaled so that its largest element is 1, which is as far as a range or a converter lets it go.
    """

    spread = True
    per_sample = False

    def __init__(self, basis: Array, explore: int, name: str, grid: float = 0.0) -> None:
        self.basis = basis
        self.name = name
        self._explore = explore
        self._grid = grid
        self._drawn: tuple[int, Array, Array] | None = None

    def count(self, width: int) -> int:
        return len(self.basis) + self._explore

    def reach(self, width: int) -> float:
        return 1.0

    def axes(self, key: int) -> tuple[Array, Array]:
        """Orthonormal rows [r + s, width], those of the basis first, and the largest element of each."""
        if self._drawn is None or self._drawn[0] != key:
            rng = np.random.Generator(np.random.Philox(key=[key, 0]))
            random = rng.standard_normal((self._explore, self.basis.shape[1]))
            for _ in range(2):  # once more, for the rounding of the first time
                random -= random @ self.basis.T @ self.basis
            rows = np.concatenate([self.basis, np.linalg.qr(random.T)[0].T])
            self._drawn = key, rows, np.abs(rows).max(axis=1)
        return self._drawn[1], self._drawn[2]

    def directions(self, width: int, key: int, first: int, last: int) -> Array:
        axes, largest = self.axes(key)
        moves = axes / largest[:, None]
        # Behind a converter only whole steps are moves at all.
        return (np.rint(moves / self._grid) * self._grid if self._grid else moves)[None]

    def decode(self, derivatives: Array, width: int, key: int, first: int) -> Array:
        axes, largest = self.axes(key)
        if self._grid:
            found = derivatives @ np.linalg.pinv(self.directions(width, key, first, first)[0]).T
        else:
            found = (derivatives * largest) @ axes
        return found.astype(working_dtype(derivatives))
