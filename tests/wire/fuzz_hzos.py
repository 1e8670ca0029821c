"""Mutated bytes into the frame splitter, mutated bodies into both tables of HZO-S/1.

`python -m tests.wire.fuzz_hzos 1000000 7` runs a million of each. Nothing may raise but WireError at the host, nothing
may hold more than its stated limit.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np

from hzo_hil.devices.api import Query, Segment
from hzo_hil.devices.errors import DeviceError, WireError
from hzo_hil.devices.wire import hzos_frames as f
from hzo_hil.devices.wire.hzos_host import HzosHost
from hzo_hil.devices.wire.hzos_served import HzosServed
from tests.wire.hzos_parts import matrix_device

MTU = 96


def mutated(rng: random.Random, seed: bytes) -> bytes:
    """Some bytes changed, some taken, some put in; at times something of its own making."""
    made = bytearray(seed)
    for _ in range(rng.randrange(1, 4)):
        kind, at = rng.randrange(4), rng.randrange(len(made) + 1)
        if kind == 0 and made:
            made[at % len(made)] = rng.randrange(256)
        elif kind == 1:
            del made[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            made[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif made:
            made[at % len(made)] = rng.choice((0, 1, 15, 16, 127, 128, 255))
    return bytes(made)


def fuzz_splitter(count: int, rng: random.Random) -> None:
    seeds = [
        f.on_line(f.Frame(rng.randrange(16), i, 0, 0, i, rng.randbytes(size)).body())
        for i, size in enumerate(range(0, 84, 7))
    ]
    splitter, most = f.Splitter(MTU), f.line_bytes(MTU)
    for _ in range(count):
        for body in splitter.feed(mutated(rng, rng.choice(seeds))):
            assert f.HEADER.size <= len(body) <= MTU - f.CRC.size
        assert len(splitter._begun) <= most


def fuzz_served(count: int, rng: random.Random) -> None:
    driver = matrix_device(3, 2, 2)
    served = HzosServed(driver, mtu=MTU, window=4, boot=7)
    host = _greeted(served)
    seeds = [r.frames[0] for r in _requests(host)]
    for number in range(count):
        if number % 64 == 0:  # or one park ends it all
            for request in host.write(1, 0, {"weight": np.ones((2, 3))}):
                reply = served.receive(request.frames[0])
                for event in host.receive([reply]) if reply else ():
                    assert event.kind in ("part", "answer", "stranger", "pong")
            seeds = [r.frames[0] for r in _requests(host)]
        reply = served.receive(mutated(rng, rng.choice(seeds)))
        assert reply is None or f.HEADER.size <= len(reply) <= MTU - f.CRC.size
        assert len(served._answers) <= served.window
        assert len(served.board._image) == served.board.size
        assert sum(map(len, served.board._dirty.values())) <= 64 * 64


def fuzz_host(count: int, rng: random.Random) -> None:
    served = HzosServed(matrix_device(3, 2, 2), mtu=MTU, window=4, boot=7)
    host, seeds = _greeted(served), list[bytes]()
    for number in range(count):
        if number % 16 == 0:
            host = _greeted(served) if number % 256 == 0 else host
            try:
                requests = _requests(host)
            except DeviceError as error:  # a mutated greeting may have left it ungreeted
                assert "not been greeted" in str(error), repr(error)
                host = _greeted(served)
                requests = _requests(host)
            seeds = [r for q in requests if (r := served.receive(q.frames[0]))]
            if number % 48 == 0:
                seeds.append(served.receive(host.hello(False, "", 1.0).frames[0]) or b"")
        try:
            events = host.receive([mutated(rng, rng.choice(seeds))])
        except WireError:
            continue
        assert all(e.kind in ("answer", "part", "more", "ready", "refused", "stranger", "pong") for e in events)
        assert len(host._parts) <= 512
        host.drop([e.job for e in events if e.job >= 0])


def _greeted(served: HzosServed) -> HzosHost:
    host = HzosHost(nonce=1, first_id=1)
    host.place = "fuzzed"
    waiting = [host.hello(False, "", 1.0)]
    while waiting:
        reply = served.receive(waiting.pop(0).frames[0])
        assert reply is not None
        for event in host.receive([reply]):
            waiting += event.more
    return host


def _requests(host: HzosHost) -> list[object]:  # type: ignore[type-arg]
    rows = np.ones((2, 3), np.float32)
    found = [host.ping(), *host.run(1, Query(Segment(0, 2), rows)), *host.run(2, Query(Segment(0, 1), rows, repeats=4))]
    found += [*host.read(3, "parameters", 0), *host.read(4, "health"), *host.do(5, "park"), *host.do(6, "maintain")]
    return [*found, *host.write(7, 1, {"weight": np.ones((2, 2))})]


PARSERS: dict[str, Callable[[int, random.Random], None]] = {
    "splitter": fuzz_splitter, "served": fuzz_served, "host": fuzz_host,
}  # fmt: skip


def fuzz(count: int, seed: int, parsers: tuple[str, ...] = tuple(PARSERS)) -> dict[str, int]:
    """`count` mutated inputs into each parser; returns how many each took. Raises at the first misbehaviour."""
    for name in parsers:
        try:
            PARSERS[name](count, random.Random(f"{seed} {name}"))
        except Exception as error:
            raise AssertionError(f"the {name} of HZO-S/1, seed {seed}: {error!r}") from error
    return dict.fromkeys(parsers, count)


if __name__ == "__main__":
    print(fuzz(int(sys.argv[1]), int(sys.argv[2])))
