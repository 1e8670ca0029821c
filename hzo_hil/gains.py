"""Live gains of a network's stages, from the targets of backward passes: nothing is asked for them.

Knows energies by boundary, not where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Gains:
    """Sums since the last `clear` of ||T_k||^2 and ||T_(k-1)||^2 over the samples of all passes that had both."""

    def __init__(self, depth: int) -> None:
        self.above = [0.0] * depth
        self.below = [0.0] * depth

    def add(self, energies: Mapping[int, float]) -> None:
        """One backward pass: ||T||^2 summed over its samples, by boundary 0..depth. A boundary that was not needed is
        missing.
        """
        for k in range(len(self.above)):
            if k in energies and k + 1 in energies:
                self.below[k] += energies[k]
                self.above[k] += energies[k + 1]

    def clear(self) -> None:
        self.above, self.below = [0.0] * len(self.above), [0.0] * len(self.below)

    def stages(self) -> dict[int, float]:
        """By stage (1-based) the ratio of the two sums: the mean-square gain of its Jacobian along the targets that
        training has met, noise of the probes included. Stages whose targets were not estimated are missing.
        """
        return {k + 1: b / a for k, (a, b) in enumerate(zip(self.above, self.below, strict=True)) if a > 0}

    def state(self) -> list[list[float]]:
        return [list(self.above), list(self.below)]

    def load(self, state: list[Any]) -> None:
        self.above, self.below = (list(v) for v in state)
