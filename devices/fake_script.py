"""What a fake device is told to do, and what it keeps of what it was asked.

Nothing here runs anything: the device looks up what happens at a call, by its number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, Segment


@dataclass
class Script:
    """What goes wrong, and when. Call and write numbers count from 0; seconds are real unless the device is virtual.

    A scripted event hits one call: asked again, the query gets the next number. `fail` raises any
    exception out of `run` or `submit` themselves (KeyboardInterrupt, a driver's own error).
    `noise` is the standard deviation added to every value read out, keyed by row.
    """

    seed: int = 0
    latency_s: float = 0.0  # of every call
    write_s: float = 0.0  # of every write
    delay: Mapping[int, float] = field(default_factory=dict)  # extra, by call
    reorder: bool = False  # pipelined: each poll hands out one ready answer, drawn at random
    lose: Collection[int] = ()  # LinkLost
    lose_rate: float = 0.0
    lose_write: Collection[int] = ()  # by write number; nothing is written
    hang: Collection[int] = ()  # pipelined: never answers; blocking: LinkLost after hang_s or `unhang`
    hang_s: float = 60.0
    nan: Collection[int] = ()  # one value of the reply
    nan_rate: float = 0.0
    always_nan: bool = False  # every value of every reply
    bad_value: float = float("nan")  # what "nan" puts there
    wrong_shape_at: Collection[int] = ()  # one column is missing
    wrong_dtype_at: Collection[int] = ()  # answers in float16
    reboot_at: Collection[int] = ()  # parameters are lost: no stage runs before it was wholly written again
    fail: Mapping[int, BaseException] = field(default_factory=dict)
    drift_per_call: float = 0.0  # call n is read out with a gain of 1 + n * drift_per_call
    noise: float = 0.0
    one_thread: bool = False  # refuse every thread but the one that called first

    def happens(self, rate: float, call: int, kind: int) -> bool:
        return rate > 0 and float(np.random.default_rng((self.seed, kind, call)).random()) < rate


@dataclass(frozen=True)
class CallRecord:
    """One `run` or `submit`: `inputs` is kept only by a device made with `keep_inputs`."""

    number: int
    segment: Segment
    rows: int
    keys: Array | None
    taps: tuple[int, ...]
    repeats: int
    inputs: Array | None


@dataclass(frozen=True)
class WriteRecord:
    number: int
    stage: int
    parameters: Mapping[str, Array]
    where: Mapping[str, Array] | None
    key: Any
