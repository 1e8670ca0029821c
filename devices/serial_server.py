"""Serves any device over a serial line, or over TCP as a board with a network port would: one thread, all in order.

The bytes are those of HZO-S/1 (docs/wire-serial.md). A line has one host and no keys: on TCP only this machine may
connect unless told otherwise. Knows no frames' meaning; that is `wire.hzos_served`.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from contextlib import suppress

from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import BadInput, ConfigError, LinkLost
from hzo_hil.devices.transports.lines import Address, Line, TcpLine, address_of, open_line
from hzo_hil.devices.wire.hzos_frames import MOST_MTU, Splitter, on_line
from hzo_hil.devices.wire.hzos_served import HzosServed

SLICE_S = 0.1
ABANDONED_S = 3.0
"""A host on TCP that is silent for so long makes room for the next one that connects."""


class SerialServer:
    """Hosts a device at `serial:///dev/ttyUSB0?baud=115200`, `serial://COM3` or `serial+tcp://127.0.0.1:5556`.

    `encoding` is how numbers cross the line: f4, or i2 and i1 with scales from the declared ranges. `mtu` bytes a frame
    at most, `window` answers remembered. Silent for `park_after_s`: the device is parked (0: never).
    `boot`: the boot id, random unless given.
    """

    def __init__(
        self,
        device: Device,
        bind: str,
        *,
        mtu: int = MOST_MTU,
        window: int = 8,
        encoding: str = "f4",
        park_after_s: float = 30.0,
        insecure: bool = False,
        boot: int | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        if park_after_s < 0:
            raise ConfigError(f"park_after_s: {park_after_s:g}; seconds of silence, or 0 for never")
        self.device = device
        self.park_after_s = park_after_s
        self.served: HzosServed | None = None
        self._options = {"mtu": mtu, "window": window, "encoding": encoding, "boot": boot}
        self._address = address_of(bind)
        self._log = log or logging.getLogger("hzo_hil.server")
        self._splitter = Splitter(mtu)
        self._heard = time.monotonic()
        self._parked = True
        self._line: Line | None = None
        self._listener: socket.socket | None = None
        if self._address.kind == "tcp":
            self._listener = _listen(self._address, insecure)
        else:
            self._line = open_line(self._address)

    @property
    def url(self) -> str:
        """Where hosts find it; with the port really bound. The other end of a serial line has a name of its own."""
        if self._listener is None:
            return self._address.url
        host, port = self._listener.getsockname()[:2]
        return f"serial+tcp://[{host}]:{port}" if ":" in host else f"serial+tcp://{host}:{port}"

    def serve(self, stop: threading.Event | None = None) -> None:
        """Until `stop` is set or Ctrl-C; then the device is parked and closed."""
        self.device.open()
        try:
            self.served = HzosServed(self.device, sleep=time.sleep, **self._options)  # type: ignore[arg-type]
            self._log.info("serving %s at %s", self.device.capabilities.identity, self.url)
            while stop is None or not stop.is_set():
                self._turn()
        except KeyboardInterrupt:
            self._log.info("stopped from outside")
        finally:
            self._park("the server stops")
            self.close()
            self.device.close()

    def close(self) -> None:
        """Give the port back. `serve` does so itself."""
        if self._line is not None:
            self._line.close()
        if self._listener is not None:
            self._listener.close()
        self._line = None

    def _turn(self) -> None:
        """Whatever comes within a slice of time, answered."""
        try:
            if self._line is None:
                self._line = self._next_line()
            else:
                self._answer(self._line, self._line.read(SLICE_S))
                self._make_room()
        except LinkLost as error:
            self._log.info("%s", error)
            if self._line is not None:
                self._line.close()
            self._line = None
            self._splitter.reset()
        silent = time.monotonic() - self._heard
        if self.park_after_s and silent >= self.park_after_s:
            self._park(f"no word from the host for {silent:.1f} s")

    def _answer(self, line: Line, chunk: bytes) -> None:
        assert self.served is not None
        for body in self._splitter.feed(chunk):
            self._parked = False
            self._heard = time.monotonic()
            self.served.bad_frames = self._splitter.bad_frames
            reply = self.served.receive(body)
            if reply is not None:
                line.write(on_line(reply))  # what a full line does not take is asked for again
            self._heard = time.monotonic()

    def _next_line(self) -> Line | None:
        """The next host on TCP; the port, once it is plugged in again."""
        if self._listener is None:
            try:
                return open_line(self._address, known=True)
            except (LinkLost, BadInput):
                time.sleep(SLICE_S)
                return None
        try:
            connection, peer = self._listener.accept()
        except (TimeoutError, BlockingIOError):
            return None
        self._log.info("a host connected from %s", peer[0])
        self._splitter.reset()
        return TcpLine(connection, self.url)

    def _make_room(self) -> None:
        """A cable that was pulled leaves a connection that never ends: the next host takes its place."""
        if self._listener is None or time.monotonic() - self._heard < ABANDONED_S:
            return
        self._listener.settimeout(0)
        try:
            following = self._next_line()
        finally:
            self._listener.settimeout(SLICE_S)
        if following is not None:
            if self._line is not None:
                self._line.close()
            self._line = following

    def _park(self, why: str) -> None:
        if self._parked or self.served is None:
            return
        self._parked = True
        with suppress(Exception):
            self._log.info("parking %s: %s", self.device.capabilities.identity, why)
            self.served.park()
            return
        self._log.exception("parking %s failed", self.device.capabilities.identity)


def _listen(address: Address, insecure: bool) -> socket.socket:
    host, port = address.endpoint
    if not insecure and not _is_loopback(host):
        raise ConfigError(
            f"{address.url}: a serial line over TCP has no keys, and {host} is open to other machines. Bind 127.0.0.1"
            " and tunnel (ssh -L), serve zmq+tcp with keys, or pass --insecure"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise _bind_failed(address, error) from error
    listener.settimeout(SLICE_S)
    return listener


def _bind_failed(address: Address, error: OSError) -> ConfigError:
    host, port = address.endpoint
    if isinstance(error, PermissionError):
        return ConfigError(f"{address.url}: ports below 1024 are for the administrator. Take one above, say 5556")
    return ConfigError(
        f"{address.url}: port {port} of {host} cannot be bound ({error}). Does another server use it, or is {host} not"
        " this machine? Port 0 picks a free one"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
