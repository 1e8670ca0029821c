"""What `faults.py` breaks: device processes that log every query they run, and a way between them that loses frames.

Usage: python _fault_ends.py serve LOG BIND [IDENTITY] | chaos SERVER_URL SHARE SEED
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import zmq
from _rows import ROOT

from hzo_hil.opening import open_device

DEVICE = {
    "kind": "emulator", "options": {"widths": [8, 12, 6], "activation": "tanh"}, "max_batch": 32, "seed": 3,
    "longest_call_s": 0.2,
}  # fmt: skip


class Logged:
    """The simulated device; each call it runs is a line "boot first-key rows" in a file that outlives it."""

    def __init__(self, log: Path) -> None:
        self._device = open_device(DEVICE)
        self._file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._compared = 0
        self._boot = f"{os.getpid()}-{time.time_ns()}"
        os.write(self._file, f"{self._boot} up 0\n".encode())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def run(self, segment: Any, inputs: Any, taps: Any = (), repeats: int = 1, keys: Any = None) -> Any:
        # Noise keys of the host's queries are 64-bit hashes. Over a serial line there are none: inputs name a query.
        name = f"{segment.lo}-{segment.hi}-{zlib.crc32(inputs.tobytes()) if keys is None else int(keys[0])}"
        if keys is not None and keys[0] < 1 << 16:
            # A pool compares its members with keys that count from 0, again whenever one may be back.
            self._compared += 1
            name = f"compared-{self._compared}"
        os.write(self._file, f"{self._boot} {name} {len(inputs)}\n".encode())
        return self._device.run(segment, inputs, taps, repeats, keys)

    def park(self) -> None:
        os.write(self._file, f"{self._boot} parked {time.monotonic()}\n".encode())


def served_twice(log: Path) -> tuple[int, int, int]:
    """(queries run, boots, queries that ran more than once in one boot)."""
    lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    ran = Counter((boot, name) for boot, name, _ in lines if name not in ("up", "parked"))
    return sum(ran.values()), len({boot for boot, *_ in lines}), sum(1 for n in ran.values() if n > 1)


class Process:
    """One of these ends, in a process of its own; `url` is the line it prints."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        line = [sys.executable, str(ROOT / "benchmarks" / "_fault_ends.py"), *self._arguments]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def serve(log: str, bind: str) -> None:
    from hzo_hil.devices.serving import server_for

    while True:
        try:
            server = server_for(Logged(Path(log)), bind, park_after_s=3.0)
            break
        except ValueError:  # the port of the one that was killed is not free yet
            time.sleep(0.05)
    print(server.url, flush=True)
    server.serve()


def chaos(server: str, share: str, seed: str) -> None:
    """Between a host and a server: each message is dropped, doubled, delayed or overtaken with probability `share`."""
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port("tcp://127.0.0.1")
    back.connect(server.removeprefix("zmq+"))
    print(f"zmq+tcp://127.0.0.1:{port}", flush=True)
    rng, p = random.Random(int(seed)), float(share)
    peer = b""
    waiting: list[tuple[float, zmq.Socket[bytes], list[bytes]]] = []
    held: dict[int, list[bytes]] = {}
    while True:
        for socket in (front, back):
            if not socket.poll(1):
                continue
            message = socket.recv_multipart()
            if socket is front:
                peer, message = message[0], message[1:]
            onward = back if socket is front else front
            fate = rng.random()
            if fate < p:
                continue
            waiting.append((time.monotonic() + (0.02 if p <= fate < 2 * p else 0), onward, message))
            if 2 * p <= fate < 3 * p:
                waiting.append(waiting[-1])
            if 3 * p <= fate < 4 * p:  # kept until the next one has passed
                held.setdefault(id(onward), waiting.pop()[2])
            elif id(onward) in held:
                waiting.append((0.0, onward, held.pop(id(onward))))
        now = time.monotonic()
        for _, onward, message in [w for w in waiting if w[0] <= now]:
            onward.send_multipart([peer, *message] if onward is front else message)
        waiting = [w for w in waiting if w[0] > now]


if __name__ == "__main__":
    {"serve": serve, "chaos": chaos}[sys.argv[1]](*sys.argv[2:])
