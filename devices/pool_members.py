"""One member of a pool, in a thread of its own: whatever it does, the pool goes on.

Every call to the member comes from that thread, in the order of the jobs put to it. What comes of them is put on the
pool's list of events. It decides nothing: the pool does.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, Device, ParameterSpec, Pipelined, Query
from hzo_hil.devices.errors import LinkLost

SLICE_S = 0.002
MARGIN_S = 2.0
"""Beyond the longest call that a device declares, its silence means that it is lost."""
QUEUED = 2
"""Queries a blocking member is given at a time: one runs and the next is there when it ends."""
NOBODY = -1
"""The ticket of a job whose result nobody waits for."""


@dataclass(frozen=True)
class Event:
    """The result of a job; late ones, of before the member was set aside, carry an old `era`."""

    member: Member
    era: int
    ticket: int
    result: Any


@dataclass
class _Job:
    ticket: int
    era: int
    query: Query | None = None
    action: Callable[[], Any] | None = None
    sink: list[Any] | None = None


@dataclass(eq=False)
class Member:
    """`era` counts how often the member was set aside or rebooted; `out` holds its tickets and when they were given."""

    number: int
    device: Device
    events: queue.SimpleQueue[Event]
    name: str = ""
    window: int = QUEUED
    up: bool = False
    era: int = 0
    heard: float = 0.0
    out: set[int] = field(default_factory=set)
    _jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None
    _pipelined: bool = False
    _flying: dict[int, _Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pipelined = isinstance(self.device, Pipelined) and self.device.window > 1
        if self._pipelined:
            self.window = int(self.device.window)  # type: ignore[attr-defined]

    @property
    def capabilities(self) -> Capabilities:
        return self.device.capabilities

    @property
    def room(self) -> int:
        return self.window - len(self.out)

    @property
    def lost(self) -> bool:
        """What a device behind a wire says of the way to it."""
        return getattr(self.device, "state", "") == "lost"

    def ask(self, ticket: int, query: Query) -> None:
        if not self.out:
            self.heard = time.monotonic()
        self.out.add(ticket)
        self._put(_Job(ticket, self.era, query=query))

    def call(self, ticket: int, action: Callable[[], Any]) -> None:
        """`action` in the member's thread, after what was put before it."""
        self._put(_Job(ticket, self.era, action=action))

    def forget(self) -> None:
        """Nothing that was asked so far is wanted any more."""
        self.era += 1
        self.out.clear()
        if self._pipelined and self._thread is not None:
            self.call(NOBODY, self._cancel)

    def answer(self, query: Query) -> Any:
        """Ask and wait, in the member's thread, beside the queries in flight. Raises what went wrong."""
        self.heard = time.monotonic()
        if not self._pipelined:
            return query.run_on(self.device)
        job = _Job(NOBODY, self.era, query=query, sink=[])
        assert job.sink is not None
        patience = self.capabilities.longest_call_s + MARGIN_S
        deadline = time.monotonic() + patience
        self._run(job, query)
        while not job.sink:
            if time.monotonic() > deadline or job.era != self.era:
                raise LinkLost(f"it did not answer the common batch within {patience:g} s")
            self._poll()
        if isinstance(job.sink[0], BaseException):
            raise job.sink[0]
        return job.sink[0]

    def write_whole(self, stage: int, values: Mapping[str, Array], key: int) -> None:
        """Write a stage, in the member's thread, whatever it holds: by way of what it says it holds where it has a
        slew."""
        capabilities = self.capabilities
        options: dict[str, Any] = {"key": key} if capabilities.keyed else {}
        specs = capabilities.stages[stage].parameters
        held = self.device.read(stage) if any(s.slew for s in specs) else {}
        steps = max([1, *(_steps(s, held.get(s.name), values[s.name]) for s in specs)])
        for step in range(1, steps + 1):
            self.heard = time.monotonic()
            on_the_way = {n: _between(held.get(n), v, step / steps) for n, v in values.items()}
            self.device.write(stage, on_the_way, where=None, **options)
            if capabilities.settling_s and not capabilities.virtual_time:
                time.sleep(capabilities.settling_s)

    def stop(self) -> None:
        self._jobs.put(None)

    def join(self, timeout: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout)

    # --- in the member's thread ----------------------------------------------------------------------------------

    def _put(self, job: _Job) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._serve, name=f"hzo pool {self.name}", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _serve(self) -> None:
        while True:
            try:
                job = self._jobs.get(block=not self._flying)
            except queue.Empty:
                self._poll()
                continue
            if job is None:
                return
            if job.action is not None:
                self._tell(job, _outcome(job.action))
            elif job.era == self.era and job.query is not None:
                self._run(job, job.query)

    def _run(self, job: _Job, query: Query) -> None:
        if not self._pipelined:
            self._tell(job, _outcome(lambda: query.run_on(self.device)))
            return
        while len(self._flying) >= self.window:
            self._poll()
            if job.era != self.era:
                return
        ticket = _outcome(lambda: self.device.submit(query))  # type: ignore[attr-defined]
        if isinstance(ticket, BaseException):
            self._tell(job, ticket)
        else:
            self._flying[int(ticket)] = job

    def _cancel(self) -> None:
        """What flies is of before the member was set aside: nobody waits for it, but it fills the window."""
        self.device.cancel()  # type: ignore[attr-defined]
        self._flying.clear()

    def _poll(self) -> None:
        arrived = _outcome(lambda: self.device.poll(SLICE_S))  # type: ignore[attr-defined]
        if isinstance(arrived, BaseException):
            failed, self._flying = self._flying, {}
            for job in failed.values():
                self._tell(job, arrived)
            return
        for ticket, result in arrived:
            if (flown := self._flying.pop(ticket, None)) is not None:
                self._tell(flown, result)

    def _tell(self, job: _Job, result: Any) -> None:
        if job.sink is not None:
            job.sink.append(result)
            return
        self.events.put(Event(self, job.era, job.ticket, result))


def _outcome(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except BaseException as error:  # noqa: BLE001 - a driver may raise anything; the asker gets it
        return error


def _steps(spec: ParameterSpec, held: Array | None, wanted: Array) -> int:
    if not spec.slew or held is None:
        return 1
    return math.ceil(float(np.max(np.abs(wanted - held), initial=0.0)) / spec.slew)


def _between(held: Array | None, wanted: Array, share: float) -> Array:
    if held is None or share >= 1.0:
        return wanted
    return np.ascontiguousarray(held + share * (wanted - held), dtype=wanted.dtype)
