"""Ctrl-C, and SIGTERM (`kill`, `docker stop`, a cluster's time limit), which ends a command as Ctrl-C does.

Python's own answer to SIGTERM is to end at once, without what is due on the way out: the last checkpoint, devices
parked. For commands, not for a library: a process has one handler, and it is the program's.
"""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived."""


def heed_sigterm() -> None:
    """Have SIGTERM raise `Terminated` in the main thread, from where this must be called."""
    signal.signal(signal.SIGTERM, once)


def once(number: int, frame: FrameType | None) -> None:
    """A handler that raises at the first signal: later ones must not disturb what the first one saves."""
    signal.signal(number, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def status_of(error: BaseException) -> int:
    """What shells show for a process that ended by it."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
