"""What was asked and what came back: the arrays that all estimators share. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Questions:
    """Queries `[rows]`: amplitude and number of the pattern; `held` ones are kept for the test of the fit."""

    drive: Floats
    pattern: Integers
    block: Integers
    held: Flags

    def __len__(self) -> int:
        return len(self.drive)

    def of_block(self, block: int) -> Questions:
        chosen = self.block == block
        return Questions(*(getattr(self, f.name)[chosen] for f in fields(Questions)))


@dataclass(frozen=True)
class Rows(Questions):
    """With what came back: `answers` `[rows, out]` in device units, device `seconds` `[rows]` at which each began.

    `pull` `[rows, out]` is the pattern's (see `Response`); `scatter` `[rows, out]` the variance that light adds.
    """

    answers: Floats
    seconds: Floats
    pull: Floats
    scatter: Floats

    def where(self, chosen: Flags) -> Rows:
        return Rows(*(getattr(self, f.name)[chosen] for f in fields(Rows)))


def joined(parts: list[Rows]) -> Rows:
    return Rows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)))
