"""One way to one device, shared by everything on this host that uses it.

A blocking driver gets a worker thread, so that the host works while the device does; a pipelined one is
driven as it is. The link remembers what each physical stage holds and for whom. It knows no networks.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Device, Pipelined, Query, Reply
from hzo_hil.devices.errors import DeviceError, DeviceGone
from hzo_hil.health import watch_of

Array = NDArray[Any]
SLICE_S = 0.25


@dataclass(frozen=True)
class Arrival:
    """What came back for a ticket, and how long the device took (seconds; 0 where unknown)."""

    ticket: int
    result: Reply | BaseException
    seconds: float


@dataclass(frozen=True)
class Held:
    """What a physical stage holds: the tenant's name for it, and the values last written."""

    tenant: tuple[Any, ...]
    values: Mapping[str, Array]


class Link:
    """Submit queries, poll arrivals, write parameters. Opened on first use, in the thread that serves it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.capabilities = device.capabilities
        self.name = self.capabilities.identity
        self.held: dict[int, Held] = {}
        self.forgotten = 0
        """How often the device lost its parameters."""
        self.exclusive: dict[int, Any] = {}
        self._pid = os.getpid()
        # Only a pipelined device can be asked again while an answer is missing.
        self.pipelined = device if isinstance(device, Pipelined) else None
        self.window = self.pipelined.window if self.pipelined else 3
        self.watch = watch_of(device)
        self.by_sample = bool(getattr(device, "by_sample", False))
        self._keeps_clock = self.capabilities.virtual_time and getattr(device, "virtual_clock", None) is not None
        self._outstanding: set[int] = set()
        self._stash: list[Arrival] = []
        self._opened = False
        self._parked = False
        self._next = 0
        self._jobs: queue.SimpleQueue[tuple[int, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._cancelled_below = 0
        self._worker: threading.Thread | None = None

    # --- queries -----------------------------------------------------------------------------------------------

    def submit(self, query: Query) -> int:
        self._ready()
        if self.pipelined:
            ticket = self.pipelined.submit(query)
            self._outstanding.add(ticket)
            return int(ticket)
        return self._enqueue(lambda: query.run_on(self.device))

    def poll(self, timeout: float) -> list[Arrival]:
        """What has arrived; waits up to `timeout` seconds for the first."""
        if self.pipelined:
            stashed, self._stash = self._stash, []
            return stashed or self._collect(timeout)
        found: list[Arrival] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                arrival = self._next_done(0.0 if found else deadline - time.monotonic())
            except queue.Empty:
                return found
            if arrival.ticket >= self._cancelled_below:
                found.append(arrival)

    def cancel(self) -> None:
        """Forget everything outstanding; the device stays usable."""
        if os.getpid() != self._pid:
            return  # what is in flight is the parent's
        if self.pipelined:
            self.pipelined.cancel()
            self._outstanding.clear()
            self._stash.clear()
            return
        self._cancelled_below = self._next
        # Jobs not begun are dropped by the worker; the one that runs ends in its own time.

    def drain(self, timeout: float) -> None:
        """Wait for everything in flight on a pipelined device; what arrives is kept for `poll`."""
        deadline = time.monotonic() + timeout
        while self._outstanding and time.monotonic() < deadline:
            self._stash += self._collect(max(0.0, deadline - time.monotonic()))

    def _collect(self, timeout: float) -> list[Arrival]:
        assert self.pipelined is not None
        arrived = [Arrival(t, r, getattr(r, "seconds", 0.0)) for t, r in self.pipelined.poll(timeout)]
        self._outstanding.difference_update(a.ticket for a in arrived)
        return arrived

    # --- everything else, in order with the queries ------------------------------------------------------------

    def call(self, action: Callable[[], Any], timeout: float = 60.0) -> Any:
        """Run `action` in the device's thread after what was submitted before it, and wait for its result."""
        self._ready()
        return self._call(action, timeout)

    def write(self, stage: int, values: Mapping[str, Array], tenant: tuple[Any, ...], key: int) -> None:
        """Write a whole stage, telling the driver which values changed."""
        before = self.held.pop(stage, None)
        where = _changes(before.values, values) if before else None
        options: dict[str, Any] = {"where": where}
        if self.capabilities.keyed:
            options["key"] = key
        self.call(lambda: self.device.write(stage, values, **options))
        self.held[stage] = Held(tenant, values)

    @property
    def clock(self) -> Any:
        """Where the own time of a device stands that is simulated here and drifts, as plain data; None of any other."""
        device: Any = self.device
        return self.call(lambda: device.virtual_clock) if self._keeps_clock else None

    @clock.setter
    def clock(self, state: Any) -> None:
        if state is not None and self._keeps_clock:
            self.call(lambda: setattr(self.device, "virtual_clock", state))

    def forget(self) -> None:
        """The device lost its parameters: everything is written again before it is next used."""
        self.held.clear()
        self.forgotten += 1

    def park(self) -> None:
        """Bring the device to its safe state, where its driver knows one, unless it is still there."""
        park = getattr(self.device, "park", None)
        if park is not None and self._opened and not self._parked and os.getpid() == self._pid:
            self.call(park)
            self.forget()
            self._parked = True

    def close(self) -> None:
        if self._opened and self._pid == os.getpid():
            self.park()
            self._call(self.device.close, 60.0)
        elif self.pipelined and self._pid == os.getpid():
            self.device.close()  # asking for its capabilities may have connected it
        if self._worker is not None:
            self._jobs.put(None)
        self._opened, self._worker = False, None
        self.forget()

    # --- threads -----------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if os.getpid() != self._pid:
            raise DeviceError(
                f"the link to device {self.name!r} was opened by process {self._pid} and does not cross a fork to"
                f" {os.getpid()}. Open the device in the process that uses it (start workers with 'spawn')"
            )
        if not self._opened:
            self._call(self.device.open, 60.0)
            self._opened = True
        self._parked = False

    def _call(self, action: Callable[[], Any], timeout: float) -> Any:
        if self.pipelined:
            return action()
        ticket = self._enqueue(action)
        deadline = time.monotonic() + timeout
        kept: list[Arrival] = []
        try:
            while True:
                try:
                    arrival = self._next_done(deadline - time.monotonic())
                except queue.Empty:
                    raise DeviceGone(
                        f"device {self.name!r} did not answer within {timeout:g} s. Is it switched on and connected?"
                    ) from None
                if arrival.ticket == ticket:
                    if isinstance(arrival.result, BaseException):
                        raise arrival.result
                    return arrival.result
                if arrival.ticket >= self._cancelled_below:
                    kept.append(arrival)
        finally:
            for arrival in kept:
                self._done.put(arrival)

    def _next_done(self, timeout: float) -> Arrival:
        """The next arrival; `queue.Empty` after `timeout` seconds. In slices: Windows defers Ctrl-C by one."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > SLICE_S:
            with suppress(queue.Empty):
                return self._done.get(timeout=SLICE_S)
        return self._done.get(timeout=left) if left > 0 else self._done.get_nowait()

    def _enqueue(self, action: Callable[[], Any]) -> int:
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(
                target=_serve, args=(weakref.ref(self), self._jobs, self._done), name=f"hzo {self.name}", daemon=True
            )
            self._worker.start()
            weakref.finalize(self, self._jobs.put, None)
        ticket = self._next
        self._next += 1
        self._jobs.put((ticket, action))
        return ticket


def _serve(link: weakref.ref[Link], jobs: Any, done: Any) -> None:
    while (job := jobs.get()) is not None:
        ticket, action = job
        owner = link()
        if owner is None:
            return
        dropped = ticket < owner._cancelled_below
        del owner
        if dropped:
            continue
        start = time.perf_counter()
        try:
            result = action()
        except BaseException as error:  # noqa: BLE001 - a driver may raise anything; the asker gets it
            result = error
        done.put(Arrival(ticket, result, time.perf_counter() - start))
        del action, result, job


def _changes(before: Mapping[str, Array], after: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: np.flatnonzero(before[name] != values) if name in before else np.arange(values.size)
        for name, values in after.items()
    }


_links: weakref.WeakValueDictionary[int, Link] = weakref.WeakValueDictionary()


@atexit.register
def _close_all() -> None:
    """However the process ends, short of being killed, devices are parked. SIGTERM kills what does not heed it."""
    for link in list(_links.values()):
        with suppress(Exception):
            link.close()


def link_to(device: Device) -> Link:
    """The one link to a device object, kept as long as anything uses it."""
    # The link holds its device, so an id cannot be reused while its entry lives.
    link = _links.get(id(device))
    if link is None:
        link = _links[id(device)] = Link(device)
    return link
