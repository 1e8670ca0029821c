"""A microcontroller emulated by QEMU learns Iris over its UART: 5-fold test accuracy of devices/firmware, 4-8-3.

Every fold trains with configs/iris_firmware.yaml from its own seed; the board runs on from fold to fold. `--quick`: two
folds. Needs make, arm-none-eabi-gcc and qemu-system-arm; `--host` runs the firmware built for this machine instead
(make and gcc). One flower is worth 3.3 points of a fold.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _one_thread  # noqa: F401 - before numpy
import numpy as np
from _rows import ROOT, Rows, arguments

FOLDS = 5
FIRMWARE = ROOT / "devices" / "firmware"


def fold(number: int, seed: int = 0) -> dict[str, Any]:
    """Iris with every fifth of each class, in a drawn order, for testing; scaled by its training rows to 0..1."""
    from hzo_hil.data import load

    iris = load("iris")
    x, y = np.concatenate([iris.x_train, iris.x_test]), np.concatenate([iris.y_train, iris.y_test])
    rng = np.random.default_rng(seed)
    part = np.empty(len(y), int)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        part[rng.permutation(rows)] = np.arange(len(rows)) % FOLDS
    train, test = part != number, part == number
    low, high = x[train].min(axis=0), x[train].max(axis=0)
    x = (x - low) / (high - low)
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(on_host: bool, rows: Rows) -> Iterator[int]:
    """Build and start the firmware; the port of its line."""
    tools = ("make", "gcc") if on_host else ("make", "arm-none-eabi-gcc", "qemu-system-arm")
    missing = [t for t in tools if shutil.which(t) is None]
    if missing:
        sys.exit(f"needs {', '.join(missing)}")
    port = free_port()
    with tempfile.TemporaryDirectory() as build:
        target, file = ("host", "firmware") if on_host else ("lm3s6965", "lm3s6965.elf")
        subprocess.run(
            ["make", "-s", "-C", str(FIRMWARE), target, f"BUILD={build}"], check=True, stdout=subprocess.DEVNULL
        )
        program = str(Path(build, file))
        if not on_host:
            flash, ram = image_size(program)
            rows.row("image, flash", flash, "B")
            rows.row("image, RAM", ram, "B")
        command = [program, "--tcp", str(port)] if on_host else [
            "qemu-system-arm", "-M", "lm3s6965evb", "-kernel", program, "-display", "none", "-monitor", "none",
            "-serial", f"tcp:127.0.0.1:{port},server=on,wait=off,nodelay=on",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(port)
            yield port
        finally:
            process.kill()
            process.wait()


def wait_for(port: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"the firmware did not open port {port} within {seconds:g} s")
            time.sleep(0.05)


def image_size(program: str) -> tuple[int, int]:
    """Bytes of flash and of RAM without the stack."""
    told = subprocess.run(["arm-none-eabi-size", program], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, told.splitlines()[1].split()[:3])
    return text + data, data + bss


def main() -> None:
    options = arguments(__doc__, host="the firmware as a program of this machine, not on the emulated board")
    from _runs import trained

    rows = Rows()
    rows.environment()
    scores = []
    with running(options.host, rows) as port:
        for number in range(2 if options.quick else FOLDS):
            overrides = ["data.name='firmware_iris:fold'", f"data.options={{number: {number}}}"]
            overrides += [f"devices.board.url='serial+tcp://127.0.0.1:{port}'"]
            summary = trained("iris_firmware.yaml", number, overrides)
            scores.append(summary["rows"]["in_loop"]["score"])
            rows.row(
                f"fold {number}", scores[-1], "accuracy", queries=summary["queries"],
                wall_seconds=summary["wall_seconds"],
            )  # fmt: skip
    rows.row("mean of the folds", statistics.mean(scores), "accuracy", target=">= 0.9")
    rows.exit()


if __name__ == "__main__":
    main()
