"""A device over real serial lines (ptys), over TCP and RFC 2217: noise, kills, restarts, silence."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Query, Reply, Segment
from hzo_hil.devices.errors import BadInput, ConfigError, DeviceError, DeviceRebooted, LinkLost
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.serial_server import SerialServer
from hzo_hil.devices.wire.hzos_frames import Splitter, on_line
from hzo_hil.devices.wire.hzos_served import HzosServed
from tests.remote.serial_parts import ServerProcess, needs_pty, remote, rows, served, weights
from tests.wire.hzos_parts import matrix_device

FIRST, WHOLE = Segment(0, 1), Segment(0, 2)
TCP = "serial+tcp://127.0.0.1:0"


@contextmanager
def cable(**options: Any) -> Iterator[Any]:
    from benchmarks._cable import Cable

    with Cable(**options) as made:
        yield made


def streamed(device: RemoteDevice, batches: list[Any], segment: Segment = FIRST) -> list[Any]:
    """Outputs of all batches, as many in flight as the device allows."""
    tickets: dict[int, int] = {}
    found: list[Any] = [None] * len(batches)
    sent = 0
    while sent < len(batches) or tickets:
        while sent < len(batches) and len(tickets) < device.window:
            tickets[device.submit(Query(segment, batches[sent]))] = sent
            sent += 1
        for ticket, answer in device.poll(1.0):
            if isinstance(answer, Exception):
                raise answer
            found[tickets.pop(ticket)] = answer.outputs
    return found


def written(device: RemoteDevice, patience_s: float = 20.0) -> None:
    """Both stages, as the host writes them again after a restart."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            device.write(0, weights(4, 3))
            return device.write(1, weights(2, 4))
        except DeviceRebooted:
            assert time.monotonic() < deadline


def expected(batch: Any) -> Any:
    return batch @ weights(4, 3)["weight"].T @ weights(2, 4)["weight"].T


def asked_until_answered(device: RemoteDevice, batch: Any) -> tuple[Any, int]:
    """The answer, and how many times the device was found restarted."""
    for restarts in range(5):
        try:
            return device.run(WHOLE, batch).outputs, restarts
        except DeviceRebooted:
            written(device)
    raise AssertionError("restarted for ever")


@needs_pty
@pytest.mark.parametrize("seed", [1, 2])
def test_noise_in_both_directions_changes_no_answer_and_repeats_no_query(seed: int) -> None:
    """1e-3 of bytes changed, lost or invented. The cable's noise is seeded, its timing is the machine's."""
    driver = matrix_device(3, 2)
    with (
        cable(noise=1e-3, seed=seed) as line,
        served(driver, f"serial://{line.device}"),
        remote(f"serial://{line.host}") as d,
    ):
        d.write(0, weights(2, 3))
        batches = [rows(3, seed=i) for i in range(300)]
        for batch, outputs in zip(batches, streamed(d, batches), strict=True):
            assert np.allclose(outputs, batch @ weights(2, 3)["weight"].T, atol=1e-5)
        assert set(driver.ran.values()) == {1}
        assert len(driver.ran) == 900
        assert d.counters["resent"] > 0
        assert d.counters["reboots"] == d.counters["reconnects"] == 0


@needs_pty
def test_a_server_killed_and_started_again_on_the_same_port_is_written_again() -> None:
    with cable() as line:
        first = ServerProcess(f"serial://{line.device}")
        with remote(f"serial://{line.host}") as device:
            written(device)
            assert np.allclose(device.run(WHOLE, rows(5)).outputs, expected(rows(5)), atol=1e-5)
            first.kill()
            second = ServerProcess(f"serial://{line.device}")
            outputs, restarts = asked_until_answered(device, rows(5, seed=2))
            assert np.allclose(outputs, expected(rows(5, seed=2)), atol=1e-5)
            assert restarts >= 1
            second.kill()


def test_a_server_killed_in_the_middle_of_queries_over_tcp() -> None:
    first = ServerProcess(TCP)
    with remote(first.url, ping_s=0.2) as device:
        written(device)
        tickets = [device.submit(Query(WHOLE, rows(2, seed=i))) for i in range(4)]
        first.kill()
        second = ServerProcess(first.url)
        answers: dict[int, Any] = {}
        while len(answers) < len(tickets):
            answers |= dict(device.poll(5.0))
        assert all(isinstance(a, (Reply, DeviceRebooted)) for a in answers.values())
        outputs, _ = asked_until_answered(device, rows(5))
        assert np.allclose(outputs, expected(rows(5)), atol=1e-5)
        assert device.counters["reconnects"] >= 1
        second.kill()


def test_a_connection_that_breaks_is_resumed_with_its_parameters() -> None:
    driver = matrix_device(3, 4, 2)
    with served(driver, TCP) as server, remote(server.url, ping_s=0.2) as device:
        written(device)
        writes = len(driver.writes)
        line = server._line
        assert line is not None
        line._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
        assert np.allclose(device.run(WHOLE, rows(3)).outputs, expected(rows(3)), atol=1e-5)
        assert len(driver.writes) == writes
        assert set(driver.ran.values()) == {1}
        assert device.counters["reboots"] == 0 and device.counters["reconnects"] == 1


def test_a_host_that_is_silent_finds_the_device_parked(caplog: pytest.LogCaptureFixture) -> None:
    driver = matrix_device(3, 4, 2)
    caplog.set_level(logging.INFO, "hzo_hil.server")
    with served(driver, TCP, park_after_s=0.3) as server:
        with remote(server.url) as device:
            written(device)
        deadline = time.monotonic() + 5
        while not driver.parked and time.monotonic() < deadline:
            time.sleep(0.02)
        assert driver.parked == 1
        assert "parking matrix: no word from the host for 0." in caplog.text
        with remote(server.url) as device:
            written(device)
            assert np.allclose(device.run(WHOLE, rows(3)).outputs, expected(rows(3)), atol=1e-5)
    assert driver.parked == 2  # and when the server stops
    assert (driver.opened, driver.closed) == (1, 1)


def test_the_next_host_takes_the_place_of_one_whose_cable_was_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hzo_hil.devices.serial_server.ABANDONED_S", 0.2)
    with served(matrix_device(3, 4, 2), TCP) as server:
        host, port = server.url.removeprefix("serial+tcp://").split(":")
        with socket.create_connection((host, int(port))), remote(server.url) as device:
            written(device)
            assert device.run(WHOLE, rows(1)).outputs.shape == (1, 2)


@pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")  # pyserial's own
def test_a_port_on_another_machine_by_rfc_2217() -> None:
    with port_server(HzosServed(matrix_device(3, 4, 2), mtu=128, window=4)) as url, remote(url) as device:
        written(device)
        batches = [rows(3, seed=i) for i in range(20)]
        for batch, outputs in zip(batches, streamed(device, batches, WHOLE), strict=True):
            assert np.allclose(outputs, expected(batch), atol=1e-5)


class PortSettings:
    """The port that an RFC 2217 server would have."""

    port, bytesize, parity, stopbits = "far away", 8, "N", 1
    rtscts = xonxoff = dtr = rts = break_condition = cts = dsr = ri = cd = False

    def __init__(self) -> None:
        self.baudrate = 9600

    def reset_input_buffer(self) -> None: ...
    def reset_output_buffer(self) -> None: ...


@contextmanager
def port_server(device: HzosServed) -> Iterator[str]:
    """A board behind pyserial's own RFC 2217 server; yields its URL."""
    from serial.rfc2217 import PortManager

    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    port = PortSettings()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(20)
            sender = type("Sender", (), {"write": staticmethod(connection.sendall)})
            manager, splitter = PortManager(port, sender), Splitter()
            while data := connection.recv(4096):
                for body in splitter.feed(b"".join(manager.filter(data))):
                    reply = device.receive(body)
                    if reply is not None:
                        connection.sendall(b"".join(manager.escape(on_line(reply))))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"serial+rfc2217://127.0.0.1:{listener.getsockname()[1]}?baud=230400"
        assert port.baudrate == 230400
    finally:
        listener.close()
        thread.join(10)


# --- mistakes, in words ----------------------------------------------------------------------------------------------


@needs_pty
def test_a_line_on_which_nothing_makes_sense_is_told_so() -> None:
    with cable() as line, open(line.device, "wb", buffering=0) as board:
        stop = threading.Event()

        def babble() -> None:
            while not stop.wait(0.001):
                board.write(b"\x80\xf8\x00" * 100)

        thread = threading.Thread(target=babble)
        thread.start()
        try:
            words = r"bytes came from /dev/.* and no frame among them: is it set to 57600 baud"
            with pytest.raises(DeviceError, match=words):
                RemoteDevice(f"serial://{line.host}?baud=57600", connect_s=20).open()
        finally:
            stop.set()
            thread.join()


@needs_pty
def test_a_line_that_is_silent_is_told_so_in_time() -> None:
    with cable() as line:
        device = RemoteDevice(f"serial://{line.host}", connect_s=0.5)
        with pytest.raises(LinkLost, match="nobody answers at serial:///dev"):
            device.open()


@needs_pty
def test_a_port_in_use_is_told_so() -> None:
    with cable() as line, served(matrix_device(), f"serial://{line.device}"):
        device = RemoteDevice(f"serial://{line.device}")
        with pytest.raises(BadInput, match="another program has /dev/.* open. Close it"):
            device.open()


def test_a_port_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [type("P", (), {"device": "/dev/ttyACM7", "description": "Board"})()]
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: ports)
    url = "serial://COM77" if sys.platform == "win32" else "serial:///dev/ttyNOSUCH"
    with pytest.raises(BadInput, match=r"there is no serial port .*Serial ports here: /dev/ttyACM7 \(Board\)"):
        RemoteDevice(url).open()
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [])
    with pytest.raises(BadInput, match="shows no serial port at all: is the adapter plugged in"):
        RemoteDevice(url).open()


@needs_pty
def test_a_port_without_permission_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp

    import serial

    def denied(*_: Any, **__: Any) -> Any:
        raise serial.SerialException(13, "could not open port /dev/null: [Errno 13] Permission denied")

    monkeypatch.setattr("serial.serial_for_url", denied)
    with pytest.raises(
        BadInput, match=r"permission to open /dev/null was denied. It belongs to root alone: a udev rule.*dialout"
    ):
        RemoteDevice("serial:///dev/null").open()
    monkeypatch.setattr(grp, "getgrgid", lambda number: type("Group", (), {"gr_name": "uucp"}))
    with pytest.raises(BadInput, match=r"belongs to group 'uucp': `sudo usermod -aG uucp \$USER`, and log in again"):
        RemoteDevice("serial:///dev/null").open()


@needs_pty
def test_what_is_no_serial_port_is_told_so() -> None:
    with pytest.raises(BadInput, match="/dev/null is no serial port, or refuses 115200 baud"):
        RemoteDevice("serial:///dev/null").open()


def test_nobody_at_a_tcp_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LinkLost, match=r"no connection .* Is the board or the server running there"):
        RemoteDevice(f"serial+tcp://127.0.0.1:{port}").open()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("serial://", "is no address|names no port: write serial:///dev/ttyUSB0 or serial://COM3"),
        ("serial+tcp://127.0.0.1", "names no host and port: write serial.tcp://host:port"),
        ("serial+rfc2217://host:port", "names no host and port"),
        ("serial://COM3?baud=fast", "baud=fast is no value; settings are baud, parity"),
        ("serial://COM3?speed=9600", "has no setting 'speed'; it has baud, parity"),
        ("serial://COM3?parity=X", "parity=X is no value"),
        ("serial://COM3?baud=0", "baud=0 is no value"),
    ],
)
def test_addresses_that_are_none(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RemoteDevice(url)


def test_servers_that_cannot_be_bound_say_why() -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 is open to other machines.*ssh -L.*--insecure"):
        SerialServer(matrix_device(), "serial+tcp://0.0.0.0:0")
    SerialServer(matrix_device(), "serial+tcp://0.0.0.0:0", insecure=True).close()
    words = "cannot be bound .* Does another server use it.* Port 0 picks a free one"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=words):
        SerialServer(matrix_device(), f"serial+tcp://127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(ConfigError, match="a serial line is one of serial://"):
        SerialServer(matrix_device(), "tcp://127.0.0.1:5555")
    with pytest.raises(ConfigError, match="park_after_s: -1"):
        SerialServer(matrix_device(), TCP, park_after_s=-1)
