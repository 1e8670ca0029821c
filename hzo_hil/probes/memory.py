"""What is remembered of one boundary's targets: a running covariance, and the directions it will be probed in next.

Knows energies and axes, not probes, plans or devices. Energy: mean square over the samples of a pass, summed over the
directions named. A pass counts relative to its own energy, so that the memory outlives a falling loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh

Array = NDArray[Any]

RATE = 0.2
"""Weight of the newest pass in the running covariance, and in the running captured energy."""


@dataclass
class Memory:
    """`moment` [width, width]: running covariance of targets, trace about 1 (None: nothing seen). `basis` [size,
    width]: orthonormal rows that the next pass probes (None: it probes in full). `explore`: random directions beside
    them. `captured`: fraction of the targets' energy, read noise taken off, inside the basis. `noise`: read noise per
    direction, as a fraction of a pass's energy, as it was last estimated.
    """

    moment: Array | None = None
    basis: Array | None = None
    explore: int = 0
    captured: float = 0.0
    noise: float = 0.0

    def add(self, targets: Array, noise: Array, axes: Array | None = None) -> None:
        """Take over targets [samples, width]. `noise`: the read noise's energy along each of `axes` [n, width], or per
        element where there are none."""
        moment = targets.T @ targets / len(targets)
        energy = float(np.trace(moment))
        if not energy > 0:
            return
        # Subtracted, or the directions that were measured would seem to hold more than those that were not.
        moment -= np.diag(noise) if axes is None else (axes.T * noise) @ axes
        moment /= energy
        self.moment = moment if self.moment is None else (1 - RATE) * self.moment + RATE * moment

    def leading(self, size: int) -> Array:
        """The `size` strongest directions so far, [size, width], strongest first."""
        assert self.moment is not None
        width = len(self.moment)
        _, axes = eigh(self.moment, subset_by_index=[width - size, width - 1], driver="evr")
        return np.ascontiguousarray(axes[:, ::-1].T)

    def state(self) -> dict[str, Any]:
        """Plain numbers and tensors, for a checkpoint."""
        arrays = {n: v for n in ("moment", "basis") if (v := getattr(self, n)) is not None}
        numbers = {"explore": self.explore, "captured": self.captured, "noise": self.noise}
        return {**numbers, **{n: torch.from_numpy(v.copy()) for n, v in arrays.items()}}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Memory:
        plain: dict[str, Any] = {n: v.numpy().copy() if isinstance(v, torch.Tensor) else v for n, v in state.items()}
        return cls(**plain)
