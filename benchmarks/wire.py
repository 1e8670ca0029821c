"""The wire: requests per second of a remote device against bare pyzmq sockets and raw TCP sockets, in the same run.

An echo device (what goes in comes out) is served in a process of its own; the host keeps `window` queries in flight.
The comparison is about 30 lines of pyzmq, DEALER to ROUTER, with the same payload and window, and the same with plain
sockets. Ours, bare and raw take turns; a ratio is the median over the turns. MiB/s counts both directions. A second
table: a device that answers 2 ms later, which every window must hide alike. A third: how busy a device that takes 2 ms
for 64 KiB is during a backward pass. `--quick`: fewer turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import _one_thread  # noqa: F401
from _rows import ROOT, Rows, arguments

SIZES = {4096: ">= 0.5", 65536: ">= 0.8", 2**20: ">= 0.8"}
WINDOW = 4
LATE_S = 0.002
LATE_WINDOWS = (1, 4, 16)


def served(kind: str, *details: str) -> tuple[subprocess.Popen[str], str]:
    """A process of `_wire_ends.py` and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "_wire_ends.py"), kind, *details], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def turns(rounds: int, seconds: float, sides: dict[str, Callable[[float], float]]) -> dict[str, list[float]]:
    """Requests per second of each side, one after the other, `rounds` times; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            rate = side(seconds if turn else seconds / 4)
            if turn:
                found[name].append(rate)
    return found


def compare(rows: Rows, case: str, size: int, found: dict[str, list[float]], target: str | None) -> None:
    ours = found["ours"]
    for name in ("bare pyzmq", "raw sockets"):
        if name not in found:
            continue
        rate = statistics.median(ours)
        rows.row(
            f"{case}", rate, "requests/s", against=name, target=target if name == "bare pyzmq" else None,
            ratio=statistics.median(a / b for a, b in zip(ours, found[name], strict=True)),
            theirs=statistics.median(found[name]), mib_per_s=2 * rate * size / 2**20,
        )  # fmt: skip


def main() -> None:
    from _wire_ends import bare_rate, raw_rate, remote_rate

    given = arguments(__doc__)
    rows = Rows()
    rounds, seconds = (3, 0.4) if given.quick else (7, 1.0)
    for size, target in SIZES.items():
        ends = {n: served(k, str(size)) for n, k in (("ours", "ours"), ("bare pyzmq", "bare"), ("raw sockets", "raw"))}
        try:
            sides: dict[str, Any] = {
                "ours": lambda s, size=size, ends=ends: remote_rate(ends["ours"][1], size, WINDOW, s),
                "bare pyzmq": lambda s, size=size, ends=ends: bare_rate(ends["bare pyzmq"][1], size, WINDOW, s),
                "raw sockets": lambda s, size=size, ends=ends: raw_rate(ends["raw sockets"][1], size, WINDOW, s),
            }
            compare(rows, f"{size // 1024} KiB echo, window {WINDOW}", size, turns(rounds, seconds, sides), target)
        finally:
            for process, _ in ends.values():
                process.kill()
    repeated(rows)
    late(rows, rounds, seconds)
    overlap(rows, rounds)
    rows.environment()
    rows.exit()


def repeated(rows: Rows) -> None:
    """What 16 shots that the device averages cost the link, against one."""
    from _wire_ends import link_cost

    process, url = served("ours", "4096")
    try:
        many, one = link_cost(url, 16), link_cost(url, 1)
    finally:
        process.kill()
    rows.row("16 repeats of a query", many[0], "messages", against="one", ratio=many[0] / one[0], target="<= 1")
    rows.row("16 repeats of a query", many[1], "bytes", against="one", ratio=many[1] / one[1], target="<= 1.01")


def late(rows: Rows, rounds: int, seconds: float) -> None:
    """Answers come 2 ms after their query, however many wait: the sockets' throughput is window / 2 ms."""
    from _wire_ends import bare_rate, remote_rate

    size = 65536
    ends = {n: served(k, str(size), str(LATE_S)) for n, k in (("ours", "ours_late"), ("bare pyzmq", "bare"))}
    try:
        for window in LATE_WINDOWS:
            found = turns(
                rounds, seconds,
                {
                    "ours": lambda s, w=window: remote_rate(ends["ours"][1], size, w, s),
                    "bare pyzmq": lambda s, w=window: bare_rate(ends["bare pyzmq"][1], size, w, s),
                },
            )  # fmt: skip
            compare(rows, f"64 KiB answered 2 ms later, window {window}", size, found, ">= 0.95")
    finally:
        for process, _ in ends.values():
            process.kill()


def overlap(rows: Rows, rounds: int) -> None:
    """Share of a backward pass in which the served device is at work."""
    from _wire_ends import busy_share

    process, url = served("ours_slow", "65536", str(LATE_S))
    try:
        shares = [busy_share(url) for _ in range(rounds)]
    finally:
        process.kill()
    rows.row(
        "device at work during a backward pass, 2 ms for 64 KiB", statistics.median(shares), "fraction",
        target=">= 0.9", worst=min(shares),
    )  # fmt: skip


if __name__ == "__main__":
    started = time.perf_counter()
    main()
