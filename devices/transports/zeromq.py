"""ZeroMQ: a DEALER for the host, a ROUTER for the device, both with CURVE where keys are given.

Wrong keys raise nothing in ZeroMQ: the socket monitor is watched and `problem` says it in words.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.backend
import zmq.utils.z85
from zmq.utils.monitor import recv_monitor_message

from hzo_hil.devices.errors import ConfigError, LinkLost
from hzo_hil.devices.keys import allowed, load_pair, load_public

Buffer = Any
log = logging.getLogger("hzo_hil.server")

COPY_THRESHOLD = 1 << 18
"""Arrays of fewer bytes are copied into ZeroMQ's memory: cheaper than keeping track of them."""
MOST_AT_ONCE = 64
MOST_FRAMES = 72
NOBLOCK = int(zmq.NOBLOCK)
MORE = int(zmq.SNDMORE) | NOBLOCK
# pyzmq's own wrapper of these costs as much as the call.
_put, _get = zmq.backend.Socket.send, zmq.backend.Socket.recv
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = _FAILED | zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED


def endpoint_of(url: str) -> str:
    """ZeroMQ's own name for a URL; ConfigError where this machine's ZeroMQ lacks it."""
    endpoint = url.removeprefix("zmq+")
    if endpoint.startswith("ipc://") and not zmq.has("ipc"):
        raise ConfigError(f"{url}: ipc does not exist on this system; use tcp://127.0.0.1:PORT")
    port = endpoint.rpartition(":")[2]
    if endpoint.startswith("tcp://") and port != "*" and not (port.isdecimal() and int(port) <= 65535):
        # ZeroMQ would take what is left of a larger number, and listen at a port nobody asked for.
        raise ConfigError(f"{url}: the port is a number up to 65535, as in tcp://127.0.0.1:5555, not {port!r}")
    return endpoint


class ZmqTransport:
    """The host's end."""

    def __init__(self, url: str, keys: Path | None = None, most_bytes: int = 1 << 28) -> None:
        self.url = url
        self.problem = ""
        self.bad_frames = 0
        self._endpoint = endpoint_of(url)
        self._keys = keys
        self._most_bytes = most_bytes
        self._socket: Any = None
        self._monitor: Any = None
        self._context: Any = None
        self._watch = _Watch(keys is not None)
        self._patience = _Patience()

    def open(self) -> None:
        self.problem = ""
        self._context = zmq.Context()
        self._socket = socket = self._context.socket(zmq.DEALER)
        _prepare(socket, self._endpoint, self._most_bytes)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            if self._keys is not None:
                pair = load_pair(self._keys, "host")
                socket.curve_publickey, socket.curve_secretkey = pair.public, pair.secret
                socket.curve_serverkey = load_public(Path(self._keys) / "device.pub")
            self._watch, self._patience = _Watch(self._keys is not None), _Patience()
            self._monitor = socket.get_monitor_socket(_WATCHED)
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"{self.url!r} is no address ZeroMQ can connect to: {error}") from None
        except ConfigError:
            self.close()
            raise

    def send(self, frames: Sequence[Buffer]) -> bool:
        if self._socket is None:
            raise LinkLost(f"{self.url} is closed")
        return _send(self._socket, frames)

    def receive(self, timeout: float) -> list[list[Buffer]]:
        socket = self._socket
        if socket is None:
            raise LinkLost(f"{self.url} is closed")
        if timeout > 0:
            self._patience.set(socket, timeout)
        found = _receive(socket, timeout, 0)
        if not found or not self._watch.secure:
            self._look()
        return found

    def close(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._context.destroy(linger=0)
        self._socket = self._monitor = self._context = None

    def _look(self) -> None:
        while self._monitor is not None and self._monitor.poll(0):
            self._watch.saw(int(recv_monitor_message(self._monitor)["event"]))
        self.problem = self._watch.problem()


class _Watch:
    """What the socket monitor's events mean. `secure`: a handshake has succeeded since the last disconnection."""

    def __init__(self, keys: bool) -> None:
        self.keys = keys
        self.secure = False
        self.refused = 0
        self.hung_up = 0

    def saw(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.secure, self.refused, self.hung_up = True, 0, 0
        elif event & _FAILED:
            self.refused += 1
        elif event == zmq.EVENT_DISCONNECTED:
            self.hung_up += not self.secure
            self.secure = False

    def problem(self) -> str:
        # One hang-up may be a server that was just stopped.
        if self.secure or self.refused + self.hung_up < 2:
            return ""
        if self.keys:
            return (
                "wrong keys: the device hangs up during the handshake. Is device.pub that of its device.key, is"
                " host.pub in its allow-list, and was it started with keys?"
            )
        return "wrong keys: the device hangs up on a host that has none. Give the folder with host.key and device.pub"


class ZmqListener:
    """The device's end. `allow`: folder of the .pub files of hosts let in; by default those in `keys`."""

    def __init__(
        self,
        bind: str,
        keys: Path | None = None,
        allow: Path | None = None,
        insecure: bool = False,
        most_bytes: int = 1 << 28,
    ) -> None:
        endpoint = endpoint_of(bind)
        if keys is None and allow is not None:
            raise ConfigError(
                f"{bind}: an allow-list without keys keeps nobody out; give the folder of device.key, too"
            )
        if keys is None and not insecure and not is_local(endpoint):
            raise ConfigError(
                f"{bind} can be reached from other machines, so it needs keys and an allow-list: anyone who reaches it"
                " can drive the device. Make them with `hzo-hil device keys`, or bind to 127.0.0.1 and use ssh -L; on a"
                " network of your own, --insecure"
            )
        self.bad_frames = 0
        self._context = zmq.Context()
        self._socket: Any = self._context.socket(zmq.ROUTER)
        self._gate: _Gate | None = None
        self._patience = _Patience()
        try:
            _prepare(self._socket, endpoint, most_bytes)
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if keys is not None:
                pair = load_pair(keys, "device")
                self._gate = _Gate(self._context, Path(allow or keys))
                self._socket.curve_server = True
                self._socket.curve_secretkey, self._socket.curve_publickey = pair.secret, pair.public
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(_why_not(bind, error)) from None
        except ConfigError:
            self.close()
            raise
        self.url = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def receive(self, timeout: float) -> list[tuple[bytes, list[Buffer]]]:
        if timeout > 0:
            self._patience.set(self._socket, timeout)
        return [(frames[0], frames[1:]) for frames in _receive(self._socket, timeout, 1)]

    def send(self, peer: bytes, frames: Sequence[Buffer]) -> bool:
        """False: that peer is gone."""
        try:
            _put(self._socket, peer, MORE)
            return _send(self._socket, frames)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False

    def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
        self._context.destroy(linger=0)


class _Gate:
    """Answers ZeroMQ's question whether a peer's key is let in (ZAP). The folder is read anew for each peer."""

    def __init__(self, context: Any, folder: Path) -> None:
        allowed(folder)  # an empty or missing list is the user's mistake, now
        self._folder = folder
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="hzo allow-list", daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(100):
                continue
            frames = self._socket.recv_multipart()
            let_in = self._let_in(frames)
            verdict = [b"200", b"OK", b"host", b""] if let_in else [b"400", b"not in the allow-list", b"", b""]
            self._socket.send_multipart([b"1.0", frames[1] if len(frames) > 1 else b"", *verdict])
        self._socket.close(0)

    def _let_in(self, frames: list[bytes]) -> bool:
        if len(frames) != 7 or frames[5] != b"CURVE":
            return False
        try:
            known = zmq.utils.z85.encode(frames[6]) in allowed(self._folder)
        except ConfigError as error:
            log.warning("%s", error)
            return False
        if not known:
            log.warning("refused a host at %s: its key is not in %s", frames[3].decode(errors="replace"), self._folder)
        return known

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2.0)


def is_local(endpoint: str) -> bool:
    """Whether only this machine can reach it."""
    if not endpoint.startswith("tcp://"):
        return endpoint.startswith(("ipc://", "inproc://"))
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _why_not(bind: str, error: zmq.ZMQError) -> str:
    number = error.errno
    if number == errno.EADDRINUSE:
        return f"{bind}: this port is in use, perhaps by another server. Choose another; port 0 takes any free one"
    if number == errno.EACCES:
        return (
            f"{bind}: permission denied. Ports below 1024 belong to the administrator: choose one above. An ipc:// path"
            " needs a folder this user may write"
        )
    if number in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return f"{bind}: this machine has no such address. Its own: 127.0.0.1 (local only), or that of a network card"
    return f"{bind!r} is no address ZeroMQ can bind: {error}. Example: tcp://127.0.0.1:5555"


def _prepare(socket: Any, endpoint: str, most_bytes: int) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    # A longer frame is refused by ZeroMQ before memory is taken for it, and its sender disconnected.
    socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))


def _send(socket: Any, frames: Sequence[Buffer]) -> bool:
    *before, last = frames
    try:
        for frame in before:
            if type(frame) is bytes or frame.nbytes < COPY_THRESHOLD:
                _put(socket, frame, MORE)
            else:
                _put(socket, frame, MORE, False)
        if type(last) is bytes or last.nbytes < COPY_THRESHOLD:
            _put(socket, last, NOBLOCK)
        else:
            _put(socket, last, NOBLOCK, False)
    except zmq.Again:
        return False
    return True


def _receive(socket: Any, timeout: float, before: int) -> list[list[Buffer]]:
    """Whole messages of `before` routing frames, header, META, DESC and arrays; arrays stay in ZeroMQ's memory.

    Where a message ends only ZeroMQ knows, whatever its header says. Of one that is too long the beginning is kept.
    """
    found: list[list[Buffer]] = []
    small = before + 3
    try:
        # Waiting inside recv costs far less than a poll and a recv.
        frame = _get(socket, 0 if timeout > 0 else NOBLOCK, False)
        while True:
            frames: list[Buffer] = []
            while frame.more:
                frames.append(frame.bytes if len(frames) < small else frame)
                frame = _get(socket, NOBLOCK, False)
                if len(frames) > MOST_FRAMES:
                    frames.pop()
            frames.append(frame.bytes if len(frames) < small else frame)
            found.append(frames)
            # After a wait one message is handed on at once: to look for another costs a system call.
            if timeout > 0 or len(found) >= MOST_AT_ONCE:
                return found
            frame = _get(socket, NOBLOCK, False)
    except zmq.Again:
        return found


class _Patience:
    """Sets how long a socket's recv waits; in whole milliseconds, and only when that changes."""

    def __init__(self) -> None:
        self._ms = -1

    def set(self, socket: Any, timeout: float) -> None:
        ms = int(timeout * 1000) + 1
        if ms != self._ms:
            socket.setsockopt(zmq.RCVTIMEO, ms)
            self._ms = ms
