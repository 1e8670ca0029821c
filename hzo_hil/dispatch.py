"""The only caller of a device's run: windows, deadlines, retries, the ledger (`programming` is that of its write).

Everything above speaks of hops and rows in activation units; this turns them into device queries, keeps several in
flight, asks again what was lost or not finite, and hands answers back in whatever order they come.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Probes, Query, Reply
from hzo_hil.devices.errors import BadReply, BadStep, DeviceGone, DeviceRebooted, LinkLost
from hzo_hil.ledger import Account, Books, Ledger
from hzo_hil.link import Link, link_to
from hzo_hil.network import Hop, Network, Part
from hzo_hil.programming import HEALTH, Image, Policy, Programming
from hzo_hil.values import finite

Array = NDArray[Any]


@dataclass
class Call:
    """One batch of rows through one part of a hop. `tag` is the asker's own; `outputs` arrive decoded.

    Its rows are rows `first`, `first` + 1, ... of a series that has `per_sample` of them for each sample.
    """

    hop: Hop
    part: Part
    rows: Array
    purpose: str
    keys: Array | None = None
    repeats: int = 1
    taps: Sequence[int] = ()
    tag: Any = None
    first: int = 0
    per_sample: int = 1
    tries: int = field(default=0, compare=False)


@dataclass
class Answer:
    call: Call
    outputs: Array
    taps: Mapping[int, Array]


class Dispatch:
    """Serves one module's queries. `images(hop, part)` says what each physical stage of a call must hold."""

    def __init__(
        self,
        network: Network,
        images: Callable[[Hop, Part], Mapping[int, Image]],
        ledger: Ledger,
        policy: Policy,
    ) -> None:
        self.network = network
        self.policy = policy
        self.books = Books(ledger)
        self.programming = Programming(policy, self.books)
        self._images = images
        self._links: dict[int, Link] = {}
        self._flying: dict[tuple[int, int], Call] = {}
        self.observer: Callable[[Answer], None] | None = None
        """Hears every sound answer of a single stage: a measurement of that stage, whatever it was asked for."""
        self._charged: str | None = None
        self.monitors: dict[str, float] = {}
        self.tallies: dict[int, tuple[int, int]] = {}
        """By boundary: (answers at an end of the read-out's range, answers) since last cleared."""

    def link(self, device: Any) -> Link:
        if id(device) not in self._links:
            self._links[id(device)] = link_to(device)
        return self._links[id(device)]

    def has_room(self, call: Call) -> bool:
        link = self.link(call.hop.device)
        return sum(1 for owner, _ in self._flying if owner == id(link.device)) < link.window

    # --- waited for -------------------------------------------------------------------------------------------

    def ask(
        self, hop: Hop, action: Callable[[], Any], purpose: str, queries: int, sent: int = 0, tries: int = 0
    ) -> Any:
        """What `action` brings back from the device of a hop that holds what it must; `sent`: bytes there and back."""
        link, purpose = self.link(hop.device), self._charged or purpose
        if not tries:
            self.books.check(purpose, queries)
        self.programming.bring(link, self._images(hop, hop.parts[0]), purpose)
        self.books.charge(purpose, _spent(link, queries, len(hop.segment), sent, tries))
        start = time.monotonic()
        with self.abandoned_on_error():
            found = link.call(action, self.policy.timeout_s)
        if not link.capabilities.virtual_time:
            self.books.charge(purpose, Account(device_seconds=time.monotonic() - start))
        return found

    def probe(self, hop: Hop, probes: Probes, purpose: str) -> Any:
        """What a device that probes by itself answers, [samples, width]. Raises `BadStep` where asking again did not
        help.
        """
        link, why = self.link(hop.device), ""
        device: Any = hop.device
        arrays = [a for a in (probes.inputs, probes.inputs, probes.weights, probes.reference) if a is not None]
        sent = sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))
        for tries in range(self.policy.retries + 1):
            try:
                asked = partial(device.run_probes, probes)
                found: Any = self.ask(hop, asked, purpose, len(probes.inputs) * probes.rows, sent, tries)
            except DeviceRebooted:
                link.forget()
                self.count("reboots")
                why = "lost its parameters"
                continue
            except DeviceGone:
                raise
            except LinkLost as error:
                self.count("lost")
                why = f"did not answer ({error})"
                continue
            self._check_like(link, found, probes.inputs)
            if not isinstance(found, np.ndarray) or finite(found):
                return found
            self.count("non_finite")
            why = "answered with NaN or infinity"
        raise BadStep(
            f"device {link.name!r} {why} for stages {hop.segment.lo + 1}..{hop.segment.hi}, {len(probes.inputs)}"
            f" samples that it probes by itself, and again {self.policy.retries} times. The step was dropped, no"
            " parameter changed. Check the device's range, its cabling and its log"
        )

    def _check_like(self, link: Link, found: Any, inputs: Any) -> None:
        alike = type(found) is type(inputs) and found.shape == inputs.shape
        if not alike or (isinstance(found, np.ndarray) and _coarse(found, link.capabilities.dtype)):
            got = f"{found.dtype} {list(found.shape)}" if hasattr(found, "dtype") else type(found).__name__
            raise BadReply(
                f"device {link.name!r} answered {got} to probes of inputs {list(inputs.shape)}; expected one"
                f" {link.capabilities.dtype} for each input. Its run_probes() is wrong"
            )

    # --- asking ------------------------------------------------------------------------------------------------

    def stream(
        self, calls: Iterable[Call], hold: Callable[[], bool] = lambda: False, urgent: deque[Call] | None = None
    ) -> Iterator[Answer]:
        """Send calls in order, several in flight, and yield answers as they come.

        While `hold()` no new call is begun. Calls the asker adds to `urgent` go first, held or not.
        """
        waiting = iter(calls)
        first: deque[Call] = urgent if urgent is not None else deque()
        ahead = next(waiting, None)
        with self.abandoned_on_error():
            while ahead is not None or first or self._flying:
                while first and self.has_room(first[0]):
                    self.send(first.popleft())
                while not first and ahead is not None and not hold() and self.has_room(ahead):
                    self.send(ahead)
                    ahead = next(waiting, None)
                yield from self.receive()

    def send(self, call: Call) -> None:
        link = self.link(call.hop.device)
        call.purpose = self._charged or call.purpose
        copies = 1 if link.capabilities.repeats else call.repeats
        logical = len(call.rows) * call.repeats
        if not call.tries:
            self.books.check(call.purpose, logical)
        self.programming.bring(link, self._images(call.hop, call.part), call.purpose)
        rows, keys = call.rows, call.keys
        if copies > 1:
            rows = np.repeat(rows, copies, axis=0)
            shots = np.tile(np.arange(copies, dtype=np.uint64), len(call.rows))
            keys = None if keys is None else np.repeat(keys, copies) + shots
        query = Query(
            call.hop.segment,
            np.ascontiguousarray(call.hop.codec_in.encode(rows, call.part.sign), dtype=link.capabilities.dtype),
            call.taps if link.capabilities.taps else (),
            call.repeats if link.capabilities.repeats else 1,
            keys if link.capabilities.keyed else None,
            (call.first + np.arange(len(rows)) // copies) // call.per_sample if link.by_sample else None,
        )
        if link.watch is not None:
            link.watch.queries += logical
        spent = _spent(link, logical, len(call.hop.segment), query.inputs.nbytes, call.tries)
        self.books.charge(call.purpose, spent)
        self._flying[id(link.device), link.submit(query)] = call

    def receive(self) -> list[Answer]:
        """Answers that have arrived; waits for the first. Raises `BadStep` where asking again did not help."""
        deadline = time.monotonic() + self.policy.timeout_s
        while True:
            owners = {owner for owner, _ in self._flying}
            patience = 0.002 if len(owners) > 1 else min(1.0, max(0.0, deadline - time.monotonic()))
            answers: list[Answer] = []
            heard = False
            for owner in owners:
                for arrival in self._links[owner].poll(patience):
                    call = self._flying.pop((owner, arrival.ticket), None)
                    if call is None:
                        continue
                    heard = True
                    answer = self._judge(self._links[owner], call, arrival.result, arrival.seconds)
                    if answer is not None:
                        answers.append(answer)
            if answers or not self._flying:
                return answers
            if heard:
                deadline = time.monotonic() + self.policy.timeout_s
            elif time.monotonic() >= deadline:
                self._give_up_waiting()
                deadline = time.monotonic() + self.policy.timeout_s

    def _judge(self, link: Link, call: Call, result: Reply | BaseException, seconds: float) -> Answer | None:
        """An answer, or None where the call was sent again."""
        if not link.capabilities.virtual_time and seconds:
            self.books.charge(call.purpose, Account(device_seconds=seconds))
        if isinstance(result, DeviceRebooted):
            link.forget()
            self.count("reboots")
            self._again(link, call, "lost its parameters")
            return None
        if isinstance(result, LinkLost) and not isinstance(result, DeviceGone):
            self.count("lost")
            self._again(link, call, f"did not answer ({result})")
            return None
        if isinstance(result, BaseException):
            raise result
        # A driver may hand back a bare array, or anything: nothing of it is trusted before its shape is checked.
        outputs: Any = getattr(result, "outputs", result)
        taps: Mapping[int, Any] = getattr(result, "taps", {})
        self._check_shape(link, call, outputs, call.hop.segment.hi)
        for boundary in call.taps:
            self._check_shape(link, call, taps.get(boundary), boundary)
        self.books.charge(call.purpose, Account(bytes=outputs.nbytes))
        if not all(finite(values) for values in (outputs, *taps.values())):
            self.count("non_finite")
            self._again(link, call, "answered with NaN or infinity")
            return None
        for name, value in getattr(result, "monitors", {}).items():
            self.monitors[name] = float(value)
        self._tally(call.hop.hi, outputs)
        for boundary, values in taps.items():
            self._tally(self.network.boundary_of(call.hop, boundary), values)
        copies = 1 if link.capabilities.repeats else call.repeats
        if link.watch is not None and call.purpose != HEALTH:
            outputs = link.watch.corrected(outputs)
            taps = {k: link.watch.corrected(t) for k, t in taps.items()}
        if copies > 1:
            outputs = outputs.reshape(-1, copies, outputs.shape[-1]).mean(axis=1)
            taps = {k: t.reshape(-1, copies, t.shape[-1]).mean(axis=1) for k, t in taps.items()}
        answer = Answer(call, outputs, taps)
        if self.observer is not None and call.hop.hi == call.hop.lo + 1:
            self.observer(answer)
        return answer

    def _again(self, link: Link, call: Call, why: str) -> None:
        call.tries += 1
        if call.tries > self.policy.retries:
            segment = call.hop.segment
            raise BadStep(
                f"device {link.name!r} {why} for stages {segment.lo + 1}..{segment.hi}, {len(call.rows)} inputs"
                f" ({call.purpose}), and again {self.policy.retries} times. The step was dropped, no parameter changed."
                " Check the device's range, its cabling and its log"
            )
        self.send(call)

    def _give_up_waiting(self) -> None:
        """Every outstanding call of a silent device is asked again; a blocking driver that hangs cannot be."""
        silent = list(self._flying.items())
        for (owner, _), call in silent:
            link = self._links[owner]
            if not link.pipelined:
                raise DeviceGone(
                    f"device {link.name!r} did not answer within {self.policy.timeout_s:g} s (stages"
                    f" {call.hop.segment.lo + 1}..{call.hop.segment.hi}, {len(call.rows)} inputs). Its driver is still"
                    " inside run(): is the instrument on? Longer: timeout_s"
                )
            # Or the window stays full of queries nobody waits for.
            link.cancel()
        self._flying.clear()
        for (owner, _), call in silent:
            self.count("lost")
            self._again(self._links[owner], call, f"did not answer within {self.policy.timeout_s:g} s")

    def _tally(self, boundary: int, values: Array) -> None:
        """Count answers at the ends of a read-out's range."""
        spec = self.network.stages[boundary - 1].read
        ends = int(np.count_nonzero(values >= spec.out_high - spec.out_step / 2)) if np.isfinite(spec.out_high) else 0
        if np.isfinite(spec.out_low) and spec.out_low != 0:
            ends += int(np.count_nonzero(values <= spec.out_low + spec.out_step / 2))
        saturated, total = self.tallies.get(boundary, (0, 0))
        self.tallies[boundary] = saturated + ends, total + values.size
        self.count(f"saturated:{boundary}", ends)

    def _check_shape(self, link: Link, call: Call, outputs: Any, boundary: int) -> None:
        copies = 1 if link.capabilities.repeats else call.repeats
        expected = (len(call.rows) * copies, link.capabilities.width(boundary))
        dtype, is_array = link.capabilities.dtype, isinstance(outputs, np.ndarray)
        if not is_array or outputs.shape != expected or _coarse(outputs, dtype):
            got = f"{outputs.dtype} {list(outputs.shape)}" if is_array else type(outputs).__name__
            raise BadReply(
                f"device {link.name!r} answered {got} to {len(call.rows) * copies} inputs through stages"
                f" {call.hop.segment.lo + 1}..{call.hop.segment.hi}, read at boundary {boundary}; expected"
                f" {dtype} {list(expected)}. Its capabilities and its run() disagree"
            )

    @contextmanager
    def charged_to(self, purpose: str) -> Iterator[None]:
        """Whatever is asked inside is entered under this purpose (a gradient measured for its own sake)."""
        self._charged = purpose
        try:
            yield
        finally:
            self._charged = None

    # --- books -------------------------------------------------------------------------------------------------

    def count(self, event: str, number: int = 1) -> None:
        self.books.count(event, number)

    @contextmanager
    def abandoned_on_error(self) -> Iterator[None]:
        """Whatever goes wrong inside, nothing stays in flight; on Ctrl-C the devices are parked as well."""
        try:
            yield
        except BaseException as error:
            for link in self._links.values():
                link.cancel()
            self._flying.clear()
            if isinstance(error, KeyboardInterrupt):
                for link in self._links.values():
                    link.park()
            raise


def _spent(link: Link, queries: int, stages: int, sent: int, tries: int) -> Account:
    """One call through so many stages; asked again, its queries count as resent."""
    evaluations, c = queries * stages, link.capabilities
    spent = Account(calls=1, bytes=sent)
    if c.virtual_time:
        spent.device_seconds = c.latency_s + evaluations * c.query_s
    if tries:
        spent.resent = queries
    else:
        spent.queries, spent.stage_evaluations = queries, evaluations
    return spent


def _coarse(outputs: Array, declared: str) -> bool:
    """Whether numbers are not real, or floats narrower than the device declared."""
    kind, size = outputs.dtype.kind, outputs.dtype.itemsize
    return kind not in "fiu" or (kind == "f" and size < np.dtype(declared).itemsize)
