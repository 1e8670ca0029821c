"""Lines that carry plain bytes: a serial port by pyserial, a TCP connection to a board that speaks the same bytes.

An address is a URL with the port's settings as its query: `serial:///dev/ttyUSB0?baud=921600`, `serial://COM3`,
`serial+tcp://host:port`, `serial+rfc2217://host:port?baud=115200`. Knows no frames. What goes wrong is told in words:
BadInput where the user must change something, LinkLost where waiting may help.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from hzo_hil.devices.errors import BadInput, ConfigError, LinkLost

CHUNK = 1 << 16
WRITE_S = 1.0
SLICE_S = 0.01
DEFAULT_BAUD = 115200
SETTINGS = "baud, parity (N, E, O), stopbits (1, 2), rtscts, xonxoff, dsrdtr, dtr (0 or 1 each)"


class Line(Protocol):
    """An open line. Both raise LinkLost when it is gone."""

    def read(self, timeout: float) -> bytes:
        """What has come, in one piece; waits up to `timeout` seconds for the first byte. Empty: nothing came."""
        ...

    def write(self, data: bytes) -> bool:
        """False: the line did not take all of it within a second; the frame is damaged and must be sent again."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Address:
    """`kind`: port, tcp or rfc2217; `name`: the port, or host:port."""

    url: str
    kind: str
    name: str
    baud: int = DEFAULT_BAUD
    settings: dict[str, Any] = field(default_factory=dict)
    dtr: bool | None = None

    @property
    def endpoint(self) -> tuple[str, int]:
        parts = urlsplit("//" + self.name)
        return parts.hostname or "", parts.port or 0


def address_of(url: str, **more: Any) -> Address:
    """Reads a URL; `more` are settings as in its query. ConfigError for what is no address or no setting."""
    parts = urlsplit(url)
    kinds = {"serial": "port", "serial+tcp": "tcp", "serial+rfc2217": "rfc2217"}
    if parts.scheme not in kinds:
        raise ConfigError(f"{url}: a serial line is one of {', '.join(k + '://' for k in kinds)}")
    kind = kinds[parts.scheme]
    name = (parts.netloc + parts.path) if kind == "port" else parts.netloc
    try:
        whole = bool(name) and (kind == "port" or (bool(parts.hostname) and parts.port is not None))
    except ValueError:
        whole = False
    if not whole:
        wanted = "serial:///dev/ttyUSB0 or serial://COM3" if kind == "port" else f"{parts.scheme}://host:port"
        raise ConfigError(f"{url} names no {'port' if kind == 'port' else 'host and port'}: write {wanted}")
    given = dict(parse_qsl(parts.query, keep_blank_values=True)) | {k: str(v) for k, v in more.items()}
    baud, dtr, settings = DEFAULT_BAUD, None, {}
    for key, value in given.items():
        checked = _setting(url, key, value)
        if key == "baud":
            baud = int(checked)
        elif key == "dtr":
            dtr = bool(checked)
        else:
            settings[key] = checked
    return Address(url, kind, name, baud, settings, dtr)


def _setting(url: str, key: str, value: str) -> Any:
    known: dict[str, Any] = {
        "parity": {p: p for p in "NEO"},
        "stopbits": {"1": 1, "2": 2},
        **{k: {"0": False, "1": True} for k in ("rtscts", "xonxoff", "dsrdtr", "dtr")},
    }
    if key == "baud":
        if value.isdecimal() and int(value) > 0:
            return int(value)
    elif key not in known:
        raise ConfigError(f"{url}: a line has no setting {key!r}; it has {SETTINGS}")
    elif value in known[key]:
        return known[key][value]
    raise ConfigError(f"{url}: {key}={value} is no value; settings are {SETTINGS}")


def open_line(address: Address, *, known: bool = False, timeout: float = 5.0) -> Line:
    """`known`: it was open before, so that a port that is missing now was unplugged and may come back (LinkLost)."""
    if address.kind == "tcp":
        return _connected(address, timeout)
    import serial

    target = f"rfc2217://{address.name}" if address.kind == "rfc2217" else address.name
    options = dict(address.settings)
    if address.kind == "port":  # the other kind knows neither
        options |= {"exclusive": True, "write_timeout": WRITE_S}
    try:
        port = serial.serial_for_url(target, do_not_open=True, baudrate=address.baud, timeout=0, **options)
        if not _waitable(port):
            port.timeout = SLICE_S
        if address.dtr is not None:
            port.dtr = address.dtr
        port.open()
    except (OSError, ValueError, NotImplementedError) as error:  # pyserial's own is an OSError
        raise _in_words(address, error, known) from error
    with suppress(OSError):
        port.reset_input_buffer()
    return PortLine(port, address)


def _waitable(port: Any) -> bool:
    """Whether the system can wait for the port's bytes."""
    return os.name == "posix" and hasattr(port, "fileno") and "rfc2217" not in type(port).__module__


class PortLine:
    """A port as pyserial opens it."""

    def __init__(self, port: Any, address: Address) -> None:
        self._port = port
        self._address = address
        self._waits = _waitable(port)

    def read(self, timeout: float) -> bytes:
        try:
            if self._waits:
                ready, _, _ = select.select([self._port.fileno()], [], [], max(0.0, timeout))
                return bytes(self._port.read(CHUNK)) if ready else b""
            return self._read_in_slices(timeout)
        except (OSError, TypeError, ValueError) as error:
            raise self._lost(error) from error

    def _read_in_slices(self, timeout: float) -> bytes:
        """Windows, and ports on another machine: a port cannot be waited for beside others, only read for a while."""
        deadline = time.monotonic() + timeout
        while True:
            found = bytes(self._port.read(max(1, self._port.in_waiting)))
            if found or time.monotonic() >= deadline:
                return found

    def write(self, data: bytes) -> bool:
        import serial

        try:
            self._port.write(data)
        except serial.SerialTimeoutException:
            return False
        except (OSError, TypeError, ValueError) as error:
            raise self._lost(error) from error
        return True

    def close(self) -> None:
        with suppress(OSError, TypeError, ValueError):
            self._port.reset_output_buffer()  # or closing waits for bytes nobody reads
        with suppress(OSError, TypeError, ValueError):
            self._port.close()

    def _lost(self, error: BaseException) -> LinkLost:
        return LinkLost(f"{self._address.url}: the port is gone ({error}). Unplugged, or the other end closed it?")


class TcpLine:
    """A TCP connection that carries the bytes of a serial line, without delay for small frames."""

    def __init__(self, connection: socket.socket, url: str) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._socket = connection
        self._url = url

    def read(self, timeout: float) -> bytes:
        try:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, timeout))
            if not ready:
                return b""
            found = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return b""
        except (OSError, ValueError) as error:
            raise LinkLost(f"{self._url}: the connection broke ({error})") from error
        if not found:
            raise LinkLost(f"{self._url}: the other end closed the connection")
        return found

    def write(self, data: bytes) -> bool:
        deadline, left = time.monotonic() + WRITE_S, memoryview(data)
        try:
            while left:
                _, ready, _ = select.select([], [self._socket], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    return False
                with suppress(BlockingIOError, InterruptedError):
                    left = left[self._socket.send(left) :]
        except (OSError, ValueError) as error:
            raise LinkLost(f"{self._url}: the connection broke ({error})") from error
        return True

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()


def _connected(address: Address, timeout: float) -> Line:
    try:
        return TcpLine(socket.create_connection(address.endpoint, timeout=timeout), address.url)
    except OSError as error:
        raise LinkLost(
            f"{address.url}: no connection ({error}). Is the board or the server running there, and the port right?"
        ) from error


# --- what is wrong, in words ------------------------------------------------------------------------------------------


def _in_words(address: Address, error: Exception, known: bool) -> BadInput | LinkLost:
    number = getattr(error, "errno", None)
    number = number if isinstance(number, int) else next((a for a in error.args if isinstance(a, int)), None)
    text, name = str(error), address.name
    kind: type[BadInput] | type[LinkLost] = LinkLost if known or address.kind == "rfc2217" else BadInput
    if isinstance(error, NotImplementedError):
        return BadInput(f"{address.url}: ports of this kind do not have these settings ({error})")
    if address.kind == "rfc2217":
        return kind(f"{address.url}: no connection ({error}). Is the port server running there?")
    if isinstance(error, ValueError) or "Invalid baud" in text:
        return BadInput(
            f"{address.url}: the port refuses these settings ({error}). Its driver may not know the baud rate"
        )
    if number == errno.ENOENT or "FileNotFoundError" in text:
        return kind(f"{address.url}: there is no serial port {name}. {_ports()}")
    if number == errno.EACCES or "PermissionError" in text or "Access is denied" in text:
        return kind(f"{address.url}: permission to open {name} was denied. {_permission(name)}")
    if number in (errno.EAGAIN, errno.EBUSY) or "exclusively lock" in text:
        return kind(
            f"{address.url}: another program has {name} open. Close it (a terminal, another run), then try again"
        )
    if "Could not configure port" in text or number in (errno.ENOTTY, errno.EINVAL):
        return kind(f"{address.url}: {name} is no serial port, or refuses {address.baud} baud ({error}). {_ports()}")
    return kind(f"{address.url}: {name} could not be opened ({error}). {_ports()}")


def _ports() -> str:
    """The ports of this machine, in words."""
    from serial.tools import list_ports

    try:
        found = sorted((p.device, p.description) for p in list_ports.comports())
    except OSError:
        found = []
    if not found:
        return "This machine shows no serial port at all: is the adapter plugged in, its driver installed?"
    said = [name if what in ("n/a", "", name) else f"{name} ({what})" for name, what in found]
    return f"Serial ports here: {', '.join(said)}"


def _permission(name: str) -> str:
    if sys.platform == "win32":
        return "Another program has it open: close that, then try again"
    else:  # the checker of types for Windows reads no further only so
        import grp

        try:
            group = grp.getgrgid(os.stat(name).st_gid).gr_name
        except (OSError, KeyError):
            group = "dialout"
        if group == "root":
            return "It belongs to root alone: a udev rule can give it to group 'dialout' (Debian) or 'uucp' (Arch)"
        return f"It belongs to group {group!r}: `sudo usermod -aG {group} $USER`, and log in again"
