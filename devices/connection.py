"""The machine behind `RemoteDevice`: greets, sends, listens, resends, notices losses, connects anew.

    state    what happens
    new      nothing yet, or the first greeting is out: what goes wrong is raised
    up       requests go out as the window allows; silence is asked about, then it is lost. While a device that does
             not know the session is greeted anew, requests wait
    lost     the transport is opened anew and the session greeted again, until `patience_s` has passed: DeviceGone
    closed   a farewell was said; opening starts a new session

Input and output happen in the caller's thread, under one lock. Knows no protocol's bytes, no sockets, and of the
device contract nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

from hzo_hil.devices.errors import (
    BadInput,
    Busy,
    CapabilityError,
    DeviceError,
    DeviceGone,
    DeviceRebooted,
    LinkLost,
    WireError,
)
from hzo_hil.devices.keeper import Keeper
from hzo_hil.devices.transports import Transport
from hzo_hil.devices.wire.conversation import Conversation, Event, Request, Welcome
from hzo_hil.devices.wire.window import Window

log = logging.getLogger("hzo_hil.link")

SLICE_S = 0.25  # Windows defers Ctrl-C to the end of a wait
TEND_S = 0.05
REOPEN_S = 2.0
GREETING_S = 0.2
FAREWELL_S = 0.3


class Connection:
    """One session at a time, kept up. What is asked are jobs, by number; `_done` holds what came back."""

    def __init__(
        self,
        url: str,
        transport: Transport,
        make: Callable[[], Conversation],
        patience_s: float,
        ping_s: float,
        connect_s: float,
        takeover: bool,
        run_id: str,
        clock: Callable[[], float],
    ) -> None:
        self.url = url
        self.state: Literal["new", "up", "lost", "closed"] = "new"
        self.counters = {"resent": 0, "bad_frames": 0, "reconnects": 0, "reboots": 0, "pings": 0}
        self._patience_s, self._ping_s, self._connect_s = patience_s, ping_s, connect_s
        self._takeover, self._run_id, self._clock = takeover, run_id, clock
        self._transport, self._make = transport, make
        self._talk = self._make()
        self._talk.place = url
        self._welcome: Welcome | None = None
        self._lock = threading.RLock()
        self._window = Window(probes=self._talk.probes)
        self._greeting: Window | None = None
        self._waiting: deque[Request] = deque()
        self._done: list[tuple[int, Any]] = []
        self._mine: dict[int, Any] = {}  # results of jobs that `_ask` waits for; None: not there yet
        self._live: set[int] = set()
        self._next_job = 0
        self._lost_at = self._patience_from = self._reopen_at = self._greeted_at = -math.inf
        self._refusal = ""  # what was last said to a greeting on the way back
        self._bad_seen = 0
        self._stepped = self._tend_at = -math.inf
        self._keeper: Keeper | None = None

    @property
    def name(self) -> str:
        who = f"{self._welcome.capabilities.identity!r} " if self._welcome else ""
        return f"device {who}({self.url})"

    # --- opening and closing -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect and greet. Raises in words: nobody answers, wrong keys, Busy, another version, no such port."""
        with self._lock:
            if self.state in ("up", "lost"):
                return
            if self.state == "closed":
                self._talk = self._make()  # a farewell ended the old session
                self._talk.place = self.url
            try:
                self._transport.open()
                self._greet()
                self._await_greeting()
            except BaseException:
                self._transport.close()
                self._greeting = None
                raise
            if self._keeper is None and self._clock is time.monotonic:  # whoever brings a clock keeps it alive
                self._keeper = Keeper(self, self.url, min(SLICE_S, self._ping_s / 4))

    def _await_greeting(self) -> None:
        deadline = self._clock() + self._connect_s
        busy: Busy | None = None
        while self.state != "up":
            try:
                self._step(min(SLICE_S, max(0.0, deadline - self._clock())))
            except Busy as error:
                # A host that was killed keeps its session for three pings: a run that is resumed has only to wait.
                if self._clock() >= deadline or self._clock is not time.monotonic:
                    raise
                busy = error
                time.sleep(GREETING_S)
                self._greet()
            if problem := self._transport.problem:
                raise DeviceError(f"{self.url}: {problem}")
            if self._greeting is not None and self._clock() >= deadline:
                if busy is not None:
                    raise busy
                raise LinkLost(
                    f"nobody answers at {self.url} within {self._connect_s:g} s. Is the server running, the address"
                    f" right and the way free (firewall, cable)?{self._hint} Longer: connect_s"
                )

    @property
    def _hint(self) -> str:
        hint = getattr(self._transport, "hint", "")
        return f" {hint}" if hint else ""

    def close(self) -> None:
        """Say goodbye and let go; what is outstanding is forgotten. May be opened again."""
        with self._lock:
            if self.state in ("up", "lost"):
                farewell = self._talk.bye()
                if farewell is not None and self.state == "up":
                    with contextlib.suppress(LinkLost):
                        self._part(farewell)
                self._transport.close()
                self.cancel()
            self.state, self._greeting = "closed", None
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None

    def _part(self, farewell: Request) -> None:
        """Say it and see that it arrived: a closed socket would drop it. A ping after it makes the device answer."""
        self._transport.send(farewell.frames)
        self._transport.send(self._talk.ping().frames)
        deadline = self._clock() + FAREWELL_S
        while self._clock() < deadline:
            for frames in self._transport.receive(TEND_S):
                with contextlib.suppress(WireError):
                    if any(e.kind == "stranger" for e in self._talk.receive(frames)):
                        return

    def cancel(self) -> None:
        """Forget what was asked."""
        with self._lock:
            self._talk.drop(list(self._live))
            self._live.clear()
            self._done.clear()
            self._window.clear()
            self._waiting.clear()

    def _ask(self, make: Callable[[int], list[Request]]) -> Any:
        with self._lock:
            self.open()
            job = self._next_job
            self._next_job += 1
            requests = make(job)
            self._live.add(job)
            self._mine[job] = None
            try:
                self._send_new(requests)
                while self._mine[job] is None:
                    self._step(SLICE_S)
                result = self._mine[job][0]
            except BaseException:
                self._talk.drop([job])
                self._live.discard(job)
                raise
            finally:
                del self._mine[job]
            if isinstance(result, Exception):
                raise result
            return result

    # --- the machine: called with the lock held ----------------------------------------------------------------

    def _send_new(self, requests: Sequence[Request]) -> None:
        free = self.state == "up" and self._greeting is None
        if free and not self._waiting and len(requests) == 1:  # by far the commonest
            (request,) = requests
            if self._window.room(request) and self._put(request):
                self._window.add(request, self._clock())
                return
        if self.state == "lost" and not self._waiting and not len(self._window):
            self._patience_from = self._clock()
        self._waiting.extend(requests)
        if free:
            self._flush(self._clock())

    def _flush(self, now: float) -> None:
        window, waiting = self._window, self._waiting
        while waiting and window.room(waiting[0]):
            if not self._put(waiting[0]):
                return
            window.add(waiting.popleft(), now)

    def _put(self, request: Request) -> bool:
        try:
            return self._transport.send(request.frames)
        except LinkLost as error:
            self._lose(self._clock(), error)
            return False

    def _step(self, patience: float) -> None:
        """Receive for at most `patience` seconds (less where something else is due), then do what is due."""
        if patience > 0:
            # With probes nothing is urgent: one usual wait is cheaper than the exact one.
            easy = self._talk.probes and self.state == "up" and self._greeting is None
            patience = min(patience, TEND_S if easy else self._wait(self._clock()))
        try:
            arrived = self._transport.receive(patience) if self.state == "up" or self._greeting else []
        except LinkLost as error:
            self._lose(self._clock(), error)
            arrived = []
        now = self._stepped = self._clock()
        for frames in arrived:
            self._hear(frames, now)
        if arrived and self.state == "up" and self._greeting is None:
            if self._waiting:
                self._window.credit = self._talk.credit
                self._flush(now)
            if now < self._tend_at and not self._window.behind:
                return
        self._tend_all(now, patience)

    def _tend_all(self, now: float, patience: float) -> None:
        self._tend_at = now + TEND_S
        if self._greeting is not None:
            self._tend_greeting(now)
        elif self.state == "up":
            self._tend(now)
        if self.state == "lost":
            self._tend_lost(now, patience if self._greeting is None else 0.0)
        self._note_bad()

    def _wait(self, now: float) -> float:
        if self._greeting is not None:
            return min(self._greeting.wait(now), GREETING_S)
        if self.state == "lost":
            return TEND_S
        return min(SLICE_S, self._window.wait(now))

    def _hear(self, frames: Sequence[Any], now: float) -> None:
        try:
            events = self._talk.receive(frames)
        except (WireError, CapabilityError) as error:
            if self._greeting is not None and isinstance(error, CapabilityError):
                self._refused(error)
            self.counters["bad_frames"] += 1
            log.debug("%s: dropped a message: %s", self.name, error)
            return
        self._window.heard(now)
        for event in events:
            if event.kind == "answer":
                if self._window.take(event.seq, now) is None or event.job not in self._live:
                    continue
                self._live.discard(event.job)
                if event.job in self._mine:
                    self._mine[event.job] = (event.result,)
                else:
                    self._done.append((event.job, event.result))
            else:
                self._on(event, now)

    def _on(self, event: Event, now: float) -> None:
        kind = event.kind
        if kind == "pong":
            self._window.pong(now)
        elif kind == "part":
            self._window.take(event.seq, now)
        elif kind == "stranger":
            if self._greeting is None:
                self._greet()
        elif self._greeting is not None:
            self._greeting.take(event.seq, now)
            if kind == "more":
                for request in event.more:
                    self._greeting.add(request, now)
                    self._put(request)
            elif kind == "ready":
                self._up(event.result, now)
            else:
                self._refused(event.result)

    def _tend(self, now: float) -> None:
        window = self._window
        window.credit = self._talk.credit
        if self._waiting:
            self._flush(now)
        if window.waiting:
            verdict = window.verdict(now)
            if verdict == "lost":
                self._lose(now, LinkLost(f"silent for {now - window.heard_at:.1f} s"))
                return
            for request in window.due(now):
                self._put(request)
            if verdict == "quiet" or window.wants_ping(now):
                self._ping(now)
        elif now - window.heard_at >= self._ping_s:
            self._ping(now)

    def _ping(self, now: float) -> None:
        if self._put(self._talk.ping()):
            self._window.pinged(now)
            self.counters["pings"] += 1

    # --- greetings, losses, returns ----------------------------------------------------------------------------

    def _greet(self) -> None:
        self._greeting, self._greeted_at = Window(credit=1 << 30, probes=False, shortest_s=GREETING_S), self._clock()
        hello = self._talk.hello(self._takeover, self._run_id, self._ping_s)
        self._greeting.add(hello, self._clock())
        self._put(hello)

    def _tend_greeting(self, now: float) -> None:
        assert self._greeting is not None
        silent = now - max(self._window.heard_at, self._greeted_at)
        if self.state == "up" and silent >= self._window.longest_call_s + 2 * self._window.margin_s:
            self._lose(now, LinkLost(f"silent for {silent:.1f} s in the middle of a greeting"))
            return
        for request in self._greeting.due(now):
            self._put(request)

    def _up(self, welcome: Welcome, now: float) -> None:
        before, was = self._welcome, self.state
        self._welcome, self._greeting, self.state = welcome, None, "up"
        self._window.credit = welcome.credit
        self._window.longest_call_s = welcome.longest_call_s
        if was == "lost":
            self.counters["reconnects"] += 1
            log.warning("%s is back after %.1f s", self.name, now - self._lost_at)
        if welcome.resumed:
            self._window.reopened(now)
        elif before is not None and was != "new" and was != "closed":
            self._rebooted(before, welcome)
        self._window.heard(now)

    def _rebooted(self, before: Welcome, after: Welcome) -> None:
        self.counters["reboots"] += 1
        why = "restarted" if before.boot != after.boot else "served another host meanwhile"
        error = f"{self.name} {why}: what it held is lost and must be written again"
        log.warning("%s", error)
        self._fail_all(lambda: DeviceRebooted(error))

    def _fail_all(self, error: Callable[[], Exception]) -> None:
        self._window.clear()
        self._waiting.clear()
        jobs = sorted(self._live)
        self._talk.drop(jobs)
        self._live.clear()
        for job in jobs:
            if job in self._mine:
                self._mine[job] = (error(),)
            else:
                self._done.append((job, error()))

    def _refused(self, error: Exception) -> None:
        if self.state in ("new", "closed"):
            raise error
        # On the way back: another host may be done soon, so this goes on until patience ends.
        now = self._clock()
        if self.state == "up":
            self._lose(now, LinkLost(str(error)))
        else:
            log.warning("%s: %s", self.name, error)
        self._greeting, self._refusal = None, str(error)
        self._reopen_at = now + REOPEN_S

    def _lose(self, now: float, why: LinkLost) -> None:
        if self.state in ("new", "closed"):
            raise why
        if self.state == "lost":  # again, while greeting
            self._greeting = None
            return
        self.state = "lost"
        self._lost_at = self._patience_from = now
        self._greeting, self._reopen_at, self._refusal = None, now, ""
        since = max(0.0, now - self._window.heard_at)
        log.warning("%s is lost (%s; last heard %.1f s ago): connecting anew, for %g s", self.name, why, since,
                    self._patience_s)  # fmt: skip

    def _tend_lost(self, now: float, patience: float) -> None:
        if now >= self._reopen_at:
            self._reopen_at = now + max(REOPEN_S, self._ping_s)
            self._transport.close()
            try:
                self._transport.open()
                self._greet()
            except (LinkLost, BadInput) as error:
                self._greeting = None
                log.debug("%s: %s", self.name, error)
        elif self._greeting is None and patience > 0:
            self._pause(min(patience, TEND_S))
        if self._live and now - self._patience_from >= self._patience_s:
            why = self._transport.problem or self._refusal or f"Is its server running?{self._hint}"
            text = f"{self.name} has not answered for {now - self._lost_at:.1f} s. {why} Longer: patience_s"
            self._fail_all(lambda: DeviceGone(text))

    def _pause(self, seconds: float) -> None:
        try:
            self._transport.receive(seconds)  # an open line takes the time itself; what it says now is for nobody
        except LinkLost:
            time.sleep(seconds)

    def _note_bad(self) -> None:
        self.counters["resent"] = self._window.resent
        if self._transport.bad_frames != self._bad_seen:
            self.counters["bad_frames"] += self._transport.bad_frames - self._bad_seen
            self._bad_seen = self._transport.bad_frames

    def keep(self) -> None:
        """Show the device that the host lives, unless the caller does so now. Called by the keeper."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self.state in ("up", "lost") and self._clock() - self._stepped >= min(SLICE_S, self._ping_s / 4):
                self._step(0.0)
        finally:
            self._lock.release()
