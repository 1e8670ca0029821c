"""Measurements of one stage, kept while training: what was written, what went in, what came out.

Sorted by what they are before any is chosen, so that which are kept depends on neither batch limits nor the order of
replies. Knows no twin and no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Order = tuple[str, int, int]


class Replay:
    """The last `memory` settings, each with `rows` pairs of inputs and outputs."""

    def __init__(self, memory: int, rows: int) -> None:
        self.memory = memory
        self.rows = rows
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._heard: list[tuple[Order, Array, Array, Array]] = []

    def hear(self, order: Order, commanded: Array, inputs: Array, outputs: Array) -> None:
        """One answer: `commanded` `[values]`, `inputs` `[rows, in]`, `outputs` `[rows, out]`. `order`: purpose, number
        of the setting, first row.
        """
        self._heard.append((order, commanded, np.array(inputs, np.float64), np.array(outputs, np.float64)))

    def keep(self, most: int, rng: np.random.Generator) -> None:
        """Choose from what was heard since: at most `most` settings, and rows of each."""
        found: dict[tuple[str, int], list[tuple[Order, Array, Array, Array]]] = {}
        for heard in sorted(self._heard, key=lambda h: h[0]):
            found.setdefault(heard[0][:2], []).append(heard)
        self._heard = []
        names = sorted(found)
        chosen = sorted(rng.permutation(len(names))[:most])
        for parts in (found[names[i]] for i in chosen):
            inputs, outputs = (np.concatenate([p[i] for p in parts]) for i in (2, 3))
            # Fewer than wanted are repeated: every setting then counts alike.
            rows = np.resize(rng.permutation(len(inputs)), self.rows)
            self.kept.append(tuple(torch.as_tensor(v) for v in (parts[0][1], inputs[rows], outputs[rows])))  # type: ignore[arg-type]
        self.kept = self.kept[-self.memory :]

    def forget(self) -> None:
        """Drop what was heard of a pass that was lost."""
        self._heard = []

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """`[values, settings]`, `[settings, rows, in]`, `[settings, rows, out]`."""
        commanded, inputs, outputs = (torch.stack(parts) for parts in zip(*self.kept, strict=True))
        return commanded.T.contiguous(), inputs, outputs

    def state(self) -> list[list[Tensor]]:
        return [[t.clone() for t in kept] for kept in self.kept]

    def load(self, state: list[list[Tensor]]) -> None:
        self.kept = [(a.clone(), b.clone(), c.clone()) for a, b, c in state]
        self._heard = []


def vector(twin: Any, values: Mapping[str, Array]) -> Array:
    """Values by name as the twin's one array."""
    found: Array = twin.commanded({n: np.asarray(v) for n, v in values.items()}).numpy()
    return found
