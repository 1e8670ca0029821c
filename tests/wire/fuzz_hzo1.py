"""Mutated HZO/1 messages into the parser and both session tables: no crash, no hang, no allocation beyond limits.

`fuzz(count, seed)` for a number of messages; the short form is a test, benchmarks run the long one.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np

from hzo_hil.devices.api import Query, Segment
from hzo_hil.devices.errors import CapabilityError, WireError
from hzo_hil.devices.manifest import to_json
from hzo_hil.devices.server import Server
from hzo_hil.devices.wire import messages as m
from hzo_hil.devices.wire.hzo1_host import Hzo1Host
from hzo_hil.devices.wire.hzo1_served import Hzo1Served, Job
from tests.wire.hzo1_parts import Counting, rows

PARSERS = ("decode", "host", "served", "server")
LIMITS = m.Limits(frames=16, array=1 << 16, total=1 << 17, meta=1 << 16)
Frames = list[bytes]


def fuzz(count: int, seed: int, parsers: tuple[str, ...] = PARSERS) -> dict[str, int]:
    """Feed `count` mutated messages to each parser; returns how many each took. Raises whatever escapes one."""
    done = {}
    for parser in parsers:
        source = _Mutator(random.Random(f"{parser} {seed}"))
        feed = _FEEDS[parser]()
        for _ in range(count):
            feed(source.next())
        done[parser] = count
    return done


def rate(count: int = 100_000, seed: int = 0) -> float:
    """Messages a second through `decode` alone, mutation apart."""
    source = _Mutator(random.Random(seed))
    messages = [source.next() for _ in range(min(count, 20_000))]
    feed, start = _decode(), time.perf_counter()
    for _ in range(max(1, count // len(messages))):
        for frames in messages:
            feed(frames)
    return max(1, count // len(messages)) * len(messages) / (time.perf_counter() - start)


class _Mutator:
    """Whole conversations, each message changed in one to three places (one in eight not at all)."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.seeds = _seeds()

    def next(self) -> Frames:
        draw = self.dice.random
        frames = list(self.seeds[int(draw() * len(self.seeds))])
        for _ in range(int(draw() * 4) if draw() > 0.125 else 0):
            self._change(frames)
        return frames

    def _change(self, frames: Frames) -> None:
        draw = self.dice.random
        what = draw()
        at = int(draw() * len(frames)) if frames else 0
        if not frames or what < 0.03:
            frames.insert(at, self.dice.randbytes(int(draw() * 40)))
            return
        frame = frames[at]
        if what < 0.06:
            del frames[at]
        elif what < 0.09:
            frames.append(frame)
        elif what < 0.15:
            frames[at] = frame[: int(draw() * len(frame))]
        elif what < 0.2:
            frames[at] = frame + self.dice.randbytes(int(draw() * 64))
        elif what < 0.25:
            other = self.seeds[int(draw() * len(self.seeds))]
            frames[at] = other[min(at, len(other) - 1)]
        elif frame:
            start = int(draw() * len(frame))
            width = (1, 1, 2, 4, 8)[int(draw() * 5)]
            value = _EDGES[int(draw() * len(_EDGES))] if draw() < 0.5 else self.dice.randbytes(8)
            frames[at] = frame[:start] + value[:width] + frame[start + width :]


_EDGES = [
    bytes(8),
    b"\xff" * 8,
    b"\x7f" * 8,
    b"\x80" + bytes(7),
    bytes(7) + b"\x80",
    b"[[[[[[[[",
    b'{"a":1e9',
    b"\x01\0\0\0\0\0\0\0",
]


def _seeds() -> list[Frames]:
    """Every kind of message, as both sides really send them."""
    host = Hzo1Host(7)
    served = Hzo1Served(to_json(Counting().capabilities), 1, features=("where", "park"))
    hello = host.hello(False, "run", 1.0).frames
    ready: Any = served.receive(b"p", _bytes(hello), 0.0)
    host.receive(_bytes(ready))
    w = np.eye(4, dtype=np.float32)
    query = Query(Segment(0, 1), rows(1.0, 2), (), 3, np.arange(2, dtype=np.uint64))
    asked = [
        host.write(0, 0, {"w": w}, key=5)[0],
        host.write(1, 0, {"w": w}, {"w": np.array([1, 5])})[0],
        host.run(2, query)[0],
        host.run(3, Query(Segment(0, 1), rows(2.0)))[0],
        host.read(4, "parameters")[0],
        host.read(5, "snapshot")[0],
        host.do(6, "park")[0],
        host.ping(),
    ]
    messages = [hello, ready, host.bye().frames, *(r.frames for r in asked)]  # type: ignore[union-attr]
    meta = b'{"seconds":0.001,"monitors":{"power":0.5}}'
    messages += [
        m.encode(m.RESULT, 7, 3, meta=meta, arrays=[rows(1.0)], roles=[1], version=2, credit=16),
        m.encode(m.RESULT, 7, 4, arrays=[rows(1.0)], roles=[1], version=2, credit=16),
        m.encode(m.SNAPSHOT, 7, 5, meta=b'{"names":["w"]}', arrays=[w], roles=[0]),
        m.encode(m.ACK, 7, 1, version=1, credit=16),
        m.encode(m.PONG, 7, 0, credit=16),
        m.encode(m.ERROR, 7, 3, meta=b'{"code":"STALE","text":"old"}'),
        m.encode(m.ERROR, 7, 4, meta=b'{"code":"DEVICE","text":"broken"}'),
        m.encode(m.ERROR, 7, 0, meta=b'{"code":"SESSION","text":"who?"}'),
        m.encode(m.ERROR, 7, 0, meta=b'{"code":"BUSY","text":"later"}'),
    ]
    return [_bytes(f) for f in messages]


def _bytes(frames: Any) -> Frames:
    return [f if type(f) is bytes else f.tobytes() for f in frames]


def _decode() -> Any:
    def feed(frames: Frames) -> None:
        try:
            message = m.decode(frames, LIMITS)
            message.options()
        except WireError:
            return
        assert sum(a.nbytes for a in message.arrays) <= LIMITS.total

    return feed


def _host() -> Any:
    host, turn = Hzo1Host(7, LIMITS), 0

    def feed(frames: Frames) -> None:
        nonlocal turn
        turn += 1
        if turn % 64 == 1:
            host._pending.clear()
            host._seq = 0
            for job in range(3):
                host.run(job, Query(Segment(0, 1), rows(1.0)))
            host.read(3, "parameters")
            host.hello(False, "", 1.0)
        try:
            events = host.receive(frames)
        except (WireError, CapabilityError):
            return
        assert len(events) <= 1 and len(host._pending) <= 4

    return feed


def _served() -> Any:
    served = Hzo1Served(to_json(Counting().capabilities), 1, 4, ("where",), limits=LIMITS)
    turn = 0

    def feed(frames: Frames) -> None:
        nonlocal turn
        turn += 1
        try:
            what = served.receive(b"p", frames, turn * 0.1)
        except WireError:
            return
        if isinstance(what, Job):
            if turn % 3:
                served.answered(what, [rows(1.0)], [1], b"{}")
            else:
                served.refused(what, "DEVICE", "no")
        assert served.session is None or len(served.session.kept) <= 8

    return feed


def _server() -> Any:
    """The whole server, its driver included: whatever comes, it answers or drops."""
    device = Counting(max_batch=64)
    server = Server(device, f"memory://fuzz{id(device)}")
    server.open()
    server.log.disabled = True
    server._listener.close()

    def feed(frames: Frames) -> None:
        device.runs.clear()
        device.calls.clear()
        server._take(b"nobody", frames)

    return feed


_FEEDS = {"decode": _decode, "host": _host, "served": _served, "server": _server}
