"""What the HZO/1 tests share: a device that counts, and a host and its server on one thread with one false clock."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from hzo_hil.devices.api import BoundarySpec, Capabilities, Health, ParameterSpec, Reply, Segment, StageSpec
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.server import Server
from hzo_hil.devices.transports.chaos import ChaosTransport
from hzo_hil.devices.transports.memory import MemoryTransport

WIDTH = 4
WHOLE = Segment(0, 1)
EYE = np.eye(WIDTH, dtype=np.float32)
_names = itertools.count()


class Counting:
    """y = x W; counts how often each input (its first number is its name) was run."""

    def __init__(self, **changed: Any) -> None:
        stage = StageSpec("matrix", WIDTH, WIDTH, (ParameterSpec("w", (WIDTH, WIDTH)),))
        options: dict[str, Any] = {"longest_call_s": 0.2, **changed}
        self.capabilities = Capabilities("counting", (stage,), (BoundarySpec(), BoundarySpec()), **options)
        self.w = np.eye(WIDTH, dtype=np.float32)
        self.runs: Counter[float] = Counter()
        self.calls: list[str] = []
        self.where: Any = None

    def open(self) -> None:
        self.calls.append("open")

    def run(self, segment: Segment, inputs: Any) -> Reply:
        self.runs.update(inputs[:, 0].tolist())
        return Reply(inputs @ self.w, monitors={"power": 0.5})

    def write(self, stage: int, parameters: Mapping[str, Any], where: Any = None) -> None:
        self.calls.append("write")
        self.w, self.where = parameters["w"].astype(np.float32), where

    def read(self, stage: int) -> Mapping[str, Any]:
        return {"w": self.w}

    def snapshot(self) -> Mapping[str, Any]:
        return {"serial": "A1", "temperature": np.float32(25)}

    def health(self) -> Health:
        return Health(True, "well")

    def park(self) -> None:
        self.calls.append("park")
        self.w = np.zeros_like(self.w)

    def close(self) -> None:
        self.calls.append("close")


class TwoStages(Counting):
    """Two matrices in a row."""

    def __init__(self) -> None:
        super().__init__()
        stages = tuple(StageSpec(n, WIDTH, WIDTH, (ParameterSpec("w", (WIDTH, WIDTH)),)) for n in ("first", "second"))
        self.capabilities = Capabilities("two", stages, (BoundarySpec(),) * 3, longest_call_s=0.2)
        self.held = {0: EYE, 1: EYE}

    def run(self, segment: Segment, inputs: Any) -> Reply:
        self.runs.update(inputs[:, 0].tolist())
        for stage in range(segment.lo, segment.hi):
            inputs = inputs @ self.held[stage]
        return Reply(inputs)

    def write(self, stage: int, parameters: Mapping[str, Any], where: Any = None) -> None:
        self.held[stage] = parameters["w"]


class Rig:
    """A server and hosts in one thread. Time passes only when a host waits and the server has nothing to do."""

    def __init__(self, device: Any = None, **options: Any) -> None:
        self.now = 100.0
        self.url = f"memory://rig{next(_names)}"
        self.device = device if device is not None else Counting()
        self.options = options
        self.hung = False
        self.server: Server | None = None
        self.boots = 0
        self.start()

    def start(self) -> None:
        self.boots += 1
        self.server = Server(self.device, self.url, clock=lambda: self.now, boot=self.boots, **self.options)
        self.server.open()

    def kill(self) -> None:
        """As -9 does: nothing is said, nothing is parked."""
        assert self.server is not None
        self.server._listener.close()
        self.server = None

    def idle(self, timeout: float) -> None:
        if self.server is not None and not self.hung:
            if not self.server._listener.inbox.empty():
                self.server.step(0.0)
                return
            self.server._watch()
        self.now += min(timeout, 0.005)

    def host(self, chaos: int | None = None, rate: float = 0.05, **options: Any) -> RemoteDevice:
        transport: Any = MemoryTransport(self.url, idle=self.idle)
        if chaos is not None:
            transport = ChaosTransport(transport, chaos, rate, clock=lambda: self.now)
        return RemoteDevice(self.url, clock=lambda: self.now, transport=transport, **options)

    def wait(self, host: RemoteDevice, seconds: float) -> None:
        """Let a host idle for a while."""
        end = self.now + seconds
        while self.now < end:
            host._step(0.05)


def rows(name: float, count: int = 1) -> Any:
    """`count` inputs of which the first number is their name."""
    x = np.full((count, WIDTH), 0.25, np.float32)
    x[:, 0] = name + np.arange(count)
    return x
