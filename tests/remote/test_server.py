"""The server as a program uses it: threads, stops, no torch, and a simulated link without zmq or serial imported."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Device, Pipelined, Query
from hzo_hil.devices.errors import ConfigError
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.server import Server
from tests.wire.hzo1_parts import WHOLE, Counting, rows


def test_a_stopped_server_parks_and_closes_its_device(caplog: Any) -> None:
    server, stop = Server(Counting(), "tcp://127.0.0.1:0"), threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    with caplog.at_level(logging.INFO, "hzo_hil.server"):
        thread.start()
        host = RemoteDevice(server.url)
        assert isinstance(host, Device) and isinstance(host, Pipelined)
        host.run(WHOLE, rows(1.0))
        stop.set()
        thread.join(5)
    assert server.device.calls == ["open", "park", "close"]  # type: ignore[attr-defined]
    assert f"serving counting at {server.url}" in caplog.text and "parked counting: the server stops" in caplog.text
    host.close()


def test_ctrl_c_parks_and_closes(caplog: Any) -> None:
    device = Counting()
    server = Server(device, "memory://ctrl-c")
    server._parked = False
    server.step = lambda timeout: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    server.serve()
    assert device.calls == ["open", "park", "close"]


@pytest.mark.parametrize("size", [16, 20_000, 200_000])
def test_batches_of_every_size_come_back_bit_for_bit(size: int) -> None:
    server, stop = Server(Counting(), "tcp://127.0.0.1:0"), threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    host = RemoteDevice(server.url)
    seen: list[Any] = []
    run = server.device.run
    server.device.run = lambda s, x: (seen.append((x.flags.writeable, x.flags.c_contiguous, x.flags.aligned, x.dtype)), run(s, x))[1]  # type: ignore[method-assign] # fmt: skip # noqa: E501
    x = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    tickets = [host.submit(Query(WHOLE, x)) for _ in range(5)]
    found: dict[int, Any] = {}
    while len(found) < 5:
        found.update(host.poll(1.0))
    for ticket in tickets:
        np.testing.assert_array_equal(found[ticket].outputs, x @ np.eye(4, dtype=np.float32))
    assert set(seen) == {(True, True, True, np.dtype(np.float32))}
    host.close()
    stop.set()
    thread.join(5)


def test_options_out_of_range() -> None:
    with pytest.raises(ConfigError, match="credit is the number of queries in flight"):
        Server(Counting(), "memory://x", credit=0)
    with pytest.raises(ConfigError, match="park_after_s is 0"):
        Server(Counting(), "memory://x", park_after_s=-1)
    first = Server(Counting(), "memory://twice")
    with pytest.raises(ConfigError, match="in use by another server"):
        Server(Counting(), "memory://twice")
    first.close()


def test_the_contract_needs_neither_zmq_nor_serial_and_the_server_no_torch(run_python: Any) -> None:
    code = "import hzo_hil.devices.api, hzo_hil.devices.transports, sys; print({'zmq', 'serial'} & set(sys.modules))"
    assert run_python(code).stdout.strip() == "set()"
    code = "import hzo_hil.devices.server, hzo_hil.devices.remote, hzo_hil.devices.transports.zeromq; print('fine')"
    assert run_python(code, without=("torch", "serial", "fcntl", "termios")).stdout.strip() == "fine"
    code = "import hzo_hil.devices.wire.hzo1_host, hzo_hil.devices.wire.hzo1_served; print('fine')"
    assert run_python(code, without=("torch", "zmq", "serial", "socket", "asyncio")).stdout.strip() == "fine"
