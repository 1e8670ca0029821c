"""SIGTERM (`kill`, `docker stop`, a cluster's time limit) ends a command as Ctrl-C does.

Python's own answer is to end at once, without what is due on the way out: the last checkpoint, devices parked. For
commands, not for a library: a process has one handler, and it is the program's.
"""

from __future__ import annotations

import signal
from types import FrameType

STATUS = 128 + signal.SIGTERM
"""What shells show for a process that ended by it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived."""


def heed_sigterm() -> None:
    """Have the first SIGTERM raise `Terminated` in the main thread, from where this must be called. Later ones must
    not disturb what the first one saves.
    """
    signal.signal(signal.SIGTERM, _once)


def _once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
