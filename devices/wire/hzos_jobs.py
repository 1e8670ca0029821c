"""What a host waits for on a serial line: jobs made of several requests, put together from their answers.

A query of many rows becomes several RUNs, an array several READs or WRITEs. Knows encodings, no frames' headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, Query, Reply
from hzo_hil.devices.errors import BadInput, BadReply, CapabilityError
from hzo_hil.devices.wire.hzos_layout import Encoding, Layout

MOST_REPEATS = 1 << 16


@dataclass
class Job:
    """Waits for `parts` answers; `take` gets each with its place, `result` gives the whole."""

    what: str
    parts: int = 0

    def take(self, place: int, data: bytes, saturated: bool) -> None:
        """Raises BadReply for data that is no answer to this part."""

    def result(self) -> Any:
        return None


@dataclass
class RunJob(Job):
    """`pieces`: (first row, rows, repeats) of each RUN. Answers to repeats are weighed by their number."""

    rows: int = 0
    width: int = 0
    encoding: Encoding = field(default_factory=lambda: Encoding("f4"))
    dtype: str = "float32"
    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    answers: dict[int, Array] = field(default_factory=dict)
    saturated: int = 0

    def take(self, place: int, data: bytes, saturated: bool) -> None:
        _, count, _ = self.pieces[place]
        expected = count * self.width * self.encoding.size
        if len(data) != expected:
            raise BadReply(
                f"answered {len(data)} bytes to {self.what}, expected {expected}: {count} rows of {self.width} values"
                f" ({self.encoding.dtype}). Its manifest and its answers disagree"
            )
        self.answers[place] = self.encoding.decode(data, self.dtype).reshape(count, self.width)
        self.saturated += saturated

    def result(self) -> Reply:
        monitors = {"line_saturated": float(self.saturated)} if self.saturated else {}
        if len(self.pieces) == 1:
            return Reply(self.answers[0], monitors=monitors)
        shots = sum(repeats for first, _, repeats in self.pieces if first == 0)
        whole = np.zeros((self.rows, self.width), np.float64)
        for place, (first, count, repeats) in enumerate(self.pieces):
            whole[first : first + count] += self.answers[place] * (repeats / shots)
        return Reply(whole.astype(self.dtype), monitors=monitors)


def runs(layout: Layout, capabilities: Capabilities, query: Query, room: int) -> tuple[RunJob, list[tuple[int, bytes]]]:
    """The job of a query and, for each RUN, log2 of its repeats and its data. BadInput: no line can say it."""
    lo, hi = query.segment.lo, query.segment.hi
    rows = np.asarray(query.inputs)
    driven, read = layout.boundaries[lo], layout.boundaries[hi]
    n_in, n_out = capabilities.width(lo), capabilities.width(hi)
    if query.taps:
        raise CapabilityError("inner boundaries cannot be read within a query over a serial line")
    if rows.ndim != 2 or rows.shape[1] != n_in or not len(rows):
        raise BadInput(f"inputs of shape {list(rows.shape)} for boundary {lo}, which takes [batch, {n_in}]")
    check_values(f"inputs at boundary {lo}", rows, driven)
    if not 1 <= query.repeats < MOST_REPEATS or (query.repeats > 1 and not layout.repeats):
        able = f"up to {MOST_REPEATS - 1}" if layout.repeats else "none"
        raise CapabilityError(f"{query.repeats} repeats: the device averages {able}")
    most = min(layout.rows, room // max(n_in * driven.size, n_out * read.size))
    if most < 1:
        raise CapabilityError(f"one row of segment {lo}..{hi} is larger than a frame's {room} bytes")
    what = f"{len(rows)} inputs through stages {lo + 1}..{hi}"
    job = RunJob(what, rows=len(rows), width=n_out, encoding=read, dtype=capabilities.dtype)
    data, stride, sent = driven.encode(rows)[0], n_in * driven.size, []
    for first in range(0, len(rows), most):
        count = min(most, len(rows) - first)
        for power in range(16):
            if query.repeats >> power & 1:
                job.pieces.append((first, count, 1 << power))
                sent.append((power, data[first * stride : (first + count) * stride]))
    job.parts = len(sent)
    return job, sent


@dataclass
class ReadJob(Job):
    """Arrays by name, each read in chunks (name, first byte, bytes)."""

    arrays: Mapping[str, tuple[Encoding, tuple[int, ...]]] = field(default_factory=dict)
    dtype: str = "float32"
    chunks: list[tuple[str, int, int]] = field(default_factory=list)
    answers: dict[int, bytes] = field(default_factory=dict)

    def take(self, place: int, data: bytes, saturated: bool) -> None:
        name, _, count = self.chunks[place]
        if len(data) != count:
            raise BadReply(f"answered {len(data)} bytes of parameter {name!r}, expected {count}")
        self.answers[place] = data

    def result(self) -> Mapping[str, Array]:
        whole = dict.fromkeys(self.arrays, b"")
        for place, (name, _, _) in enumerate(self.chunks):
            whole[name] += self.answers[place]
        return {
            name: encoding.decode(whole[name], self.dtype).reshape(shape)
            for name, (encoding, shape) in self.arrays.items()
        }


@dataclass
class TextJob(Job):
    """Telemetry: text in chunks; the last are shorter or empty. `finish` makes the result of it."""

    finish: Any = None
    answers: dict[int, bytes] = field(default_factory=dict)

    def take(self, place: int, data: bytes, saturated: bool) -> None:
        self.answers[place] = data

    def result(self) -> Any:
        return self.finish(b"".join(self.answers[place] for place in sorted(self.answers)))


def check_values(what: str, values: Array, encoding: Encoding) -> None:
    """BadInput for what the encoding cannot say; half a step beyond its ends is rounding."""
    if values.dtype.kind not in "fiu":
        raise BadInput(f"{what}: {values.dtype} are no real numbers; give float32 or float64")
    least, most = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    low, high = encoding.ends
    slack = encoding.scale / 2 if encoding.dtype != "f4" else 0.0
    if values.size and not (least >= low - slack and most <= high + slack):
        raise BadInput(
            f"{what}: {least:g}..{most:g} cannot be sent as {encoding.dtype} times {encoding.scale:g}, which reaches"
            f" from {low:g} to {high:g}. Keep within the declared range"
        )


def changed_spans(indices: Array, size: int, gap: int) -> Iterator[tuple[int, int]]:
    """(first, end) of runs of flat indices; runs with fewer than `gap` values between them are one.

    >>> list(changed_spans(np.array([0, 1, 2, 5, 90]), 100, 8))
    [(0, 6), (90, 91)]
    """
    flat = np.unique(np.asarray(indices).reshape(-1))
    if not flat.size:
        return
    if flat[0] < 0 or flat[-1] >= size:
        raise BadInput(f"indices {flat[0]}..{flat[-1]} of a parameter of {size} values")
    cuts = np.flatnonzero(np.diff(flat) > gap) + 1
    for part in np.split(flat, cuts):
        yield int(part[0]), int(part[-1]) + 1
