"""Asks segments for calibration: rows in, answers out, timed. Knows the way of a query, not what is made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.credit.hzo import decoded, padded
from hzo_hil.dispatch import Call, Dispatch
from hzo_hil.network import Hop
from hzo_hil.scheduler import pack, rows_per_call
from hzo_hil.streams import row_keys

Array = NDArray[Any]
PURPOSE = "calibration"


@dataclass
class Timed:
    """What a series of calls took of a device that keeps real time: (calls, stage evaluations, seconds)."""

    rows: list[tuple[int, int, float]] = field(default_factory=list)


class Asker:
    """Every row it ever sends has a noise key of its own."""

    def __init__(self, dispatch: Dispatch, key: int) -> None:
        self.dispatch = dispatch
        self.key = key
        self.sent = 0
        self.timed = Timed()

    def answers(self, at: int, source: int, rows: Array) -> Array:
        """Answers [n, width(source)] to rows [n, width(at)] through segment (at, source], in activation units."""
        network = self.dispatch.network
        values = rows
        for hop in network.route(at, source):
            values = self._through(hop, np.clip(values, *network.limits(hop.lo)))
        return values

    def _through(self, hop: Hop, rows: Array) -> Array:
        dispatch = self.dispatch
        outputs = np.zeros((len(rows), dispatch.network.width(hop.hi)))
        most = rows_per_call(dispatch.link(hop.device).capabilities, hop.in_ports, 1, 1)
        rows = rows.astype(hop.device.capabilities.dtype, copy=False)
        counted = [0, 0]

        def calls() -> Iterator[Call]:
            for part in hop.parts:
                for first, last in pack(len(rows), most):
                    keys = row_keys(self.key, self.sent, last - first)
                    self.sent += last - first
                    counted[0] += 1
                    counted[1] += (last - first) * len(hop.segment)
                    yield Call(hop, part, padded(rows[first:last, part.inputs], hop), PURPOSE, keys, tag=first)

        started = time.perf_counter()
        for answer in dispatch.stream(calls()):
            part, first = answer.call.part, answer.call.tag
            block = decoded(answer)
            outputs[first : first + len(block), part.outputs] += part.sign * block
        if not hop.device.capabilities.virtual_time:
            self.timed.rows.append((counted[0], counted[1], time.perf_counter() - started))
        return outputs
