"""What the tests of serial lines share: servers in threads and processes, cables between ptys."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.serial_server import SerialServer
from tests.wire.hzos_parts import MatrixDevice

ROOT = Path(__file__).resolve().parents[2]
needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals to stand in for a port")

SERVE = """
import sys
from hzo_hil.devices.serial_server import SerialServer
from tests.wire.hzos_parts import matrix_device
server = SerialServer(matrix_device(3, 4, 2), sys.argv[1], mtu=128, window=4)
print(server.url, flush=True)
server.serve()
"""


@contextmanager
def served(device: MatrixDevice, bind: str, **options: Any) -> Iterator[SerialServer]:
    """A server in a thread of its own."""
    server, stop = SerialServer(device, bind, **({"mtu": 128, "window": 4} | options)), threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


class ServerProcess:
    """A server in a process of its own, to be killed."""

    def __init__(self, bind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, bind], cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """As kill -9 does; TerminateProcess on Windows."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def remote(url: str, **options: Any) -> Iterator[RemoteDevice]:
    device = RemoteDevice(url, **({"connect_s": 10.0, "patience_s": 20.0} | options))
    try:
        device.open()
        yield device
    finally:
        device.close()


def weights(n_out: int, n_in: int, seed: int = 1) -> dict[str, Any]:
    return {"weight": np.random.default_rng(seed).normal(size=(n_out, n_in)).astype(np.float32)}


def rows(count: int, width: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
