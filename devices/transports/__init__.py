"""Ways to carry whole messages between a host and a device, and which of them a URL means.

A transport knows no message's meaning. Importing this needs neither zmq nor serial: they are fetched when used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hzo_hil.devices.errors import ConfigError

Buffer = Any
SCHEMES = (
    "zmq+tcp",
    "zmq+ipc",
    "tcp",
    "ipc",
    "serial",
    "serial+tcp",
    "serial+rfc2217",
    "memory",
)


class Transport(Protocol):
    """The host's end of one line to one device. Opened and closed any number of times."""

    @property
    def problem(self) -> str:
        """Empty, or what is known to be wrong with the line, in words ("wrong keys: ...")."""
        ...

    @property
    def bad_frames(self) -> int:
        """Damaged frames that were dropped, where the line can tell."""
        ...

    def open(self) -> None:
        """BadInput: the user's mistake, in words. LinkLost: it may work later."""
        ...

    def send(self, frames: Sequence[Buffer]) -> bool:
        """One message. False: it would block, try later. LinkLost: the line is gone."""
        ...

    def receive(self, timeout: float) -> list[list[Buffer]]:
        """Whole messages; waits up to `timeout` seconds for the first. LinkLost: the line is gone."""
        ...

    def close(self) -> None:
        """Never lingers."""
        ...


def scheme_of(url: str) -> str:
    """The part before `://`, if it is a known one; ConfigError lists those known."""
    scheme, found, rest = url.partition("://")
    if not found or scheme not in SCHEMES or not rest:
        raise ConfigError(
            f"{url!r} is no address of a device: it starts with one of"
            f" {', '.join(s + '://' for s in SCHEMES)}, for example tcp://192.168.1.20:5555, serial:///dev/ttyUSB0"
            " or serial://COM3"
        )
    return scheme


def transport_to(url: str, keys: Path | None = None, **options: Any) -> Transport:
    """The transport a URL means, not yet opened. `keys`: a folder made by `make_keys` (zmq only)."""
    scheme = scheme_of(url)
    if keys is not None and scheme not in ("tcp", "ipc", "zmq+tcp", "zmq+ipc"):
        raise ConfigError(f"{url}: keys protect ZeroMQ connections only; leave them out for {scheme}://")
    if scheme.startswith("serial"):
        from hzo_hil.devices.transports.serial import SerialTransport

        return SerialTransport(url, **options)
    if scheme == "memory":
        from hzo_hil.devices.transports.memory import MemoryTransport

        return MemoryTransport(url, **options)
    from hzo_hil.devices.transports.zeromq import ZmqTransport

    return ZmqTransport(url, keys=keys, **options)
