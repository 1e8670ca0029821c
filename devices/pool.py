"""Several replicas of a device as one, with their windows added up, that survives the loss of members.

This module spreads queries over members and puts answers together; who is in use is the business of `pool_crew`.
What a pool cannot know: whether a device that answers the common batch alike does so everywhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, Device, Health, Query, Reply, Segment
from hzo_hil.devices.errors import BadInput, BadReply, BadStep, CapabilityError, DeviceRebooted, LinkLost
from hzo_hil.devices.pool_crew import SLICE_S, Crew
from hzo_hil.devices.pool_members import Event, Member
from hzo_hil.devices.pool_rules import common


@dataclass(eq=False)
class _Flight:
    """A query of the host, and its answers so far: (rows of it, reply)."""

    ticket: int
    query: Query
    parts: int
    replies: list[tuple[Array | None, Reply]] = field(default_factory=list)


@dataclass(eq=False)
class _Part:
    """What one member is asked of a flight; `chip` where it must be this member. `failures`: by whom, and not by the
    way."""

    flight: _Flight
    query: Query
    rows: Array | None = None
    chip: Member | None = None
    member: Member | None = None
    failures: set[int] = field(default_factory=set)


class Pool:
    """`members` as one pipelined device; each may be pipelined or blocking, and works in a thread of its own.

    `identical`: each query goes to the member with most room. Before the first query, and before one that was set aside
    joins again, members answer a common batch of `join_rows` rows `join_repeats` times and are refused where they
    differ by more than their measured noise (and `tolerance`, in units of the output): see `pool_rules.unlike`,
    false-alarm rate 1e-6 a check. Parameters that nobody has written are taken from the first member then.

    Not `identical` (different chips of a kind): all rows of a sample (`Query.samples`; the number of the row where
    there is none) go to member sample % n of the n in use, and nothing is compared. When one is lost, queries with
    samples that were on it end in BadStep, and later ones spread over the rest.

    A member that fails or falls silent for `longest_call_s` + 2 s is set aside, its queries go to the others, and it is
    tried again after `retry_s` and ever longer. One that lost its parameters is written again. LinkLost comes only
    when no member was in use for `patience_s`. The batches of checks appear in no ledger.
    """

    def __init__(
        self,
        members: Sequence[Device],
        identical: bool = True,
        join_rows: int = 32,
        join_repeats: int = 4,
        tolerance: float = 0.0,
        retry_s: float = 1.0,
        patience_s: float = 30.0,
        seed: int = 0,
    ) -> None:
        if not members:
            raise CapabilityError("a pool needs at least one member")
        if len({id(m) for m in members}) < len(members):
            raise CapabilityError("a device is in the pool twice: each member is a device of its own")
        if join_rows < 1 or join_repeats < 2:
            raise BadInput(
                f"join_rows must be at least 1 (is {join_rows}), join_repeats at least 2 (is {join_repeats})"
            )
        self.identical = identical
        self.by_sample = not identical
        self.patience_s = patience_s
        self._crew = Crew(
            members, identical=identical, join_rows=join_rows, join_repeats=join_repeats, tolerance=tolerance,
            retry_s=retry_s, seed=seed, on_down=self._member_down, on_reboot=self._member_rebooted,
        )  # fmt: skip
        self._capabilities = common([m.capabilities for m in members])
        self._crew.describe(self._capabilities)
        self.window = sum(m.window for m in self._crew.members)
        self._joined = False
        self._flights: dict[int, _Flight] = {}
        self._parts: dict[int, _Part] = {}
        self._waiting: deque[_Part] = deque()
        self._done: list[tuple[int, Reply | Exception]] = []
        for name, rule in (("park", any), ("maintain", all)):
            if rule(callable(getattr(m, name, None)) for m in members):
                setattr(self, name, partial(self._do, name))

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def counters(self) -> Mapping[str, int]:
        """Members set aside, joined again, rebooted, refused; parts of queries moved to another member."""
        return dict(self._crew.counters)

    @property
    def in_use(self) -> list[str]:
        return [m.name for m in self._crew.up]

    # --- the device ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Raises the error of a member that cannot be opened: a pool starts whole."""
        crew = self._crew
        for number, error in crew.each(crew.members, lambda m: m.device.open(), timeout=60.0).items():
            if isinstance(error, BaseException):
                error.add_note(f"(member {crew.members[number].name!r} of {self._capabilities.identity})")
                raise error
        crew.start(crew.members)
        self._joined = False

    def run(
        self, segment: Segment, inputs: Array, taps: Sequence[int] = (), repeats: int = 1, keys: Array | None = None
    ) -> Reply:
        ticket = self.submit(Query(segment, inputs, taps, repeats, keys))
        others: list[tuple[int, Reply | Exception]] = []
        while True:
            for number, result in self.poll(1.0):
                if number != ticket:
                    others.append((number, result))
                    continue
                self._done = others + self._done
                if isinstance(result, Exception):
                    raise result
                return result

    def write(
        self, stage: int, parameters: Mapping[str, Array], where: Mapping[str, Array] | None = None, key: int = 0
    ) -> None:
        """To every member in use at once. A member that fails is set aside, and written when it is back."""
        self._crew.write(stage, parameters, where, key)
        while not self._crew.up:
            self._check_patience()
            self._handle(self._crew.pump(SLICE_S))

    def read(self, stage: int) -> Mapping[str, Array]:
        found: Mapping[str, Array] = self._crew.one(lambda m: m.device.read(stage))
        return found

    def snapshot(self) -> Mapping[str, Any]:
        found = self._crew.each(self._crew.up, lambda m: dict(m.device.snapshot()))
        members = self._crew.members
        told = {members[n].name: str(s) if isinstance(s, BaseException) else s for n, s in sorted(found.items())}
        return {"identity": self._capabilities.identity, "in_use": self.in_use, "members": told} | self._crew.counters

    def health(self) -> Health:
        """Well only if every member is in use and well."""
        crew, faults = self._crew, []
        found = crew.each(crew.up, lambda m: m.device.health())
        for member in crew.members:
            said = found.get(member.number, crew.why.get(member.number, "not in use"))
            if not isinstance(said, Health) or not said.ok:
                faults.append(f"{member.name}: {said.detail if isinstance(said, Health) else said}")
        return Health(not faults, "; ".join(faults))

    def close(self) -> None:
        crew = self._crew
        self.cancel()
        up = crew.up
        results = crew.each(up, lambda m: m.device.close(), timeout=10.0)
        for member in crew.members:
            if member not in up:
                member.call(-1, member.device.close)
            member.up = False
            member.stop()
        for member in up:
            member.join(1.0)
        for error in results.values():
            if isinstance(error, BaseException):
                raise error

    def _do(self, name: str) -> None:
        """Park or maintain every member in use."""
        crew = self._crew
        able = [m for m in crew.up if callable(getattr(m.device, name, None))]
        for number, error in crew.each(able, lambda m: getattr(m.device, name)()).items():
            if isinstance(error, BaseException):
                crew.fail(crew.members[number], error)
        if name == "park":
            crew.forget()

    # --- queries ---------------------------------------------------------------------------------------------------

    def submit(self, query: Query) -> int:
        if not self._joined:
            self._join()
        flight = _Flight(next(self._crew.tickets), query, 1)
        parts = [_Part(flight, query)] if self.identical else self._split(flight)
        flight.parts = len(parts)
        self._flights[flight.ticket] = flight
        self._waiting.extend(parts)
        self._feed()
        return flight.ticket

    def poll(self, timeout: float) -> list[tuple[int, Reply | Exception]]:
        deadline = time.monotonic() + timeout
        while not self._done and self._flights:
            left = deadline - time.monotonic()
            self._handle(self._crew.pump(min(SLICE_S, left)))
            if not self._crew.up:
                self._give_up_in_time()
            if left <= 0:
                break
        found, self._done = self._done, []
        return found

    def cancel(self) -> None:
        for member in self._crew.members:
            member.forget()
        self._flights.clear()
        self._parts.clear()
        self._waiting.clear()
        self._done.clear()

    def _join(self) -> None:
        """All members hold the same before the first query, and answer it alike."""
        crew = self._crew
        for stage in crew.missing():
            crew.write(stage, crew.one(partial(_read, stage)), None, 0)
        crew.check_all()
        self._joined = True

    def _split(self, flight: _Flight) -> list[_Part]:
        query, members = flight.query, self._crew.up
        if len(members) < 2:
            return [_Part(flight, query, chip=members[0] if members else None)]
        samples = getattr(query, "samples", None)
        owners = np.asarray(np.arange(len(query.inputs)) if samples is None else samples) % len(members)
        parts = []
        for number in np.unique(owners):
            rows = np.flatnonzero(owners == number)
            cut = {n: v[rows] for n in ("inputs", "keys", "samples") if (v := getattr(query, n, None)) is not None}
            parts.append(_Part(flight, dataclasses.replace(query, **cut), rows, members[number]))
        return parts

    def _feed(self) -> None:
        """Give out what there is room for, in order."""
        kept: deque[_Part] = deque()
        while self._waiting:
            part = self._waiting.popleft()
            able = [part.chip] if part.chip is not None else self._crew.up
            member = max(able, key=lambda m: m.room, default=None)
            if member is None or member.room < 1 or not member.up:
                kept.append(part)
                if part.chip is None:
                    break
                continue
            ticket = next(self._crew.tickets)
            self._parts[ticket], part.member = part, member
            member.ask(ticket, part.query)
        kept.extend(self._waiting)
        self._waiting = kept

    def _handle(self, events: Sequence[Event]) -> None:
        for event in events:
            # An event before this one may have set the member aside.
            if event.era == event.member.era and (part := self._parts.pop(event.ticket, None)) is not None:
                event.member.out.discard(event.ticket)
                self._take(event, part)
        self._feed()

    def _take(self, event: Event, part: _Part) -> None:
        member, result = event.member, event.result
        if isinstance(result, DeviceRebooted):
            self._waiting.appendleft(part)
            self._crew.reboot(member, result)
        elif isinstance(result, BadInput):
            self._end(part.flight, result)
        elif isinstance(result, Exception):
            if not isinstance(result, LinkLost):
                part.failures.add(member.number)
            if len(part.failures) >= min(2, len(self._crew.members)):
                # Two of them say so: it is the query.
                self._crew.fail(member, result)
                self._end(part.flight, result)
            else:
                self._move(part, member, result)
                self._crew.fail(member, result)
        elif isinstance(result, BaseException):
            raise result
        else:
            self._crew.heard_from(member)
            self._finish(part, result)

    def _finish(self, part: _Part, reply: Any) -> None:
        flight = part.flight
        if flight.ticket not in self._flights:
            return
        if part.rows is None:
            self._end(flight, reply)
            return
        wrong = _wrong_shape(part, reply, self._capabilities)
        if wrong:
            self._end(flight, BadReply(wrong))
            return
        flight.replies.append((part.rows, reply))
        if len(flight.replies) == flight.parts:
            self._end(flight, _together(flight))

    def _end(self, flight: _Flight, result: Any) -> None:
        if self._flights.pop(flight.ticket, None) is not None:
            self._done.append((flight.ticket, result))
            self._waiting = deque(p for p in self._waiting if p.flight is not flight)

    # --- members that come and go ------------------------------------------------------------------------------------

    def _member_down(self, member: Member, error: BaseException) -> None:
        """Its queries go to others, in the order they were asked."""
        mine = [t for t, p in self._parts.items() if p.member is member]
        waiting = [p for p in self._waiting if p.chip is member]
        self._waiting = deque(p for p in self._waiting if p.chip is not member)
        for part in reversed([self._parts.pop(t) for t in mine] + waiting):
            self._move(part, member, error)

    def _member_rebooted(self, member: Member) -> None:
        mine = [t for t, p in self._parts.items() if p.member is member]
        self._waiting.extendleft(self._parts.pop(t) for t in reversed(mine))

    def _move(self, part: _Part, member: Member, error: BaseException) -> None:
        if part.flight.ticket not in self._flights:
            return
        if part.chip is not None and getattr(part.query, "samples", None) is not None:
            lost = BadStep(
                f"chip {member.name!r} of {self._capabilities.identity} was lost within a step ({error}). Its"
                f" samples cannot"
                " go on on another chip: the step was dropped, no parameter changed; later steps use the others"
            )
            self._end(part.flight, lost)
            return
        self._crew.counters["moved"] += 1
        part.chip = part.member = None
        self._waiting.appendleft(part)

    def _give_up_in_time(self) -> None:
        since = self._crew.alone_since
        if since is not None and time.monotonic() - since >= self.patience_s:
            for flight in list(self._flights.values()):
                self._end(flight, self._crew.nobody_left())

    def _check_patience(self) -> None:
        since = self._crew.alone_since
        if since is None or time.monotonic() - since >= self.patience_s:
            raise self._crew.nobody_left()


def _read(stage: int, member: Member) -> Mapping[str, Array]:
    return member.device.read(stage)


def _wrong_shape(part: _Part, reply: Any, capabilities: Capabilities) -> str:
    """In words, why a reply cannot be put together with others; "" where it can."""
    assert part.rows is not None and part.member is not None
    outputs, taps = getattr(reply, "outputs", reply), getattr(reply, "taps", {})
    hi = part.query.segment.hi
    for boundary, values in [(hi, outputs), *((b, taps.get(b)) for b in part.query.taps)]:
        expected = (len(part.rows), capabilities.width(boundary))
        if np.shape(values) != expected:
            return (
                f"member {part.member.name!r} answered {list(np.shape(values))} at boundary {boundary},"
                f" expected {list(expected)}"
            )
    return ""


def _together(flight: _Flight) -> Reply:
    """The rows of all parts in the order of the query; monitors averaged, seconds those of the slowest."""
    replies = [r for _, r in flight.replies]
    order = np.argsort(np.concatenate([rows for rows, _ in flight.replies if rows is not None]))

    def joined(values: Sequence[Any]) -> Array:
        return np.ascontiguousarray(np.concatenate([np.asarray(v) for v in values])[order])

    monitors: dict[str, list[float]] = {}
    for reply in replies:
        for name, value in getattr(reply, "monitors", {}).items():
            monitors.setdefault(name, []).append(float(value))
    return Reply(
        joined([getattr(r, "outputs", r) for r in replies]),
        {b: joined([r.taps[b] for r in replies]) for b in flight.query.taps},
        {name: sum(values) / len(values) for name, values in monitors.items()},
        max(float(getattr(r, "seconds", 0.0)) for r in replies),
    )
