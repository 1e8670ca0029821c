"""HZO/1 over real sockets with the server in a process of its own: killed, stopped, and a line that misbehaves."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - what a data loader does to a module
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Query, Reply
from hzo_hil.devices.errors import DeviceRebooted
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.transports import transport_to
from hzo_hil.devices.transports.chaos import ChaosTransport
from tests.remote.zmq_parts import ROOT, Served
from tests.wire.hzo1_parts import WHOLE, rows

posix = pytest.mark.skipif(os.name != "posix", reason="needs SIGSTOP")


def ask(host: Any, names: range, scale: float, window: int = 12) -> dict[float, Any]:
    """Answers by name; what fails with a reboot is written and asked again, as dispatch does."""
    todo, flying, found = [float(n) for n in names], {}, {}
    while todo or flying:
        while todo and len(flying) < window:
            name = todo.pop()
            flying[host.submit(Query(WHOLE, rows(name)))] = name
        rebooted = False
        for ticket, result in host.poll(1.0):
            name = flying.pop(ticket)
            if isinstance(result, DeviceRebooted):
                rebooted = True
                todo.append(name)
            else:
                assert isinstance(result, Reply), result
                found[name] = result.outputs
        if rebooted:
            host.write(0, {"w": scale * np.eye(4, dtype=np.float32)})
    return found


def right(found: dict[float, Any], names: range, scale: float) -> None:
    assert sorted(found) == [float(n) for n in names]
    for name, outputs in found.items():
        np.testing.assert_array_equal(outputs, rows(name) * scale)


def test_killed_and_restarted_under_a_running_host(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        host = RemoteDevice(served.url)
        host.write(0, {"w": 3 * np.eye(4, dtype=np.float32)})
        right(ask(host, range(100), 3.0), range(100), 3.0)
        for round_ in range(2):
            flying = [host.submit(Query(WHOLE, rows(1000.0 + i))) for i in range(8)]
            host.poll(0.05)
            served.kill()
            flying += [host.submit(Query(WHOLE, rows(2000.0 + i))) for i in range(8)]
            served.restart()
            results: dict[int, Any] = {}
            while not any(isinstance(r, DeviceRebooted) for r in results.values()):
                results.update(host.poll(1.0))
            host.write(0, {"w": 3 * np.eye(4, dtype=np.float32)})
            names = range(100 * round_ + 100, 100 * round_ + 200)
            right(ask(host, names, 3.0), names, 3.0)
        assert host.counters["reboots"] == 2 and max(served.runs().values()) == 1
        host.close()


@posix
def test_a_stopped_server_is_noticed_and_resumes_without_running_twice(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        host = RemoteDevice(served.url)
        host.write(0, {"w": np.eye(4, dtype=np.float32)})
        ask(host, range(10), 1.0)
        served.signal(signal.SIGSTOP)
        start = time.monotonic()
        tickets = [host.submit(Query(WHOLE, rows(100.0 + i))) for i in range(8)]
        while host.state == "up":
            assert host.poll(0.05) == []
        assert time.monotonic() - start <= 0.5 + 2.0
        time.sleep(0.3)
        served.signal(signal.SIGCONT)
        found: dict[int, Any] = {}
        while len(found) < 8:
            found.update(host.poll(1.0))
        assert sorted(found) == tickets and all(isinstance(r, Reply) for r in found.values())
        assert host.state == "up" and host.counters["reboots"] == 0 and max(served.runs().values()) == 1
        host.close()


def test_a_line_that_drops_doubles_delays_and_swaps(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        host = RemoteDevice(served.url, transport=ChaosTransport(transport_to(served.url), 7))
        host.write(0, {"w": 2 * np.eye(4, dtype=np.float32)})
        right(ask(host, range(400), 2.0), range(400), 2.0)
        assert host.counters["resent"] > 5
        assert len(served.runs()) == 400 and max(served.runs().values()) == 1
        host.close()


HOST = """
import sys, time, numpy as np
from hzo_hil.devices.remote import RemoteDevice
host = RemoteDevice(sys.argv[1], ping_s=0.2)
host.write(0, {"w": np.eye(4, dtype=np.float32)})
print("written", flush=True)
time.sleep(60)
"""


def test_a_device_whose_host_was_killed_is_parked(tmp_path: Path) -> None:
    with Served(tmp_path, park_after_s=1.0) as served:
        host = subprocess.Popen(
            [sys.executable, "-c", HOST, served.url], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert host.stdout is not None and host.stdout.readline() == "written\n"
        time.sleep(1.5)
        assert "parked" not in served.text()  # the keeper pings while the host is busy
        host.kill()
        host.wait()
        host.stdout.close()
        start = time.monotonic()
        while "parked" not in served.text():
            assert time.monotonic() - start < 1.0 + 1.0
            time.sleep(0.02)


def test_a_remote_device_is_pickled_by_its_url(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        host = RemoteDevice(served.url, ping_s=0.5)
        host.run(WHOLE, rows(1.0))
        host.close()
        other = pickle.loads(pickle.dumps(host))  # noqa: S301
        assert other.url == served.url and other.state == "new" and other._ping_s == 0.5
        np.testing.assert_array_equal(other.run(WHOLE, rows(2.0)).outputs.shape, (1, 4))
        other.close()
