"""The two ends that `wire.py` measures: device sides, each a process that prints its address, and host sides.

Usage: python _wire_ends.py KIND BYTES [SECONDS], KIND one of ours, ours_late, ours_slow, bare, raw.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import zmq
from _rows import ROOT  # noqa: F401  (puts the checkout on the path)

from hzo_hil.devices.api import BoundarySpec, Capabilities, Health, ParameterSpec, Query, Reply, Segment, StageSpec

WIDTH = 64
SLOW_STAGES = 4


# --- device sides ----------------------------------------------------------------------------------------------


class Echo:
    """One stage that gives back what it gets."""

    def __init__(self, stages: int = 1, parameters: tuple[ParameterSpec, ...] = (), **declared: Any) -> None:
        self.capabilities = Capabilities(
            "echo",
            tuple(StageSpec(f"stage{k}", WIDTH, WIDTH, parameters) for k in range(stages)),
            (BoundarySpec(),) * (stages + 1),
            **declared,
        )
        self.written: dict[int, Mapping[str, Any]] = {}

    def open(self) -> None: ...
    def close(self) -> None: ...

    def run(self, segment: Segment, inputs: Any) -> Reply:
        return Reply(inputs)

    def write(self, stage: int, parameters: Mapping[str, Any], where: Any = None) -> None:
        self.written[stage] = dict(parameters)

    def read(self, stage: int) -> Mapping[str, Any]:
        return self.written.get(stage, {})

    def snapshot(self) -> Mapping[str, Any]:
        return {}

    def health(self) -> Health:
        return Health(True)


class Slow(Echo):
    """tanh(W a) in a time of its own: a call takes `seconds`, whatever the computer that simulates it needs."""

    def __init__(self, size: int, seconds: float) -> None:
        weight = ParameterSpec("weight", (WIDTH, WIDTH))
        super().__init__(SLOW_STAGES, (weight,), max_batch=size // (4 * WIDTH), longest_call_s=1.0)
        self.seconds = seconds

    def run(self, segment: Segment, inputs: Any) -> Reply:
        start = time.perf_counter()
        values = inputs
        for stage in range(segment.lo, segment.hi):
            values = np.tanh(values @ self.written[stage]["weight"].T)
        time.sleep(max(0.0, self.seconds - (time.perf_counter() - start)))
        return Reply(np.ascontiguousarray(values))


def wait_for(router: Any, leaving: deque[Any], most_s: float) -> None:
    """Until a message may have come or the next answer is due. Unlike a socket's own wait, in fractions of a ms.

    Both late devices wait so, each after it has received all there was: the descriptor tells of what comes later only.
    """
    if leaving:
        most_s = min(most_s, max(0.0, leaving[0][0] - time.perf_counter()))
    select.select([router.fd], [], [], most_s)


class Late:
    """A listener whose answers leave `delay` seconds after their queries came, as the bare one's do."""

    def __init__(self, listener: Any, delay: float) -> None:
        self._listener = listener
        self._delay = delay
        self._leaving: deque[tuple[float, Any, Any]] = deque()
        self._due = 0.0
        self.url = listener.url

    def receive(self, timeout: float) -> Any:
        while self._leaving and self._leaving[0][0] <= time.perf_counter():
            self._listener.send(*self._leaving.popleft()[1:])
        found = self._listener.receive(0.0)
        self._due = time.perf_counter() + self._delay
        if not found:
            wait_for(self._listener._socket, self._leaving, timeout)
        return found

    def send(self, peer: Any, frames: Any) -> None:
        self._leaving.append((self._due, peer, frames))

    def close(self) -> None:
        self._listener.close()


def ours(size: int, late_s: float = 0.0, slow: bool = False) -> None:
    from hzo_hil.devices.server import Server

    device = Slow(size, late_s) if slow else Echo()
    server = Server(device, "tcp://127.0.0.1:0", credit=16, park_after_s=0)
    if late_s and not slow:
        server._listener = Late(server._listener, late_s)
    print("zmq+" + server.url, flush=True)
    server.serve()


def bare(size: int, late_s: float = 0.0) -> None:
    """Echo over a ROUTER, as one would write it by hand."""
    router = zmq.Context().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(f"tcp://127.0.0.1:{port}", flush=True)
    leaving: deque[tuple[float, Any]] = deque()
    while not late_s:
        router.send_multipart(router.recv_multipart(copy=False), copy=False)
    while True:
        while leaving and leaving[0][0] <= time.perf_counter():
            router.send_multipart(leaving.popleft()[1], copy=False)
        try:
            leaving.append((time.perf_counter() + late_s, router.recv_multipart(zmq.NOBLOCK, copy=False)))
        except zmq.Again:
            wait_for(router, leaving, 1.0)


def raw(size: int) -> None:
    """Echo over a plain socket: a length and the bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        line, _ = listener.accept()
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        room = bytearray(size + 4)
        with suppress(ConnectionError):  # a host that has measured enough hangs up
            while _fill(line, room):
                line.sendall(room)


def _fill(line: socket.socket, room: bytearray) -> bool:
    view = memoryview(room)
    while view:
        got = line.recv_into(view)
        if not got:
            return False
        view = view[got:]
    return True


# --- host sides ------------------------------------------------------------------------------------------------


def remote_rate(url: str, size: int, window: int, seconds: float) -> float:
    """Requests per second of a RemoteDevice with `window` queries in flight."""
    from hzo_hil.devices.remote import RemoteDevice

    device = RemoteDevice(url)
    query = Query(Segment(0, 1), np.ones((size // (4 * WIDTH), WIDTH), dtype=np.float32))
    device.open()
    flying = answered = 0
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        while flying < window:
            device.submit(query)
            flying += 1
        for _, reply in device.poll(1.0):
            if isinstance(reply, Exception):
                raise reply
            flying -= 1
            answered += 1
    device.close()
    return answered / (now - start)


def bare_rate(address: str, size: int, window: int, seconds: float) -> float:
    context = zmq.Context.instance()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(address)
    header, payload = b"h" * 32, np.ones(size // 4, dtype=np.float32)
    flying = answered = 0
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        while flying < window:
            dealer.send_multipart([header, payload], copy=False)
            flying += 1
        frames = dealer.recv_multipart(copy=False)
        np.frombuffer(frames[1].buffer, dtype=np.float32)
        flying -= 1
        answered += 1
    dealer.close(linger=0)
    return answered / (now - start)


def raw_rate(port: str, size: int, window: int, seconds: float) -> float:
    line = socket.create_connection(("127.0.0.1", int(port)))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = struct.pack("<I", size) + np.ones(size // 4, dtype=np.float32).tobytes()
    room = bytearray(len(message))
    flying = answered = 0
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        while flying < min(window, max(1, 2**20 // size)):  # both ends only write until they read: do not fill the line
            line.sendall(message)
            flying += 1
        _fill(line, room)
        flying -= 1
        answered += 1
    line.close()
    return answered / (now - start)


class Counted:
    """A transport that counts messages and bytes, both ways."""

    def __init__(self, url: str) -> None:
        from hzo_hil.devices.transports import transport_to

        self._inner = transport_to(url)
        self.messages = self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, frames: Any) -> bool:
        self._count(frames)
        return bool(self._inner.send(frames))

    def receive(self, timeout: float) -> Any:
        found = self._inner.receive(timeout)
        for frames in found:
            self._count(frames)
        return found

    def _count(self, frames: Any) -> None:
        self.messages += 1
        self.bytes += sum(memoryview(f).nbytes for f in frames)


def link_cost(url: str, repeats: int) -> tuple[int, int]:
    """(messages, bytes) on the link for one query of so many repeats, both ways."""
    from hzo_hil.devices.remote import RemoteDevice

    transport = Counted(url)
    device = RemoteDevice(url, transport=transport, ping_s=60.0)
    device.open()
    before = transport.messages, transport.bytes
    device.run(Segment(0, 1), np.ones((64, WIDTH), dtype=np.float32), repeats=repeats)
    after = transport.messages, transport.bytes
    device.close()
    return after[0] - before[0], after[1] - before[1]


def busy_share(url: str) -> float:
    """Fraction of a backward pass that the served device spends in its calls."""
    import torch

    import hzo_hil

    torch.manual_seed(0)
    device = hzo_hil.open_device(url)
    opaque = hzo_hil.Opaque(
        [hzo_hil.Stage(device, k, leaf=_delta()) for k in range(SLOW_STAGES)],
        tree="chain",
        probes="coordinate",
        eps=0.01,
    )
    outputs = opaque(torch.randn(128, WIDTH))
    before = opaque.ledger.accounts["probes"].device_seconds
    start = time.perf_counter()
    outputs.square().sum().backward()
    wall = time.perf_counter() - start
    busy = opaque.ledger.accounts["probes"].device_seconds - before
    from hzo_hil.link import link_to

    link_to(device).close()
    return busy / wall


def _delta() -> Any:
    from hzo_hil.updates.delta import DeltaRule

    return DeltaRule("tanh")


if __name__ == "__main__":
    kind, size, *rest = sys.argv[1:]
    if kind == "bare":
        bare(int(size), *map(float, rest))
    elif kind == "raw":
        raw(int(size))
    else:
        ours(int(size), *map(float, rest), slow=kind == "ours_slow")
