"""The host's end of a serial line: frames checked and cut out of bytes, bodies handed on.

One message is one body, `[body]`. Damaged frames are counted and dropped. Knows no message's meaning.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hzo_hil.devices.errors import LinkLost
from hzo_hil.devices.transports.lines import Line, address_of, open_line
from hzo_hil.devices.wire.hzos_frames import MOST_MTU, Splitter, on_line

TOO_MANY_BYTES = 32 * MOST_MTU
"""More than a board says of itself while it starts."""


class SerialTransport:
    """For `serial://`, `serial+tcp://` and `serial+rfc2217://`; `settings` as in the URL's query (`baud=...`)."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._address = address_of(url, **settings)
        self._line: Line | None = None
        self._splitter = Splitter()
        self._opened_before = False
        self._bytes = self._good = 0

    @property
    def bad_frames(self) -> int:
        return self._splitter.bad_frames

    @property
    def problem(self) -> str:
        """Plenty of bytes came and none of them made a frame."""
        return self.hint if self._bytes >= TOO_MANY_BYTES else ""

    @property
    def hint(self) -> str:
        """What may be wrong with a line on which no frame has come yet; else empty."""
        name, baud = self._address.name, self._address.baud
        speed = "" if self._address.kind == "tcp" else f" is it set to {baud} baud as this host is (?baud=...), and"
        if self._good or self._line is None:
            return ""
        if self._bytes:
            return f"{self._bytes} bytes came from {name} and no frame among them:{speed} does it speak HZO-S/1?"
        return f"Not one byte came from {name}:{speed} is it on, are its wires crossed (TX to RX)?"

    def open(self) -> None:
        self.close()
        self._line = open_line(self._address, known=self._opened_before)
        self._opened_before = True
        self._splitter.reset()

    def send(self, frames: Sequence[Any]) -> bool:
        (body,) = frames
        return self._open_line().write(on_line(bytes(body)))

    def receive(self, timeout: float) -> list[list[Any]]:
        deadline = time.monotonic() + timeout
        while True:
            chunk = self._open_line().read(max(0.0, deadline - time.monotonic()))
            self._bytes += len(chunk)
            bodies = self._splitter.feed(chunk)
            self._good += len(bodies)
            if bodies or time.monotonic() >= deadline:
                return [[body] for body in bodies]

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _open_line(self) -> Line:
        if self._line is None:
            raise LinkLost(f"{self._address.url} is not open")
        return self._line
