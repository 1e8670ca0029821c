"""A transport that treats messages badly, for fault tests: drops, doubles, delays and swaps them, both ways."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from hzo_hil.devices.transports import Transport

Buffer = Any
Message = list[Buffer]


class ChaosTransport:
    """`inner`, but a message is, with chance `rate` each, dropped, doubled, delayed by up to `delay_s`, overtaken."""

    def __init__(
        self,
        inner: Transport,
        seed: int,
        rate: float = 0.05,
        delay_s: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
        slice_s: float = 0.005,
    ) -> None:
        self.inner = inner
        self.rate = rate
        self.delay_s = delay_s
        self.events = 0
        self._random = random.Random(seed)
        self._clock = clock
        self._slice_s = slice_s
        self._out: list[tuple[float, Message]] = []
        self._in: list[tuple[float, Message]] = []

    @property
    def problem(self) -> str:
        return self.inner.problem

    @property
    def bad_frames(self) -> int:
        return self.inner.bad_frames

    def open(self) -> None:
        self._out.clear()
        self._in.clear()
        self.inner.open()

    def close(self) -> None:
        self.inner.close()

    def send(self, frames: Sequence[Buffer]) -> bool:
        self._mistreat(self._out, list(frames))
        self._release()
        return True

    def receive(self, timeout: float) -> list[Message]:
        deadline = self._clock() + timeout
        while True:
            self._release()
            left = max(0.0, deadline - self._clock())
            for message in self.inner.receive(min(left, self._slice_s)):
                self._mistreat(self._in, list(message))
            ready = self._ready(self._in)
            if ready or self._clock() >= deadline:
                return ready

    def _release(self) -> None:
        for message in self._ready(self._out):
            self.inner.send(message)

    def _mistreat(self, line: list[tuple[float, Message]], message: Message) -> None:
        now, draw = self._clock(), self._random.random
        if draw() < self.rate:
            self.events += 1
            return
        late = now + draw() * self.delay_s if draw() < self.rate else now
        line.append((late, message))
        if draw() < self.rate:
            line.append((now + draw() * self.delay_s, message))
        if draw() < self.rate and len(line) > 1:
            line[-1], line[-2] = line[-2], line[-1]
        self.events += late > now

    def _ready(self, line: list[tuple[float, Message]]) -> list[Message]:
        now = self._clock()
        ready = [m for t, m in line if t <= now]
        line[:] = [(t, m) for t, m in line if t > now]
        return ready
