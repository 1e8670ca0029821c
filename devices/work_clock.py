"""Device time as a count of work done: rows times stages, and writes. Counts are exact, so how a batch was split
cannot show in the time of a row.

Knows no physics, and no clock on the wall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import BadInput

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Mark:
    """Evaluations and writes so far when a write was settled, and the key of its noise where it had one."""

    evaluations: int = 0
    writes: int = 0
    key: int | None = None

    def __post_init__(self) -> None:
        counts = (self.evaluations, self.writes, 0 if self.key is None else self.key)
        if any(type(n) is not int or n < 0 for n in counts):
            raise ValueError("counts and keys are integers of at least 0")


@dataclass
class WorkClock:
    """`query_s` for every stage a row goes through, `settling_s` for every write; calls as such take no time."""

    query_s: float = 0.0
    settling_s: float = 0.0
    evaluations: int = 0
    writes: int = 0
    written: dict[int, Mark] = field(default_factory=dict)
    """By stage: its last write."""

    def rows(self, count: int, stages: int, repeats: int, repeat: int) -> Seconds:
        """Device seconds `[count]` at which each of the next rows begins its shot number `repeat` of `repeats`."""
        done = self.evaluations + stages * (repeats * np.arange(count, dtype=np.int64) + repeat)
        return np.asarray(done * self.query_s + self.writes * self.settling_s)

    def since_write(self, stage: int, seconds: float) -> float:
        """Device seconds between the last write of a stage and the time `seconds`; never negative."""
        mark = self.written.get(stage, Mark())
        return max(0.0, seconds - (mark.evaluations * self.query_s + mark.writes * self.settling_s))

    def wrote(self, stage: int, key: int | None, first: bool) -> None:
        """`first`: nothing was on the stage. If the clock, set to an earlier state, knows this write, it is that one
        repeated for a device that was switched on again, and takes no time."""
        known = self.written.get(stage)
        if first and known is not None and key is not None and known.key == key:
            return
        self.writes += 1
        self.written[stage] = Mark(self.evaluations, self.writes, key)

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        written = {str(stage): list(astuple(mark)) for stage, mark in sorted(self.written.items())}
        return {"evaluations": self.evaluations, "writes": self.writes, "written": written}

    def restore(self, state: Mapping[str, Any]) -> None:
        try:
            now = Mark(state["evaluations"], state["writes"])
            written = {int(stage): Mark(*value) for stage, value in state["written"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"{state!r} is no state of a device's clock ({error}): take it from virtual_clock, or from a checkpoint"
            ) from error
        self.evaluations, self.writes, self.written = now.evaluations, now.writes, written
