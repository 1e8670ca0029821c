"""The fake device with queries in flight: answers come late, out of order, or never, as scripted.

It knows nothing of threads or deadlines: whoever polls decides how long to wait.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hzo_hil.devices.api import Query, Reply
from hzo_hil.devices.errors import CapabilityError, DeviceError
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.devices.fake_stages import FakeStage

NEVER = float("inf")


@dataclass
class _Flying:
    ready: float
    outcome: Reply | Exception


class PipelinedFakeDevice(FakeDevice):
    """The same device with up to `window` queries in flight; writes and queries take effect in the order they came.

    With `virtual_time` nothing sleeps: a `poll` that finds nothing ready moves `seconds` on instead.
    """

    def __init__(self, stages: Sequence[FakeStage], *, window: int = 8, **options: Any) -> None:
        super().__init__(stages, **options)
        if window < 1:
            raise CapabilityError(f"{self._name}: a window of {window} lets nothing through; it must be at least 1")
        self.window = window
        self.most_in_flight = 0
        self.cancelled = 0
        self._flying: dict[int, _Flying] = {}
        self._order = random.Random(self.script.seed)

    def submit(self, query: Query) -> int:
        with self._alone():
            if len(self._flying) >= self.window:
                raise CapabilityError(f"{self._name}: a query beyond its window of {self.window} was submitted")
            number = self._record(query).number
            outcome = self._outcome(query, number)
            hangs = number in self.script.hang
            ready = NEVER if hangs else self._now() + self._call_seconds(number)
            self._flying[number] = _Flying(ready, outcome)
            self.most_in_flight = max(self.most_in_flight, len(self._flying))
            return number

    def poll(self, timeout: float) -> list[tuple[int, Reply | Exception]]:
        with self._alone():
            if not self._flying:
                return []
            self._wait(min(self._now() + timeout, *(f.ready for f in self._flying.values())))
            ready = sorted((f.ready, ticket) for ticket, f in self._flying.items() if f.ready <= self._now())
            tickets = [ticket for _, ticket in ready]
            if self.script.reorder and tickets:
                tickets = [self._order.choice(tickets)]
            return [(ticket, self._flying.pop(ticket).outcome) for ticket in tickets]

    def cancel(self) -> None:
        with self._alone():
            self.cancelled += len(self._flying)
            self._flying.clear()

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def _outcome(self, query: Query, number: int) -> Reply | Exception:
        try:
            return self._answer(query, number)
        except DeviceError as error:
            return error

    def _now(self) -> float:
        return self.seconds if self.capabilities.virtual_time else time.monotonic()

    def _wait(self, until: float) -> None:
        if self.capabilities.virtual_time:
            self.seconds = max(self.seconds, until)
        elif until > (now := time.monotonic()):
            time.sleep(until - now)
