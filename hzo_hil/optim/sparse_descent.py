"""Sparse coordinate descent: move one parameter after another by a fixed step and see whether the loss falls.

    try w_i + lr; keep it if the loss is lower than the last one known, else go to w_i - lr

A random few coordinates a step, out of those that are active: the others stay for good (mixed training, where most
shifters are passive). lr is the step itself, in the parameters' unit; schedule it downwards, for it bounds the accuracy
that can be reached.

Source: Gu et al., "Efficient on-chip learning for optical neural networks through power-aware sparse zeroth-order
optimization" (2021), step 0.1 decaying by 0.99 an epoch to 0.0245 (a drive converter's step).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import COUNT, POSITIVE, SHARE, Bound


class SparseCoordinateDescent(LossOnly):
    """`coordinates`: tried in a step. `active`: the share of parameters that is trained at all, drawn once by the seed.

    `opposite` True, as published: w_i - lr is taken and asked about where w_i + lr was no better; 1 + 2 `coordinates`
    queries at most, which is what `queries_per_step` says. False: a random sign each, kept or taken back; 1 +
    `coordinates` queries, never more loss than before on the same minibatch.
    """

    bounds: ClassVar[dict[str, Bound]] = {"lr": POSITIVE}

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        coordinates: int = 10,
        active: float = 1.0,
        opposite: bool = True,
        seed: int = 0,
    ) -> None:
        COUNT.check("SparseCoordinateDescent", "coordinates", coordinates)
        SHARE.check("SparseCoordinateDescent", "active", active)
        self.coordinates = coordinates
        self.active = active
        self.opposite = opposite
        super().__init__(params, {"lr": lr}, seed)

    @property
    def queries_per_step(self) -> int:
        tried = min(self.coordinates, self._active(Flat(self.param_groups).size))
        return 1 + tried * (2 if self.opposite else 1)

    @property
    def at_most(self) -> bool:
        return self.opposite

    def _active(self, size: int) -> int:
        return max(1, math.ceil(self.active * size))

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        generator = self._generator(at, "coordinates")
        chosen = self._chosen(at, generator)
        step = at.setting("lr")
        if not self.opposite:
            signs = torch.randint(0, 2, (at.size,), generator=generator, device=at.device, dtype=at.dtype)
            step = step * (2 * signs - 1)
        here, there, opposite = w.tolist(), at.settled(w + step).tolist(), at.settled(w - step).tolist()
        known = first = oracle()
        for i in chosen:
            at.put(i, there[i])
            loss = oracle()
            if loss < known:
                known = loss
            elif self.opposite:
                at.put(i, opposite[i])
                known = oracle()
            else:
                at.put(i, here[i])
        return at.read(), first

    def _chosen(self, at: Flat, generator: torch.Generator) -> list[int]:
        count = self._active(at.size)
        drawn = torch.randperm(count, generator=generator, device=at.device)[: self.coordinates]
        if count == at.size:
            return drawn.tolist()
        active = torch.randperm(at.size, generator=self._generator(at, "active", 0), device=at.device)
        return active[drawn].tolist()
