"""A line inside one process: `memory://name` finds the listener of that name. For tests and demonstrations.

Frames are copied into bytes on their way, as a real line would. `idle` replaces waiting, so that a test can move a
clock of its own and let the device work on the same thread.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Sequence
from typing import Any

from hzo_hil.devices.errors import ConfigError, LinkLost

Buffer = Any
Message = tuple[bytes, list[Buffer]]

_listeners: dict[str, MemoryListener] = {}


class MemoryListener:
    """The device's end: one for each name."""

    def __init__(self, url: str) -> None:
        if url in _listeners:
            raise ConfigError(f"{url} is in use by another server of this process")
        self.url = url
        self.bad_frames = 0
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.peers: dict[bytes, queue.SimpleQueue[list[Buffer]]] = {}
        _listeners[url] = self

    def receive(self, timeout: float) -> list[Message]:
        return _drain(self.inbox, timeout)

    def send(self, peer: bytes, frames: Sequence[Buffer]) -> bool:
        inbox = self.peers.get(peer)
        if inbox is not None:
            inbox.put(_copied(frames))
        return inbox is not None

    def close(self) -> None:
        if _listeners.get(self.url) is self:
            del _listeners[self.url]


class MemoryTransport:
    """The host's end. What is sent while nobody listens is lost, as on a cut cable."""

    _numbers = itertools.count(1)

    def __init__(self, url: str, idle: Callable[[float], None] | None = None) -> None:
        self.url = url
        self.problem = ""
        self.bad_frames = 0
        self._idle = idle
        self._inbox: queue.SimpleQueue[list[Buffer]] = queue.SimpleQueue()
        self._peer = b""

    def open(self) -> None:
        self._peer = next(self._numbers).to_bytes(4, "big")
        self._inbox = queue.SimpleQueue()

    def send(self, frames: Sequence[Buffer]) -> bool:
        if not self._peer:
            raise LinkLost(f"{self.url} is closed")
        listener = _listeners.get(self.url)
        if listener is not None:
            listener.peers[self._peer] = self._inbox
            listener.inbox.put((self._peer, _copied(frames)))
        return True

    def receive(self, timeout: float) -> list[list[Buffer]]:
        if self._idle is not None:
            if timeout > 0 and self._inbox.empty():
                self._idle(timeout)
            timeout = 0.0
        return _drain(self._inbox, timeout)

    def close(self) -> None:
        listener = _listeners.get(self.url)
        if listener is not None:
            listener.peers.pop(self._peer, None)
        self._peer = b""


def _copied(frames: Sequence[Buffer]) -> list[Buffer]:
    return [f if type(f) is bytes else f.tobytes() if hasattr(f, "tobytes") else bytes(f) for f in frames]


def _drain(inbox: queue.SimpleQueue[Any], timeout: float) -> list[Any]:
    """Everything there; waits up to `timeout` seconds for the first."""
    found: list[Any] = []
    try:
        found.append(inbox.get(timeout=timeout) if timeout > 0 else inbox.get_nowait())
        while True:
            found.append(inbox.get_nowait())
    except queue.Empty:
        return found
