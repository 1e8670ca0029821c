"""What is in flight on one link, and what to do about silence. For every protocol; pure: `now` is passed in (s).

Credit is a span: the newest unanswered number minus the oldest stays below it, so that a device that remembers as
many answers never has to run a repeated request again. The window decides; its caller sends:

    situation                                            decision
    3 requests sent later were answered                  `due`: send it again
    a pong to a ping that was sent later                 `due`: send it again
    silent for an RTT-derived while, requests waiting    `wants_ping` (probes) or `due` (no probes), backing off
    silent for the longest call + a margin, waiting      verdict "quiet", once: everything is due, and a ping
    silent for a margin more                             verdict "lost": open the link anew
"""

from __future__ import annotations

import math
from typing import Literal

from hzo_hil.devices.wire.conversation import Request

Verdict = Literal["fine", "quiet", "lost"]
MARGIN_S = 0.4
PASSED = 3
PROBE_S = 0.05
SLOWEST_PROBE_S = 1.0
MOST_SLACK = 4.0


class _Slot:
    __slots__ = ("first", "order", "passed", "request", "sent", "tries")

    def __init__(self, request: Request, order: int, now: float) -> None:
        self.request = request
        self.order = order
        self.first = self.sent = now
        self.tries = 1
        self.passed = 0


class Window:
    """Requests sent and not answered. `credit` and `longest_call_s` may be changed at any time.

    `probes`: silence is first met with a ping. Otherwise each request is repeated when its own time is up, with
    `shortest_s` as the smallest such time.
    """

    def __init__(
        self,
        credit: int = 1,
        longest_call_s: float = 10.0,
        byte_limit: int = 1 << 28,
        probes: bool = True,
        shortest_s: float = PROBE_S,
        margin_s: float = MARGIN_S,
    ) -> None:
        self.credit = credit
        self.longest_call_s = longest_call_s
        self.byte_limit = byte_limit
        self.probes = probes
        self.shortest_s = shortest_s
        self.margin_s = margin_s
        self.resent = 0
        self.bytes = 0
        self._slots: dict[int, _Slot] = {}  # by seq, ascending: insertion is in order and nothing is re-inserted
        self._order = 0
        self._heard = -math.inf
        self._waiting_since = -math.inf
        self._ping_order = 0  # order of the last unanswered ping; 0: none is out
        self._pinged = -math.inf
        self._silent_pings = 0
        self._quiet_at = -math.inf
        self._late: list[_Slot] = []
        self._rtt = 0.0
        self._rtt_spread = 0.0
        self._slack = 1.0  # grows while only repeated requests are answered: their answers do not tell the time

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def waiting(self) -> bool:
        """Whether anything is owed by the device, a pong included."""
        return bool(self._slots) or self._ping_order > 0

    @property
    def behind(self) -> bool:
        """Whether `due` has something to say at once."""
        return bool(self._late)

    @property
    def heard_at(self) -> float:
        """When the device last gave a sign of life (-inf: never)."""
        return self._heard

    # --- sending -----------------------------------------------------------------------------------------------

    def room(self, request: Request) -> bool:
        """Whether it may be sent now: the span and the bytes stay within their limits (one request always fits)."""
        if not self._slots:
            return True
        oldest = next(iter(self._slots))
        return request.seq - oldest < self.credit and self.bytes + request.size <= self.byte_limit

    def add(self, request: Request, now: float) -> None:
        """It was handed to the transport. Numbers must ascend."""
        if not self._slots and not self._ping_order:
            self._waiting_since = now
        self._order += 1
        self._slots[request.seq] = _Slot(request, self._order, now)
        self.bytes += request.size

    def pinged(self, now: float) -> None:
        if not self.waiting:
            self._waiting_since = now
        self._order += 1
        self._ping_order = self._order
        self._pinged = now
        self._silent_pings += 1

    def due(self, now: float) -> list[Request]:
        """Requests to send again, now; they count as sent by this call."""
        late, self._late = self._late, []
        if not self.probes and self._slots:
            timely = [s for s in self._slots.values() if now >= self._repeat_at(s)]
            self._slack = min(2 * self._slack, MOST_SLACK) if timely else self._slack
            late += timely
        again = [s for s in dict.fromkeys(late) if s.request.seq in self._slots]
        for slot in again:
            self._order += 1
            slot.order, slot.sent, slot.passed = self._order, now, 0
            slot.tries += 1
        self.resent += len(again)
        return [s.request for s in again]

    def wants_ping(self, now: float) -> bool:
        """Whether silence has lasted long enough to ask; the caller then sends a ping and says `pinged`."""
        if not self.waiting or not (self.probes or self._ping_order):
            return False
        return now >= self._next_ping()

    # --- hearing -----------------------------------------------------------------------------------------------

    def heard(self, now: float) -> None:
        """Any message is a sign of life."""
        self._heard = now
        self._silent_pings = 0

    def take(self, seq: int, now: float) -> Request | None:
        """The request that this answer belongs to, now out of the window; None: nobody waits for it."""
        slots = self._slots
        slot = slots.get(seq)
        if slot is None:
            return None
        if slot.tries > 1 or next(iter(slots)) != seq:
            self._pass(slot.order)
        del slots[seq]
        self.bytes -= slot.request.size
        if slot.tries == 1:
            self._measure(now - slot.sent)
            self._slack = 1.0
        elif now - slot.sent < self._rtt / 2:
            # Too soon to answer the last sending: it was needless, and patience must grow or it goes on for ever.
            self._measure(now - slot.first)
        return slot.request

    def pong(self, now: float) -> None:
        """The device answers in order: what was sent before the ping and has no answer by now was lost."""
        if self._ping_order:
            self._late += [s for s in self._slots.values() if s.order < self._ping_order]
        self._ping_order = 0

    def _pass(self, order: int) -> None:
        for slot in self._slots.values():
            if slot.order < order:
                slot.passed += 1
                if slot.passed == PASSED:
                    self._late.append(slot)

    def _measure(self, rtt: float) -> None:
        if self._rtt == 0.0:
            self._rtt, self._rtt_spread = rtt, rtt / 2
            return
        off = rtt - self._rtt
        self._rtt += off / 8
        self._rtt_spread += (abs(off) - self._rtt_spread) / 4

    # --- silence -----------------------------------------------------------------------------------------------

    def verdict(self, now: float) -> Verdict:
        """ "quiet" is said once a silence: the caller then sends what `due` lists, and a ping."""
        if not self.waiting:
            return "fine"
        since = self._silent_since()
        if now - since < self.longest_call_s + self.margin_s:
            return "fine"
        if self._quiet_at < since:
            self._quiet_at = now
            self._late += self._slots.values()
            return "quiet"
        return "lost" if now - self._quiet_at >= self.margin_s else "fine"

    def wait(self, now: float) -> float:
        """Seconds until `due`, `wants_ping` or `verdict` may say something new (inf: nothing is owed)."""
        if self._late:
            return 0.0
        if not self.waiting:
            return math.inf
        since = self._silent_since()
        quiet = self._quiet_at >= since
        times = [self._quiet_at + self.margin_s if quiet else since + self.longest_call_s + self.margin_s]
        if self.probes or self._ping_order:
            times.append(self._next_ping())
        if not self.probes and self._slots:
            times.append(min(self._repeat_at(s) for s in self._slots.values()))
        return max(0.0, min(times) - now)

    def clear(self) -> list[Request]:
        """Forget everything in flight; returns it."""
        requests = [s.request for s in self._slots.values()]
        self._slots.clear()
        self._late.clear()
        self.bytes = 0
        self._ping_order = 0
        return requests

    def reopened(self, now: float) -> None:
        """A new connection is up: everything unanswered is due, and silence counts from now."""
        self._ping_order = 0
        self._silent_pings = 0
        self._heard = self._waiting_since = now
        self._quiet_at = -math.inf
        self._late = list(self._slots.values())

    def _silent_since(self) -> float:
        return max(self._heard, self._waiting_since)

    def _next_ping(self) -> float:
        if self._silent_pings:
            return self._pinged + self._backed_off(self._silent_pings)
        return self._silent_since() + self._patience()

    def _repeat_at(self, slot: _Slot) -> float:
        return slot.sent + self._slack * self._backed_off(slot.tries - 1)

    def _backed_off(self, times: int) -> float:
        patience = self._patience()
        return min(patience * 2.0 ** min(times, 10), max(patience, SLOWEST_PROBE_S))

    def _patience(self) -> float:
        """The usual time to an answer and four times its spread, before the first answer one fifth of a second."""
        return max(self.shortest_s, self._rtt + 4 * self._rtt_spread) if self._rtt else 0.2
