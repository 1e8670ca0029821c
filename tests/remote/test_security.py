"""Who gets in: keys, allow-lists, binds, and what is said to those who do not."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from hzo_hil.devices.errors import ConfigError, DeviceError
from hzo_hil.devices.keys import load_pair, make_keys
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.server import Server
from hzo_hil.devices.transports import SCHEMES, transport_to
from tests.wire.hzo1_parts import WHOLE, Counting, rows


@contextmanager
def serving(bind: str = "tcp://127.0.0.1:0", **options: Any) -> Iterator[Server]:
    server, stop = Server(Counting(), bind, **options), threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


def test_keys_are_private_from_the_start_and_never_overwritten(tmp_path: Path) -> None:
    files = make_keys(tmp_path / "keys")
    assert sorted(f.name for f in files) == ["device.key", "device.pub", "host.key", "host.pub"]
    if os.name == "posix":
        modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in files}
        assert modes["host.key"] == modes["device.key"] == 0o600
    before = {f: f.read_bytes() for f in files}
    with pytest.raises(ConfigError, match="never overwritten"):
        make_keys(tmp_path / "keys")
    assert before == {f: f.read_bytes() for f in files}
    assert load_pair(tmp_path / "keys", "host").secret.decode() not in repr(load_pair(tmp_path / "keys", "host"))


def test_missing_and_broken_key_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no key file .*host\.key: make keys with"):
        RemoteDevice("tcp://127.0.0.1:1", keys=tmp_path).open()
    make_keys(tmp_path / "k")
    (tmp_path / "k" / "device.key").write_text("nonsense", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"device\.key is no key file"):
        Server(Counting(), "tcp://127.0.0.1:0", keys=tmp_path / "k")
    (tmp_path / "empty").mkdir()
    make_keys(tmp_path / "good")
    with pytest.raises(ConfigError, match=r"holds no \.pub file"):
        Server(Counting(), "tcp://127.0.0.1:0", keys=tmp_path / "good", allow=tmp_path / "empty")


def test_with_the_right_keys_all_is_well(tmp_path: Path) -> None:
    make_keys(tmp_path / "k")
    with serving(keys=tmp_path / "k") as server:
        host = RemoteDevice(server.url, keys=tmp_path / "k")
        np.testing.assert_array_equal(host.run(WHOLE, rows(1.0)).outputs, rows(1.0))
        host.close()


@pytest.mark.parametrize("case", ["another device", "not allowed", "no keys", "keys for an open device"])
def test_wrong_keys_are_reported_in_words_within_five_seconds(tmp_path: Path, case: str) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    make_keys(ours)
    make_keys(theirs)
    if case == "not allowed":
        shutil.copy(ours / "device.pub", theirs / "device.pub")
    keys = None if case == "no keys" else theirs
    with serving(keys=None if case == "keys for an open device" else ours) as server:
        start = time.monotonic()
        with pytest.raises(DeviceError, match="wrong keys: the device hangs up"):
            RemoteDevice(server.url, keys=keys).open()
        assert time.monotonic() - start < 5.0


def test_a_peer_without_keys_gets_nothing(tmp_path: Path) -> None:
    make_keys(tmp_path / "k")
    with serving(keys=tmp_path / "k") as server, zmq.Context() as context:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(server.url)
        socket.send_multipart([b"HZO\x01" + bytes([1]) + bytes(27), b"{}", b""])
        assert not socket.poll(700)
        socket.close()
        assert server._served.session is None and server.bad_messages == 0


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.0.2.7:5555", "tcp://lab-pc:5555"])
def test_a_bind_that_others_reach_needs_keys(bind: str) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines, so it needs keys and an allow-list"):
        Server(Counting(), bind)


def test_insecure_is_a_choice() -> None:
    with serving("tcp://0.0.0.0:0", insecure=True) as server:
        host = RemoteDevice(server.url.replace("0.0.0.0", "127.0.0.1"))
        host.open()
        host.close()


def test_an_allow_list_without_keys_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps nobody out"):
        Server(Counting(), "tcp://127.0.0.1:0", allow=tmp_path)


def test_a_port_in_use_and_addresses_that_are_none() -> None:
    with serving() as server, pytest.raises(ConfigError, match="this port is in use, perhaps by another server"):
        Server(Counting(), server.url)
    with pytest.raises(ConfigError, match="no such address"):
        Server(Counting(), "tcp://192.0.2.7:5555", insecure=True)
    with pytest.raises(ConfigError, match="is nothing a server can bind"):
        Server(Counting(), "127.0.0.1:5555")
    with pytest.raises(ConfigError, match="the port is a number up to 65535"):
        Server(Counting(), "tcp://127.0.0.1:none")


@pytest.mark.parametrize("url", ["http://lab", "tcp:5555", "127.0.0.1:5555", ""])
def test_unknown_schemes_list_those_known(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a device: it starts with one of") as error:
        transport_to(url)
    assert all(f"{s}://" in str(error.value) for s in SCHEMES)


def test_a_frame_beyond_the_limit_is_refused_by_the_socket() -> None:
    with serving() as server, zmq.Context() as context:
        server._listener._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        # The option holds for connections made after it; this one is.
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        server._listener._socket.bind("tcp://127.0.0.1:0")
        socket.connect(server._listener._socket.getsockopt(zmq.LAST_ENDPOINT).decode())
        socket.send_multipart([b"HZO\x01" + bytes([1]) + bytes(27), b"{}", bytes(1 << 17)])
        assert not socket.poll(500) and server.bad_messages == 0
        socket.close()


def test_ipc_where_there_is_any(tmp_path: Path) -> None:
    if not zmq.has("ipc"):
        with pytest.raises(ConfigError, match="ipc does not exist on this system"):
            Server(Counting(), "ipc:///tmp/x")
        return
    with serving(f"zmq+ipc://{tmp_path}/s") as server:
        host = RemoteDevice(server.url)
        np.testing.assert_array_equal(host.run(WHOLE, rows(1.0)).outputs, rows(1.0))
        host.close()
