"""Which server a bind URL means: HZO/1 over ZeroMQ, or HZO-S/1 over a serial line or plain TCP."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import ConfigError


class Serving(Protocol):
    @property
    def url(self) -> str: ...
    def serve(self) -> None: ...


def server_for(
    device: Device,
    bind: str,
    *,
    keys: Path | None = None,
    allow: Path | None = None,
    insecure: bool = False,
    park_after_s: float = 30.0,
    credit: int = 16,
    longest_call_s: float | None = None,
    encoding: str = "f4",
    mtu: int = 512,
) -> Serving:
    """A server that is bound and not yet serving. ConfigError says in words what cannot be bound."""
    if bind.startswith("serial"):
        if keys is not None or allow is not None:
            raise ConfigError(f"{bind}: a serial line has no keys; serve zmq+tcp:// for encryption")
        from hzo_hil.devices.serial_server import SerialServer

        return SerialServer(
            device, bind, window=credit, encoding=encoding, mtu=mtu, park_after_s=park_after_s, insecure=insecure
        )
    from hzo_hil.devices.server import Server

    return Server(
        device, bind, keys=keys, allow=allow, insecure=insecure, credit=credit, park_after_s=park_after_s,
        longest_call_s=longest_call_s,
    )  # fmt: skip
