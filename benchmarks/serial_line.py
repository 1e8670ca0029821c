"""Queries per second over a paced serial line, against what its speed allows.

Three processes: this host (RemoteDevice), a cable between two ptys that lets no byte through faster than baud / 10 a
second in each direction (`_cable.py`), and a device that gives back what it is given: the firmware's protocol in C
where there is a compiler, as a microcontroller would run it, else our server in Python, which shares the host's cores.
One query is one row: 64 int16 in, 64 out, 143 bytes on the line each way. The bound is baud / 10 / 143. Eight queries
are in flight; at the highest speed four as well, where a query's way there and back (0.95 ms on the line, and what
three processes on few cores take to wake) is most of what four frames last. Each figure is of full windows: the first
and the last window of queries, while the line fills and empties, are not counted. POSIX only: Windows has no ptys.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _one_thread  # noqa: F401
import numpy as np
from _cable import Cable
from _rows import ROOT, Rows, arguments

from hzo_hil.devices.api import BoundarySpec, Capabilities, Health, ParameterSpec, Query, Reply, Segment, StageSpec
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.serial_server import SerialServer
from hzo_hil.devices.wire.hzos_frames import OVERHEAD, Frame, on_line
from hzo_hil.devices.wire.hzos_served import HzosServed

WIDTH, TOP = 64, 8.0
WINDOW, FEW = 8, 4
BAUDS = (115_200, 921_600, 3_000_000)
MTU = OVERHEAD + 2 * WIDTH


class Echo:
    """Gives back what it is given: the line is to be measured, not arithmetic."""

    def __init__(self) -> None:
        ends = BoundarySpec(low=-TOP, high=TOP, out_low=-TOP, out_high=TOP)
        stage = StageSpec("echo", WIDTH, WIDTH, (ParameterSpec("unused", (1,), -1, 1),), structure="diagonal")
        self.capabilities = Capabilities("echo", (stage,), (ends, ends))

    def open(self) -> None: ...
    def close(self) -> None: ...
    def write(self, stage: int, parameters: Any, where: Any = None) -> None: ...

    def run(self, segment: Segment, inputs: Any) -> Reply:
        return Reply(inputs)

    def read(self, stage: int) -> Any:
        return {"unused": np.zeros(1, np.float32)}

    def snapshot(self) -> Any:
        return {}

    def health(self) -> Health:
        return Health(True)


def measured(device: RemoteDevice, queries: int, window: int) -> tuple[float, bool]:
    """Queries per second with full windows, and whether every answer was right."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(-TOP, TOP, size=(queries, 1, WIDTH)).astype(np.float32)
    asked: dict[int, int] = {}
    times, right, sent = [], True, 0
    while len(times) < queries:
        while sent < queries and len(asked) < window:
            asked[device.submit(Query(Segment(0, 1), rows[sent]))] = sent
            sent += 1
        for ticket, answer in device.poll(1.0):
            times.append(time.perf_counter())
            expected = rows[asked.pop(ticket)]
            right &= isinstance(answer, Reply) and bool(np.abs(answer.outputs - expected).max() <= TOP / 32767)
    counted = times[window:-window]
    return (len(counted) - 1) / (counted[-1] - counted[0]), right


def device_at(port: str, baud: int, folder: Path) -> subprocess.Popen[bytes]:
    """The echo in a process of its own."""
    if shutil.which("gcc") is None:
        serve = [sys.executable, str(Path(__file__).resolve()), "--serve-at", f"serial://{port}?baud={baud}"]
        return subprocess.Popen(serve, cwd=ROOT)
    manifest = HzosServed(Echo(), mtu=MTU, window=2 * WINDOW, encoding="i2").board.manifest
    for name in ("hzos.c", "hzos.h", "device.h"):
        shutil.copy(ROOT / "devices" / "firmware" / name, folder)
    sizes = {"HZOS_MTU": MTU, "HZOS_WINDOW": 2 * WINDOW, "DEVICE_SEGMENTS": 1, "DEVICE_PARAMETER_BYTES": 2}
    (folder / "network.h").write_text("".join(f"#define {k} {v}\n" for k, v in sizes.items()), encoding="utf-8")
    described = ",".join(map(str, manifest))
    (folder / "manifest.h").write_text(
        f"const uint8_t device_manifest[] = {{{described}}};\nconst uint32_t device_manifest_size = {len(manifest)};\n",
        encoding="utf-8",
    )
    board = ROOT / "benchmarks" / "_echo_board.c"
    subprocess.run(["gcc", "-O2", f"-I{folder}", f"{folder}/hzos.c", str(board), "-o", f"{folder}/board"], check=True)
    import tty  # not on Windows

    line = os.open(port, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    try:
        return subprocess.Popen([f"{folder}/board"], stdin=line, stdout=line)
    finally:
        os.close(line)


def row(rows: Rows, baud: int, seconds: float, window: int = WINDOW) -> None:
    on_wire = len(on_line(Frame(3, 1, 1, 1, 1, bytes(2 * WIDTH)).body()))
    bound = baud / 10 / on_wire
    with Cable(baud) as cable, tempfile.TemporaryDirectory() as folder:
        server = device_at(cable.device, baud, Path(folder))
        try:
            device = RemoteDevice(f"serial://{cable.host}?baud={baud}", connect_s=20)
            device.open()
            found, right = measured(device, int(bound * seconds) + 4 * window, window)
            resent = device.counters["resent"]
            device.close()
        finally:
            server.terminate()
            server.wait()
    rows.row(
        f"{baud} baud, {window} in flight", found, "queries/s", against="line rate", ratio=found / bound,
        target=">= 0.95" if window == WINDOW else None, bound=bound, frame_bytes=on_wire, resent=resent, right=right,
    )  # fmt: skip
    rows.missed += not right


def main() -> None:
    if "--serve-at" in sys.argv:
        SerialServer(Echo(), sys.argv[-1], mtu=MTU, window=2 * WINDOW, encoding="i2", park_after_s=0).serve()
        return
    if sys.platform == "win32":
        sys.exit("this benchmark needs pseudo terminals, which Windows lacks")
    quick = arguments(__doc__).quick
    rows = Rows()
    rows.environment()
    for baud in BAUDS:
        row(rows, baud, 3 if quick else 15)
    row(rows, BAUDS[-1], 3 if quick else 15, window=FEW)
    rows.exit()


if __name__ == "__main__":
    main()
