"""Which members of a pool are in use, what they hold, and how one leaves and comes back. Knows no queries of the host.

    in use --- a call fails, or silence ---> aside --- written whole, and answers as the others do ---> in use
    in use --- says it rebooted ---> written whole, still in use
    aside  --- answers otherwise ---> refused, for good

All of it happens in the thread of whoever calls; only the members themselves work in threads of their own.
"""

from __future__ import annotations

import itertools
import logging
import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, Device, Query, Segment
from hzo_hil.devices.errors import BadInput, DeviceError, DeviceRebooted, LinkLost
from hzo_hil.devices.pool_members import MARGIN_S, NOBODY, Event, Member
from hzo_hil.devices.pool_rules import FALSE_ALARM, unlike

log = logging.getLogger("hzo_hil.link")

SLICE_S = 0.02
REBOOTS_IN_A_ROW = 3
Handler = Callable[[Any], None]


class Crew:
    """`on_down(member, error)` and `on_reboot(member)` tell the pool to give a member's queries to others."""

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        identical: bool,
        join_rows: int,
        join_repeats: int,
        tolerance: float,
        retry_s: float,
        seed: int,
        on_down: Callable[[Member, BaseException], None],
        on_reboot: Callable[[Member], None],
    ) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.members = [Member(i, d, self.events) for i, d in enumerate(devices)]
        self.tickets = itertools.count()
        self.alone_since: float | None = None
        self.why: dict[int, str] = {}
        self.counters = {"set_aside": 0, "joined_again": 0, "reboots": 0, "refused": 0, "moved": 0}
        self._identical, self._tolerance, self._retry_s = identical, tolerance, retry_s
        self._rows, self._repeats, self._seed = join_rows, join_repeats, seed
        self._on_down, self._on_reboot = on_down, on_reboot
        self._pending: dict[int, tuple[Member, float, Handler]] = {}
        self._held: dict[int, tuple[Mapping[str, Array], int, int]] = {}
        self._epochs = itertools.count(1)
        self._tries: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._ready: set[int] = set()
        self._refused: set[int] = set()
        self._reboots: dict[int, int] = {}
        self._common: Capabilities | None = None

    @property
    def up(self) -> list[Member]:
        return [m for m in self.members if m.up]

    def describe(self, capabilities: Capabilities) -> None:
        self._common = capabilities
        names = [m.capabilities.identity for m in self.members]
        for member, name in zip(self.members, names, strict=True):
            member.name = name if names.count(name) == 1 else f"{name} (member {member.number})"

    # --- asking members other things than queries -----------------------------------------------------------------

    def each(
        self, members: Iterable[Member], action: Callable[[Member], Any], timeout: float = float("inf")
    ) -> dict[int, Any]:
        """`action` of every member, in their threads at once; results (or errors) by number, of those not lost
        meanwhile.

        `timeout` (s) is for members that are not in use; the silence of others ends the waiting.
        """
        found: dict[int, Any] = {}
        waiting: dict[int, Member] = {}
        for member in members:
            self._call(member, lambda m=member: action(m), lambda r, n=member.number: found.__setitem__(n, r))  # type: ignore[misc]
            waiting[member.number] = member
        deadline = time.monotonic() + timeout
        was_up = {n for n, m in waiting.items() if m.up}
        kept: list[Event] = []
        while any(n not in found and (m.up or n not in was_up) for n, m in waiting.items()):
            if time.monotonic() > deadline:
                slow = [n for n in waiting if n not in found]
                found |= {n: LinkLost(f"no answer within {timeout:g} s. Is it switched on?") for n in slow}
                break
            kept += self.pump(SLICE_S)
        for event in kept:
            self.events.put(event)
        return found

    def one(self, action: Callable[[Member], Any]) -> Any:
        """`action` of the first member that can."""
        for member in self.up:
            result = self.each([member], action).get(member.number)
            if isinstance(result, BadInput):
                raise result
            if isinstance(result, BaseException):
                self.fail(member, result)
            elif member.up:
                return result
        raise self.nobody_left()

    def _call(self, member: Member, action: Callable[[], Any], handler: Handler) -> None:
        ticket = next(self.tickets)
        self._pending[ticket] = (member, time.monotonic(), handler)
        member.call(ticket, action)

    def pump(self, timeout: float) -> list[Event]:
        """What came of queries, waiting up to `timeout` for the first; what came of all else is dealt with."""
        found: list[Event] = []
        wait = max(0.0, timeout)
        while True:
            try:
                event = self.events.get(timeout=wait) if wait else self.events.get_nowait()
            except queue.Empty:
                break
            wait = 0.0
            if event.ticket in self._pending:
                self._pending.pop(event.ticket)[2](event.result)
                event.member.heard = time.monotonic()
            elif event.ticket != NOBODY and event.era == event.member.era:
                event.member.heard = time.monotonic()
                found.append(event)
        self._watch()
        return found

    def _watch(self) -> None:
        """Set aside who is silent; look after those who are."""
        now = time.monotonic()
        for member in self.up:
            patience = member.capabilities.longest_call_s + MARGIN_S
            since = [max(s, member.heard) for m, s, _ in self._pending.values() if m is member]
            if member.out:
                since.append(member.heard)
            if member.lost:
                self.fail(member, LinkLost("the link to it is lost"))
            elif since and now - min(since) > patience:
                self.fail(member, LinkLost(f"silent for {patience:g} s, longer than any of its calls takes"))
        for member in self.members:
            if not member.up and now >= self._due.get(member.number, float("inf")):
                self._try_again(member)

    # --- writing ---------------------------------------------------------------------------------------------------

    def hold(self, stage: int, values: Mapping[str, Array], key: int) -> None:
        """From now on this is what a member must hold to be in use."""
        self._held[stage] = ({n: np.array(v) for n, v in values.items()}, key, next(self._epochs))

    def write(self, stage: int, values: Mapping[str, Array], where: Mapping[str, Array] | None, key: int) -> None:
        self.hold(stage, values, key)
        for member in [m for m in self.members if m.number in self._ready]:
            self._join(member, {})

        def write_one(member: Member) -> None:
            options: dict[str, Any] = {"key": key} if member.capabilities.keyed else {}
            member.device.write(stage, values, where=where, **options)

        wrong: BadInput | None = None
        for number, result in self.each(self.up, write_one).items():
            member = self.members[number]
            if isinstance(result, BadInput):
                wrong = result
            elif isinstance(result, DeviceRebooted):
                self.reboot(member, result)
            elif isinstance(result, BaseException) and member.up:
                self.fail(member, result)
        if wrong is not None:
            raise wrong

    def missing(self) -> list[int]:
        """Stages with parameters that nobody has written since the start or the last park."""
        assert self._common is not None
        return [i for i, s in enumerate(self._common.stages) if s.parameters and i not in self._held]

    def forget(self) -> None:
        """Parked: nothing is held, and nobody comes back before it is all written again."""
        self._held.clear()

    # --- leaving ---------------------------------------------------------------------------------------------------

    def start(self, members: Iterable[Member]) -> None:
        for member in members:
            member.up = True
        self.alone_since = None
        for notes in (self._due, self._tries, self._reboots, self.why):
            notes.clear()
        self._ready.clear()
        self._refused.clear()
        self._held.clear()

    def fail(self, member: Member, error: BaseException) -> None:
        """Set a member aside and let the others have its queries."""
        if not member.up:
            return
        member.up = False
        self.counters["set_aside"] += 1
        self.why[member.number] = f"{type(error).__name__}: {error}"
        self._due[member.number] = time.monotonic() + self._retry_s
        self._tries[member.number] = 0
        left = len(self.up)
        log.warning(
            "pool: member %r was set aside (%s); %d of %d in use. It joins again when it answers as the others do",
            member.name, self.why[member.number], left, len(self.members),
        )  # fmt: skip
        if not left:
            self.alone_since = time.monotonic()
        self._on_down(member, error)
        member.forget()

    def heard_from(self, member: Member) -> None:
        self._reboots.pop(member.number, None)

    def reboot(self, member: Member, error: BaseException) -> None:
        """Write all of a member that lost its parameters; its queries are asked again behind that."""
        count = self._reboots[member.number] = self._reboots.get(member.number, 0) + 1
        self.counters["reboots"] += 1
        if count > REBOOTS_IN_A_ROW:
            self.fail(member, error)
            return
        self._on_reboot(member)
        member.forget()
        log.info("pool: member %r lost its parameters and is written again", member.name)
        self._rewrite(member, self._held)

    def _rewrite(self, member: Member, held: Mapping[int, tuple[Mapping[str, Array], int, int]]) -> None:
        def done(result: Any) -> None:
            if isinstance(result, DeviceRebooted):
                self.reboot(member, result)
            elif isinstance(result, BaseException):
                self.fail(member, result)

        wanted = dict(held)
        self._call(member, lambda: _write_all(member, wanted), done)

    def nobody_left(self) -> LinkLost:
        reasons = "; ".join(f"{m.name}: {self.why.get(m.number, 'not in use')}" for m in self.members)
        return LinkLost(f"no member of the pool is left ({reasons})")

    # --- joining ---------------------------------------------------------------------------------------------------

    def check_all(self) -> None:
        """At the start, all holding the same: whoever answers unlike the first is refused, by BadInput."""
        if not self._identical or len(self.members) < 2:
            return
        answers: dict[int, Any] = {}
        while waiting := [m for m in self.up if m.number not in answers]:
            for number, result in self.each(waiting, self._answers).items():
                if isinstance(result, DeviceRebooted):
                    self.reboot(self.members[number], result)
                elif isinstance(result, BadInput):
                    raise result
                elif isinstance(result, BaseException):
                    self.fail(self.members[number], result)
                else:
                    answers[number] = result
        present = [m for m in self.up if m.number in answers]
        for first, member in zip(present[:1] * len(present), present[1:], strict=False):
            if (words := self._refusal(member, answers[member.number], first, answers[first.number])) is not None:
                raise BadInput(words)

    def _try_again(self, member: Member) -> None:
        """Write and question a member that was set aside, and somebody in use for comparison, at the same time."""
        number, tries = member.number, self._tries.get(member.number, 0)
        self._due.pop(number)
        if number in self._refused:
            return
        if self.missing():
            self._due[number] = time.monotonic() + self._retry_s
            return
        held, found = dict(self._held), dict[str, Any]()
        reference = next(iter(self.up), None) if self._identical else None

        def come_back() -> Any:
            if tries and not hasattr(member.device, "state"):  # a device behind a wire finds its own way back
                _reopen(member.device)
            _write_all(member, held)
            return self._answers(member) if self._identical else member.device.health()

        def note(who: str, result: Any) -> None:
            found[who] = result
            if len(found) == (2 if reference else 1):
                self._judge(member, reference, found, held)

        self._tries[number] = tries + 1
        self._call(member, come_back, lambda r: note("member", r))
        if reference is not None:
            self._call(reference, lambda: self._answers(reference), lambda r: note("reference", r))

    def _judge(self, member: Member, reference: Member | None, found: dict[str, Any], held: Mapping[int, Any]) -> None:
        number, wrong = member.number, [r for r in found.values() if isinstance(r, BaseException)]
        if wrong:
            if isinstance(found["member"], BaseException):
                self.why[number] = f"{type(wrong[0]).__name__}: {wrong[0]}"
            self._due[number] = time.monotonic() + min(30.0, self._retry_s * 2 ** self._tries[number])
            return
        if reference is not None:
            words = self._refusal(member, found["member"], reference, found["reference"])
            if words is not None:
                self._refused.add(number)
                self.counters["refused"] += 1
                self.why[number] = words
                log.warning("pool: %s", words)
                return
        if self._identical or not self.up:
            self._join(member, held)
        else:
            # Which chip a sample is on may only change where a step begins, and a step begins with a write.
            self._ready.add(number)

    def _join(self, member: Member, held: Mapping[int, Any]) -> None:
        self._ready.discard(member.number)
        member.forget()
        member.up, member.heard = True, time.monotonic()
        self.alone_since = None
        self.why.pop(member.number, None)
        self.counters["joined_again"] += 1
        log.warning("pool: member %r is back; %d of %d in use", member.name, len(self.up), len(self.members))
        changed = {s: v for s, v in self._held.items() if s not in held or held[s][2] != v[2]}
        if changed:
            self._rewrite(member, changed)

    def _refusal(self, member: Member, answers: Any, reference: Member, expected: Any) -> str | None:
        assert self._common is not None
        difference = unlike(expected, answers, self._common.boundaries[-1], self._tolerance)
        if difference is None:
            return None
        return (
            f"member {member.name!r} answers unlike {reference.name!r}, {difference}; equal devices are refused by"
            f" mistake"
            f" once in {1 / FALSE_ALARM:,.0f} checks. It is another chip, holds other parameters or has drifted:"
            f" take it out,"
            " calibrate it, allow more (tolerance=), or declare a pool of different chips (identical=False)"
        )

    def _answers(self, member: Member) -> Array:
        """Answers `[repeat, row, output]` of a member to the common batch, in its thread."""
        assert self._common is not None
        rows = common_batch(self._common, self._rows, self._seed)
        depth, most = len(self._common.stages), self._most_rows(rows)
        found = []
        for repeat in range(self._repeats):
            for start in range(0, len(rows), most):
                part = np.ascontiguousarray(rows[start : start + most])
                keys = np.arange(len(part), dtype=np.uint64) + np.uint64(repeat * len(rows) + start)
                query = Query(Segment(0, depth), part, keys=keys if member.capabilities.keyed else None)
                outputs = np.asarray(getattr(reply := member.answer(query), "outputs", reply))
                if outputs.shape != (len(part), self._common.width(depth)):
                    raise DeviceError(f"it answered {list(outputs.shape)} to {len(part)} rows of the common batch")
                found.append(outputs)
        return np.concatenate(found).reshape(self._repeats, len(rows), -1)

    def _most_rows(self, rows: Array) -> int:
        assert self._common is not None
        most = self._common.max_batch or len(rows)
        if self._common.max_bytes:
            most = min(most, self._common.max_bytes // rows[0].nbytes)
        return max(1, min(most, len(rows)))


def common_batch(capabilities: Capabilities, rows: int, seed: int) -> Array:
    """Rows `[rows, width]` over the range that may be driven at the first boundary; normal where it has no end."""
    spec, width = capabilities.boundaries[0], capabilities.width(0)
    random = np.random.default_rng(seed)
    if np.isfinite(spec.low) and np.isfinite(spec.high):
        drawn = random.uniform(spec.low, spec.high, (rows, width))
    else:
        drawn = np.clip(random.normal(size=(rows, width)), spec.low, spec.high)
    return drawn.astype(capabilities.dtype)


def _write_all(member: Member, held: Mapping[int, tuple[Mapping[str, Array], int, int]]) -> None:
    for stage, (values, key, _) in held.items():
        member.write_whole(stage, values, key)


def _reopen(device: Device) -> None:
    try:
        device.close()
    except Exception as error:  # noqa: BLE001 - what is closed here was lost before
        log.debug("closing a lost member: %s", error)
    device.open()
