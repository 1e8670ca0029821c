"""Shows a device that its host lives while the caller is busy: a daemon thread, which ends with what it keeps."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

log = logging.getLogger("hzo_hil.link")


class Kept(Protocol):
    @property
    def name(self) -> str: ...
    def keep(self) -> None:
        """Called every period, from the keeper's thread."""
        ...


class Keeper:
    """Calls `keep` every `period_s` until it is stopped or `device` is gone."""

    def __init__(self, device: Kept, place: str, period_s: float) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_keep,
            args=(weakref.ref(device), self._stopped, period_s),
            name=f"hzo keeper {place}",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)


def _keep(device: weakref.ref[Kept], stopped: threading.Event, period_s: float) -> None:
    while not stopped.wait(period_s):
        owner = device()
        if owner is None:
            return
        try:
            owner.keep()
        except Exception as error:  # noqa: BLE001 - the caller meets it at its next call
            log.debug("%s: keeper: %s", owner.name, error)
        del owner
