"""HZO/1 as a device speaks it: one session at a time, each request run at most once. Sans-IO; `now` is passed in (s).

    session      message                       answer, and next session
    none         HELLO                         READY, resumed false -> live
    live         HELLO, same id                READY, resumed true
    live         HELLO, another id             ERROR BUSY; its own session and READY if: takeover, the same run id,
                                               or nothing was heard for three of the session's ping_s
    live         RUN WRITE READ DO, new seq    a `Job` for the caller; `answered` or `refused` reply, and keep it
    live         the same, known seq           the kept reply, again
    live         the same, seq forgotten       silence: the host has had its answer
    live         PING                          PONG
    live         BYE                           nothing -> none; late copies of its HELLO are dropped
    any          other session's RUN ... PING  ERROR SESSION: say HELLO
    any          another major version         ERROR VERSION, naming both
    any          no message at all             WireError, counted by the caller

Parameter versions: a WRITE names the version it builds on (`base`) and the one it makes; a RUN names the one it needs.
Any other than the device's is STALE, which is not kept. Base 0 starts anew and is taken whatever the device holds:
what other stages hold is then unknown, and a RUN over them STALE until they are written, too. `lost()` (parked,
failed) makes the device's version 0 and all stages unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from hzo_hil.devices.errors import WireError
from hzo_hil.devices.wire import messages as m

Array = NDArray[Any]
Buffer = Any
Frames = list[Buffer]
ANSWERS = {"run": m.RESULT, "read": m.SNAPSHOT, "write": m.ACK, "do": m.ACK}
WORDS = {m.RUN: "run", m.WRITE: "write", m.READ: "read", m.DO: "do"}


class Job:
    """Something to be done with the device: `kind` is run, write, read or do; `options` is its META."""

    __slots__ = ("kind", "message", "options", "peer")

    def __init__(self, kind: str, peer: bytes, message: m.Message, options: Mapping[str, Any]) -> None:
        self.kind = kind
        self.peer = peer
        self.message = message
        self.options = options


class Session:
    """What is known of the one host. `kept`: replies by request number; nothing at or below `floor` is run again."""

    def __init__(self, number: int, run_id: str, ping_s: float, floor: int, now: float) -> None:
        self.number = number
        self.run_id = run_id
        self.ping_s = ping_s
        self.floor = floor
        self.heard = now
        self.newest = floor
        self.kept: dict[int, Frames] = {}  # ascending
        self.kept_bytes = 0


class Hzo1Served:
    """The device's half. `capabilities` is the manifest (JSON) to be announced."""

    def __init__(
        self,
        capabilities: Mapping[str, Any],
        boot: int,
        credit: int = 16,
        features: Sequence[str] = (),
        longest_call_s: float = 10.0,
        limits: m.Limits = m.LIMITS,
        kept_bytes: int = 1 << 28,
    ) -> None:
        self.boot = boot
        self.credit = credit
        self.limits = limits
        self.session: Session | None = None
        self.version = 0
        self.unknown: frozenset[int] = frozenset()
        """Stages that hold something else than this session's host wrote there, as far as it was told."""
        self.features = list(features)
        stages = enumerate(capabilities.get("stages", ()))
        self._written = frozenset(k for k, stage in stages if stage.get("parameters"))
        self._ended = -1
        self._kept_bytes = kept_bytes
        self._ready = {
            "protocol": list(m.PROTOCOL),
            "boot": f"{boot:x}",
            "features": list(features),
            "capabilities": dict(capabilities),
            "longest_call_s": longest_call_s,
            "limits": {"array": limits.array, "total": limits.total},
        }

    def silence(self, now: float) -> float:
        """Seconds since the session's host was heard (inf: there is no session)."""
        return now - self.session.heard if self.session else math.inf

    def lost(self) -> None:
        """The device no longer holds what was written."""
        self.version = 0
        self.unknown = self._written

    # --- hearing -----------------------------------------------------------------------------------------------

    def receive(self, peer: bytes, frames: Sequence[Buffer], now: float) -> Job | Frames | None:
        """A job to be done, a reply to be sent to `peer` at once, or nothing to do. WireError: no message."""
        try:
            message = m.decode(frames, self.limits)
        except m.OtherVersion as error:
            text = f"the host speaks HZO/{error.spoken}, this device HZO/{m.PROTOCOL[0]}"
            return self._error_to(0, 0, "VERSION", text)
        session = self.session
        kind = message.kind
        if kind == m.HELLO:
            return self._greet(message, now)
        if kind > m.DO:
            raise WireError(f"a host does not send messages of type {kind}")
        if session is None or message.session != session.number:
            return self._error_to(message.session, message.seq, "SESSION", "this device does not know you: say HELLO")
        session.heard = now
        if kind == m.PING:
            return m.encode(m.PONG, session.number, message.seq, version=self.version, credit=self.credit)
        if kind == m.BYE:
            self.session, self._ended = None, message.session
            return None
        return self._requested(session, peer, message)

    def _requested(self, session: Session, peer: bytes, message: m.Message) -> Job | Frames | None:
        seq = message.seq
        known = session.kept.get(seq)
        if known is not None:
            return known
        if seq <= session.floor:
            return None
        if message.credit and seq - message.credit > session.floor:
            self._settled(session, seq - message.credit)
        options = m.options_of(message.meta)
        if message.kind == m.RUN and message.version != self.version:
            return self._stale(message, message.version)
        if message.kind == m.RUN and self.unknown and self.version:
            lo, hi = options.get("lo"), options.get("hi")
            asked = range(lo, hi) if type(lo) is int and type(hi) is int else ()  # if not, the driver says so
            if unknown := [k for k in sorted(self.unknown) if k in asked]:
                return self._unknown(message, unknown)
        if message.kind == m.WRITE:
            base = m.whole(options, "base", most=0xFFFFFFFF)
            if base not in (0, self.version):
                return self._stale(message, base)
            if not base and options.get("where"):
                return self._unknown(message, sorted(set(message.roles)))
        return Job(WORDS[message.kind], peer, message, options)

    def _stale(self, message: m.Message, needed: int) -> Frames:
        text = f"the device holds parameter version {self.version}, not {needed}"
        return self._error_to(message.session, message.seq, "STALE", text)

    def _unknown(self, message: m.Message, stages: Sequence[int]) -> Frames:
        text = f"what the stages {', '.join(map(str, stages))} hold was not written since the parameters were lost"
        return self._error_to(message.session, message.seq, "STALE", text)

    def _greet(self, message: m.Message, now: float) -> Frames | None:
        if message.session == self._ended:
            return None
        options = message.options()
        run_id, takeover = options.get("run_id", ""), options.get("takeover", False)
        ping_s = m.seconds(options, "ping_s", 1.0, 0.01, 600.0)
        if type(takeover) is not bool or type(run_id) is not str:
            raise WireError(f"META: run_id is text and takeover true or false, not {run_id!r} and {takeover!r}")
        session = self.session
        resumed = session is not None and session.number == message.session
        if session is not None and not resumed and not (takeover or (run_id and run_id == session.run_id)):
            silent = now - session.heard
            if silent < 3 * session.ping_s:
                name = f"run {session.run_id!r}" if session.run_id else "another host"
                text = f"in use by {name}, heard {silent:.1f} s ago. Wait until it has ended, or take over (takeover)"
                return self._error_to(message.session, message.seq, "BUSY", text)
        if session is None or not resumed:
            session = self.session = Session(message.session, run_id, ping_s, message.seq, now)
            self.version, self.unknown = 0, frozenset()
        session.heard, session.ping_s = now, ping_s
        meta = m.pack_json({**self._ready, "resumed": resumed})
        return m.encode(m.READY, session.number, message.seq, meta=meta, version=self.version, credit=self.credit)

    # --- answering ---------------------------------------------------------------------------------------------

    def answered(
        self, job: Job, arrays: Sequence[Array] = (), roles: Sequence[int] = (), meta: bytes = b"", flags: int = 0
    ) -> Frames:
        """The reply to a job that went well, kept for repeats. Sets the version after a write."""
        message = job.message
        if job.kind == "write":
            if self.version and not job.options.get("base"):
                self.unknown = self._written
            self.version = message.version
            self.unknown = self.unknown.difference(message.roles)
        kind, session, seq = ANSWERS[job.kind], message.session, message.seq
        reply = m.encode(kind, session, seq, meta, arrays, roles, self.version, self.credit, flags)
        return self._keep(message, reply)

    def refused(self, job: Job, code: str, text: str) -> Frames:
        """The reply to a job that failed. Kept as well: a failed run is not run again. STALE is not."""
        reply = self._error_to(job.message.session, job.message.seq, code, text)
        return reply if code == "STALE" else self._keep(job.message, reply)

    def _keep(self, message: m.Message, reply: Frames) -> Frames:
        session, seq = self.session, message.seq
        if session is None or session.number != message.session:
            return reply  # taken over meanwhile
        kept = session.kept
        kept[seq] = reply
        for array in reply[3:]:
            session.kept_bytes += array.nbytes
        if seq < session.newest:
            session.kept = kept = dict(sorted(kept.items()))
        else:
            session.newest = seq
        while len(kept) > 2 * self.credit or (
            session.kept_bytes > self._kept_bytes and next(iter(kept)) <= session.newest - self.credit
        ):
            self._settled(session, next(iter(kept)))
        return reply

    def _settled(self, session: Session, floor: int) -> None:
        """The host has had the answers up to this number: they are asked for no more."""
        kept = session.kept
        while kept and (oldest := next(iter(kept))) <= floor:
            for array in kept.pop(oldest)[3:]:
                session.kept_bytes -= array.nbytes
        session.floor = floor

    def _error_to(self, session: int, seq: int, code: str, text: str) -> Frames:
        meta = m.pack_json({"code": code, "text": text[:4000]})
        return m.encode(m.ERROR, session, seq, meta=meta, version=self.version, credit=self.credit)
