"""What the tests of HZO-S/1 share: a small exact device, a noisy line in virtual time, whole jobs over it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from hzo_hil.devices.api import BoundarySpec, Capabilities, Health, ParameterSpec, Reply, Segment, StageSpec
from hzo_hil.devices.errors import DeviceRebooted
from hzo_hil.devices.wire import hzos_frames as f
from hzo_hil.devices.wire.conversation import Event, Request
from hzo_hil.devices.wire.hzos_host import HzosHost
from hzo_hil.devices.wire.hzos_served import HzosServed
from hzo_hil.devices.wire.window import Window

TOP = 32767 / 256


class MatrixDevice:
    """Stages y = W x. `ran` counts the rows seen, by the bytes of each row; `writes` keeps what was written."""

    def __init__(self, widths: tuple[int, ...] = (2, 2), **declared: Any) -> None:
        ends = BoundarySpec(low=-TOP, high=TOP, out_low=-TOP, out_high=TOP)
        stages = tuple(
            StageSpec(f"w{i}", n, m, (ParameterSpec("weight", (m, n), -TOP, TOP),))
            for i, (n, m) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.capabilities = Capabilities("matrix", stages, (ends,) * len(widths), **declared)
        self.weights = [np.zeros(s.parameters[0].shape, np.float32) for s in stages]
        self.ran: dict[bytes, int] = {}
        self.writes: list[tuple[int, Any]] = []
        self.parked = 0
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.closed += 1

    def run(self, segment: Segment, inputs: Any) -> Reply:
        for row in inputs:
            self.ran[row.tobytes()] = self.ran.get(row.tobytes(), 0) + 1
        for stage in range(segment.lo, segment.hi):
            inputs = inputs @ self.weights[stage].T
        return Reply(np.ascontiguousarray(inputs, self.capabilities.dtype))

    def write(self, stage: int, parameters: Mapping[str, Any], where: Any = None) -> None:
        self.writes.append((stage, where))
        self.weights[stage] = np.array(parameters["weight"])

    def read(self, stage: int) -> Mapping[str, Any]:
        return {"weight": self.weights[stage]}

    def snapshot(self) -> Mapping[str, Any]:
        return {"temperature": 21.5, "writes": len(self.writes)}

    def health(self) -> Health:
        return Health(True)

    def park(self) -> None:
        self.parked += 1


def matrix_device(*widths: int, **declared: Any) -> MatrixDevice:
    return MatrixDevice(widths or (2, 2), **declared)


class NoisyLine:
    """One direction: each byte is corrupted, lost or doubled by garbage with probability `rate` / 3 each."""

    def __init__(self, rng: random.Random, rate: float) -> None:
        self._rng, self._rate = rng, rate

    def pass_on(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            fate = self._rng.random() / self._rate if self._rate else 1.0
            if fate >= 1:
                out.append(byte)
            elif fate < 1 / 3:
                out.append(byte ^ (1 << self._rng.randrange(8)))
            elif fate < 2 / 3:
                out += bytes((self._rng.randrange(256), byte))
        return bytes(out)


class Bench:
    """Host, window, noisy line and served device in virtual time: one turn is a millisecond."""

    def __init__(self, served: HzosServed, rate: float = 0.0, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.served, self.host = served, HzosHost(nonce=rng.getrandbits(32), first_id=rng.randrange(1, 1 << 30))
        self.host.place = "matrix at test"
        self.window = Window(1, longest_call_s=0.5, probes=False, shortest_s=0.01)
        self.now = 0.0
        self._up, self._down = NoisyLine(rng, rate), NoisyLine(rng, rate)
        self._to_device, self._to_host = f.Splitter(served.mtu), f.Splitter(served.mtu)
        self._waiting: deque[Request] = deque()
        self._greeting: dict[int, Request] = {}
        self.results: dict[int, Any] = {}
        self.greetings = 0

    def greet(self) -> Any:
        """HELLO and what follows, repeated until the device is ready; returns the Welcome."""
        self.greetings += 1
        self._greeting = {-1: self.host.hello(False, "", 1.0)}
        for _ in range(500):
            for request in list(self._greeting.values()):
                for event in self._sent(request):
                    if event.kind == "ready":
                        if not event.result.resumed:
                            self.window.clear()
                            self._waiting.clear()
                        self.window.credit = self.host.credit
                        return event.result
                    if event.kind == "refused":
                        raise event.result
                    if event.kind == "more":
                        self._greeting.pop(event.seq if event.seq >= 0 else -1, None)
                        self._greeting |= {r.seq: r for r in event.more}
            self.now += 0.001
        raise AssertionError("never greeted")

    def jobs(self, *requests: list[Request]) -> None:
        """Carries requests until everything in flight is answered."""
        for some in requests:
            self._waiting.extend(some)
        for _ in range(200_000):
            if not self._waiting and not len(self.window):
                return
            while self._waiting and self.window.room(self._waiting[0]):
                request = self._waiting.popleft()
                self.window.add(request, self.now)
                self._take(self._sent(request))
            for request in self.window.due(self.now):
                self._take(self._sent(request))
            self.now += 0.001
        raise AssertionError("never answered")

    def job(self, requests: list[Request]) -> Any:
        """The result of one job, raised if it is an error."""
        self.jobs(requests)
        result = self.results.pop(requests[0].job)
        if isinstance(result, Exception):
            raise result
        return result

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self.window.heard(self.now)
            if event.kind == "stranger":
                failed = self.window.clear()
                self._waiting.clear()
                for request in failed:
                    self.results[request.job] = DeviceRebooted("forgotten")
                self.greet()
                return
            if event.seq >= 0:
                self.window.take(event.seq, self.now)
            if event.kind == "answer":
                self.results[event.job] = event.result

    def _sent(self, request: Request) -> list[Event]:
        events: list[Event] = []
        for body in self._to_device.feed(self._up.pass_on(f.on_line(request.frames[0]))):
            self.served.bad_frames = self._to_device.bad_frames
            reply = self.served.receive(body)
            if reply is None:
                continue
            for answer in self._to_host.feed(self._down.pass_on(f.on_line(reply))):
                events += self.host.receive([answer])
        return events
