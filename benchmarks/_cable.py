"""A serial cable without hardware: a process between two ptys, as slow and as noisy as asked. POSIX only.

`Cable(baud=115200)` names its two ends, `host` and `device`, for pyserial to open. Each direction has its own clock: a
byte takes ten bits' time, and none leaves before the one ahead of it has. Noise: `noise` is a byte's chance of mishap;
a third each is to be changed, lost, or joined by an invented one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HELD = 4096
"""Bytes a sender may be ahead of the line, as a UART driver's buffer allows."""


class Cable:
    """Runs until closed. `baud` 0: as fast as it goes."""

    def __init__(self, baud: int = 0, noise: float = 0.0, seed: int = 0, slice_s: float = 0.0002) -> None:
        line = [sys.executable, str(Path(__file__).resolve()), str(baud), str(noise), str(seed), str(slice_s)]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.host, self.device = self._process.stdout.readline().split()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Direction:
    """From one pty's master to the other's."""

    def __init__(self, source: int, sink: int, rate: float, noise: float, rng: random.Random) -> None:
        self.source, self.sink = source, sink
        self._rate, self._noise, self._rng = rate, noise, rng
        self._waiting = bytearray()
        self._free_at = 0.0  # when the line has sent what it has begun

    @property
    def takes_more(self) -> bool:
        return len(self._waiting) < HELD

    @property
    def idle(self) -> bool:
        return not self._waiting

    def take(self, now: float) -> None:
        """What the sender wrote joins the queue."""
        with contextlib.suppress(OSError):
            data = os.read(self.source, HELD - len(self._waiting))
            if not self._waiting:
                self._free_at = max(self._free_at, now)
            self._waiting += data

    def give(self, now: float) -> None:
        """What has been on the line for its time arrives."""
        count = len(self._waiting)
        if self._rate:
            count = min(count, int((now - self._free_at) * self._rate))
            self._free_at += count / self._rate
        if count > 0:
            data = bytes(self._waiting[:count])
            del self._waiting[:count]
            with contextlib.suppress(OSError):
                os.write(self.sink, self._noisy(data) if self._noise else data)

    def _noisy(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            fate = 3 * self._rng.random() / self._noise
            if fate >= 3:
                out.append(byte)
            elif fate < 1:
                out.append(byte ^ (1 << self._rng.randrange(8)))
            elif fate < 2:
                out += bytes((byte, self._rng.randrange(256)))
        return bytes(out)


def main() -> None:
    import pty
    import tty

    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("baud", int), ("noise", float), ("seed", int), ("slice_s", float)):
        parser.add_argument(name, type=kind)
    args = parser.parse_args()
    (one, one_end), (two, two_end) = pty.openpty(), pty.openpty()
    for end in (one_end, two_end):
        tty.setraw(end)
    for master in (one, two):
        os.set_blocking(master, False)
    print(os.ttyname(one_end), os.ttyname(two_end), flush=True)
    rng = random.Random(args.seed)
    ways = [Direction(a, b, args.baud / 10, args.noise, rng) for a, b in ((one, two), (two, one))]
    while True:
        sources = [w.source for w in ways if w.takes_more]
        patience = None if all(w.idle for w in ways) else args.slice_s
        ready, _, _ = select.select([*sources, sys.stdin.fileno()], [], [], patience)
        if sys.stdin.fileno() in ready:
            return
        now = time.perf_counter()
        for way in ways:
            if way.source in ready:
                way.take(now)
            way.give(now)
        if len(ready) and patience is not None:
            time.sleep(args.slice_s)  # a busy sender would otherwise make this loop spin


if __name__ == "__main__":
    main()
