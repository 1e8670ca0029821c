"""The host's half of HZO-S/1: requests to bodies, bodies to events. No port, no clock, no thread.

A conversation as `conversation.py` describes it. Its greeting: HELLO; where the device started anew, READs of its
manifest; where the host has written nothing yet, an empty WRITE that sets an epoch, so that queries are answered. An
answer is matched by type, number and offset (a query's is its run id); everything else is late, and only the window
cares.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, Query
from hzo_hil.devices.errors import (
    BadInput,
    BadReply,
    CapabilityError,
    DeviceError,
    DeviceRebooted,
    HzoError,
    WireError,
)
from hzo_hil.devices.manifest import from_json
from hzo_hil.devices.wire import hzos_frames as f
from hzo_hil.devices.wire.conversation import Buffer, Event, Request, Welcome
from hzo_hil.devices.wire.hzos_jobs import Job, ReadJob, TextJob, changed_spans, check_values, runs
from hzo_hil.devices.wire.hzos_layout import Layout, Place, layout_from

MOST_MANIFEST = 1 << 20
MOST_CREDIT = 128
TELEMETRY_BYTES = 256
GREETING = -1
_HELLO = struct.Struct("<IIII")
_COUNT = struct.Struct("<H")
_APPLY = struct.Struct("<III")


@dataclasses.dataclass(frozen=True)
class _Part:
    """One request in flight. `place`: which part of its job."""

    seq: int
    job: int
    place: int
    claimed: int = 0  # the boot and epoch it went out with


class HzosHost:
    """`nonce` and `first_id` are random unless given (tests)."""

    probes = False
    place = ""
    credit = 1

    def __init__(self, nonce: int | None = None, first_id: int | None = None) -> None:
        self._nonce = secrets.randbits(32) if nonce is None else nonce
        # Run ids ascend with sequence numbers, so that a span of one is a span of the other.
        self._first_id = 1 + secrets.randbelow(1 << 30) if first_id is None else first_id
        self._seq = 0
        self._parts: dict[tuple[int, int, int], _Part] = {}
        self._jobs: dict[int, Job] = {}
        self._greeting = False
        self._boot: int | None = None
        self._described: int | None = None  # the boot whose manifest `_welcome` and `_layout` are from
        self._mtu = f.LEAST_MTU
        self._manifest: dict[int, bytes] = {}
        self._unasked: list[tuple[int, int]] = []
        self._welcome: Welcome | None = None
        self._layout: Layout | None = None
        self._epoch = 0  # what queries carry
        self._before = 0  # the device's epoch, as far as it was heard: what the next write follows
        self._written = False

    # --- greeting ----------------------------------------------------------------------------------------------

    def hello(self, takeover: bool, run_id: str, ping_s: float) -> Request:
        """A serial line has one host: `takeover`, `run_id` and `ping_s` have no place in it."""
        return self._hello()

    def _hello(self) -> Request:
        self._greeting = True
        self._unasked = []
        self._drop_parts(GREETING)
        return _unnumbered(f.Frame(f.HELLO, 0, offset=self._nonce))

    def _hello_answered(self, frame: f.Frame) -> list[Event]:
        if not self._greeting:
            return [Event("pong")]
        if frame.version != f.VERSION or frame.status == f.BAD_VERSION:
            return self._refused(
                DeviceError(
                    f"{self.place} speaks version {frame.version} of the serial protocol HZO-S, this host version"
                    f" {f.VERSION}. Update the older of the two"
                )
            )
        if len(frame.data) < _HELLO.size or frame.status != f.OK:
            raise WireError("a HELLO reply has four numbers")
        mtu, window = frame.offset & 0xFFFF, frame.offset >> 16
        boot, _runs, _bad, length = _HELLO.unpack_from(frame.data)
        if not (f.LEAST_MTU <= mtu <= f.MOST_MTU and window >= 1 and length <= MOST_MANIFEST):
            return self._refused(
                CapabilityError(
                    f"{self.place} states frames of {mtu} bytes, a window of {window} and a manifest of {length} bytes;"
                    f" it must be {f.LEAST_MTU} to {f.MOST_MTU}, at least 1, and at most {MOST_MANIFEST}"
                )
            )
        self._mtu, self.credit = mtu, min(window, MOST_CREDIT)
        epoch = frame.region & 15
        if boot == self._boot and any(p.job == GREETING for p in self._parts.values()):
            return [Event("pong")]  # said twice
        if boot == self._described:
            return self._resume(epoch)
        # What the last manifest said stands until the new one is read: jobs may be made meanwhile, and fail at "ready".
        self._boot, self._before = boot, epoch
        self._parts.clear()
        self._jobs.clear()
        self._manifest = {}
        room = self._room
        self._unasked = [(start, min(room, length - start)) for start in range(0, length, room)][::-1]
        if not self._unasked:
            return self._refused(CapabilityError(f"{self.place} has no manifest: it says nothing of its stages"))
        return [Event("more", more=[self._ask_manifest() for _ in range(min(self.credit, len(self._unasked)))])]

    def _resume(self, epoch: int) -> list[Event]:
        """The device is the one we know. Whether it still holds what this host gave it shows in its epoch."""
        assert self._welcome is not None
        self._before = epoch
        if self._written or epoch == self._epoch:
            # Parked (0) or not: it remembers its answers, and says STALE to what it may not run.
            known = epoch in (0, self._epoch) or bool(self._parts)
            return self._ready(dataclasses.replace(self._welcome, resumed=known))
        self._welcome = dataclasses.replace(self._welcome, resumed=False)
        return [Event("more", more=[self._claim()])]

    def _ask_manifest(self) -> Request:
        start, count = self._unasked.pop()
        frame = f.Frame(f.READ, 0, region=f.MANIFEST, offset=start, data=_COUNT.pack(count))
        return self._request(GREETING, count, frame)

    def _claim(self) -> Request:
        """An epoch for queries of a host that has written nothing."""
        self._epoch = _next(self._before)
        return self._request(GREETING, 0, self._write_frame(0, b""))

    def _greeted(self, part: _Part, frame: f.Frame) -> list[Event]:
        if not self._greeting:
            return [Event("part", part.seq)]
        if frame.region >> 4 != (self._boot or 0) & 15 or frame.status == f.STALE:
            return [Event("more", part.seq, more=[self._hello()])]  # it restarted in the middle of the greeting
        if frame.type == f.WRITE:
            if frame.status != f.OK:
                return self._refused(DeviceError(f"{self.place} answered an empty WRITE with {_said(frame)}"))
            assert self._welcome is not None
            self._before = self._epoch
            return self._ready(self._welcome, part.seq)
        if frame.status != f.OK or len(frame.data) != part.place:
            return self._refused(DeviceError(f"{self.place} answered a READ of its manifest with {_said(frame)}"))
        self._manifest[frame.offset] = frame.data
        if self._unasked:
            return [Event("more", part.seq, more=[self._ask_manifest()])]
        if any(p.job == GREETING for p in self._parts.values()):
            return [Event("more", part.seq)]
        text = b"".join(self._manifest[start] for start in sorted(self._manifest))
        try:
            self._welcome = self._read_manifest(text)
        except HzoError as error:
            return self._refused(CapabilityError(f"{self.place} describes itself wrongly: {error}"))
        if not self._written:
            return [Event("more", part.seq, more=[self._claim()])]
        return self._ready(self._welcome, part.seq)

    def _read_manifest(self, text: bytes) -> Welcome:
        try:
            manifest = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CapabilityError(f"its manifest is no JSON: {error}") from error
        capabilities = from_json(manifest)
        self._layout = layout_from(manifest.get("wire"), capabilities)
        able = dataclasses.replace(capabilities, taps=False, keyed=False, repeats=self._layout.repeats)
        features = frozenset(self._layout.features) | {"where"} | ({"repeats"} if self._layout.repeats else set())
        details = {"mtu": self._mtu, "window": self.credit}
        boot = self._boot or 0
        self._described = self._boot
        return Welcome(able, boot, False, self.credit, features, able.longest_call_s, details)

    def _ready(self, welcome: Welcome, seq: int = -1) -> list[Event]:
        self._greeting = False
        self._welcome = dataclasses.replace(welcome, resumed=True)
        if not welcome.resumed:
            self._parts.clear()
            self._jobs.clear()
            self.forget()
        return [Event("ready", seq, result=welcome)]

    def _refused(self, error: Exception) -> list[Event]:
        self._greeting = False
        return [Event("refused", result=error)]

    # --- requests ----------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return self._known[0]

    def run(self, job: int, query: Query) -> list[Request]:
        capabilities, layout = self._known
        segment = layout.index(query.segment)
        try:
            waiting, sent = runs(layout, capabilities, query, self._room)
        except BadInput as error:
            raise type(error)(f"{self.place}: {error}") from None
        self._jobs[job] = waiting
        now = self._now
        return [
            self._request(job, place, f.Frame(f.RUN, 0, now, power << 4 | segment, 0, data))
            for place, (power, data) in enumerate(sent)
        ]

    def write(
        self,
        job: int,
        stage: int,
        values: Mapping[str, Array],
        where: Mapping[str, Array] | None = None,
        key: int | None = None,
    ) -> list[Request]:
        """A new epoch; values in frames of whole numbers. `key` cannot travel: no serial device is keyed."""
        spec, places = self._stage(stage)
        if set(values) != {p.name for p in spec.parameters}:
            raise BadInput(
                f"{self.place}: stage {spec.name!r} has parameters {[p.name for p in spec.parameters]}, a write names"
                f" each of them and no others, not {sorted(values)}"
            )
        pieces: list[tuple[int, bytes]] = []
        image = _Image(places)
        for parameter, place in zip(spec.parameters, places, strict=True):
            value, name = np.asarray(values[parameter.name]), f"{self.place}: parameter {spec.name}.{parameter.name}"
            if value.shape != parameter.shape:
                raise BadInput(f"{name} has shape {list(parameter.shape)}, not {list(value.shape)}")
            check_values(name, value, place.encoding)
            data, size = place.encoding.encode(value.reshape(-1))[0], place.encoding.size
            image.put(place.address, data)
            changed = np.arange(value.size) if where is None else where.get(parameter.name, np.arange(0))
            for first, end in changed_spans(changed, value.size, 16 // size):
                part = data[first * size : end * size]
                pieces += _chunks(place.address + first * size, part, self._room // size * size)
        self._written = True
        self._epoch = _next(self._epoch, self._before)
        sent = [self._write_frame(address, data) for address, data in pieces or [(0, b"")]]
        if "apply" in self._known[1].features and pieces:
            sent.append(f.Frame(f.DO, 0, self._now, self._before << 4 | f.APPLY, 0, image.summary()))
        self._jobs[job] = Job(f"a write of stage {spec.name!r}", len(sent))
        return [self._request(job, place, frame) for place, frame in enumerate(sent)]

    def read(self, job: int, what: Literal["parameters", "snapshot", "health"], stage: int = 0) -> list[Request]:
        if what != "parameters":
            return self._read_text(job, what)
        spec, places = self._stage(stage)
        waiting = ReadJob(f"a reading of stage {spec.name!r}", dtype=self.capabilities.dtype)
        arrays, frames = {}, []
        for parameter, place in zip(spec.parameters, places, strict=True):
            arrays[parameter.name] = place.encoding, parameter.shape
            size = place.encoding.size
            for address, data in _chunks(place.address, bytes(parameter.size * size), self._room // size * size):
                waiting.chunks.append((parameter.name, address, len(data)))
                frames.append(f.Frame(f.READ, 0, 0, f.PARAMETERS, address, _COUNT.pack(len(data))))
        if not frames:  # nothing to read is answered all the same
            waiting.arrays, frames = {}, [f.Frame(f.PING, 0)]
            self._jobs[job] = TextJob(waiting.what, 1, finish=lambda text: {})
        else:
            waiting.arrays, waiting.parts = arrays, len(frames)
            self._jobs[job] = waiting
        return [self._request(job, place, frame) for place, frame in enumerate(frames)]

    def _read_text(self, job: int, what: str) -> list[Request]:
        room = self._room
        frames = [
            f.Frame(f.READ, 0, 0, f.TELEMETRY, start, _COUNT.pack(room)) for start in range(0, TELEMETRY_BYTES, room)
        ]
        finish = _health if what == "health" else _snapshot
        self._jobs[job] = TextJob(f"a reading of its {what}", len(frames), finish=finish)
        return [self._request(job, place, frame) for place, frame in enumerate(frames)]

    def do(self, job: int, action: Literal["park", "maintain"]) -> list[Request]:
        number = {"park": f.PARK, "maintain": f.MAINTAIN}[action]
        self._jobs[job] = _Park(action, 1, host=self) if action == "park" else Job(action, 1)
        return [self._request(job, 0, f.Frame(f.DO, 0, self._now, number, self._run_id(self._seq + 1)))]

    def ping(self) -> Request:
        return _unnumbered(f.Frame(f.PING, 0))

    def bye(self) -> Request | None:
        return None

    def drop(self, jobs: Sequence[int]) -> None:
        for job in jobs:
            self._jobs.pop(job, None)

    def forget(self) -> None:
        if self._written:
            # An epoch the device cannot have: it has 0 or the one it had.
            self._epoch = _next(self._epoch, self._before)

    # --- answers -----------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Buffer]) -> list[Event]:
        if len(frames) != 1:
            raise WireError(f"a serial message is one body, not {len(frames)}")
        frame = f.parse(frames[0])
        if not frame.type & f.REPLY:
            raise WireError("the line sends our own requests back: is it looped, or does the adapter echo?")
        frame = frame._replace(type=frame.type & ~f.REPLY)
        if frame.type == f.HELLO:
            return self._hello_answered(frame)
        if frame.version != f.VERSION:
            raise WireError(f"a body of version {frame.version}")
        part = self._parts.pop((frame.type, frame.seq, frame.offset), None)
        if self._welcome is not None and not self._greeting and frame.region >> 4 != (self._boot or 0) & 15:
            return [Event("stranger")]
        if part is None:
            return [Event("pong")]
        if part.job == GREETING:
            return self._greeted(part, frame)
        return [self._judged(part, frame)]

    def _judged(self, part: _Part, frame: f.Frame) -> Event:
        status = frame.status & ~f.SATURATED
        if status == f.STALE and part.claimed == self._now:
            # Of a request that went out before the last rewrite nothing follows: it was refused for what is mended.
            self._before = frame.region & 15
            if not self._written:
                return Event("stranger")  # the greeting sets an epoch anew
            self.forget()
        job = self._jobs.get(part.job)
        if job is None:
            return Event("part", part.seq)
        failed: Exception | None = None
        if status != f.OK:
            failed = self._failure(status, job, frame)
        else:
            try:
                job.take(part.place, frame.data, bool(frame.status & f.SATURATED))
                if frame.type == f.WRITE:
                    self._before = frame.region & 15
            except BadReply as error:
                failed = BadReply(f"{self.place} {error}")
        job.parts -= 1
        if failed is None and job.parts:
            return Event("part", part.seq)
        del self._jobs[part.job]
        try:
            return Event("answer", part.seq, part.job, failed or job.result())
        except DeviceError as error:
            return Event("answer", part.seq, part.job, BadReply(f"{self.place}: {error}"))

    def _failure(self, status: int, job: Job, frame: f.Frame) -> Exception:
        words = frame.data.decode("utf-8", "replace").strip()
        tail = f": {words}" if words else ""
        if status == f.STALE:
            return DeviceRebooted(
                f"{self.place} no longer holds the parameters this host wrote (it restarted, was parked or another host"
                f" wrote): it refused {job.what}{tail}. They are written again before the next query"
            )
        if status == f.VALUE:
            return BadInput(f"{self.place} refused {job.what}{tail or ': a value is out of its range'}")
        if status == f.FAULT:
            return DeviceError(f"{self.place} failed at {job.what}{tail or ' and does not say why: see its own log'}")
        if status in (f.LENGTH, f.ADDRESS, f.BAD_TYPE):
            kind = {f.LENGTH: "length", f.ADDRESS: "address or number", f.BAD_TYPE: "kind"}[status]
            return CapabilityError(
                f"{self.place} does not know the {kind} of {job.what}{tail}. Its manifest promises more than it keeps"
            )
        return BadReply(f"{self.place} answered {job.what} with {_said(frame)}")

    # --- small things ------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        return self._mtu - f.OVERHEAD

    @property
    def _now(self) -> int:
        return ((self._boot or 0) & 15) << 4 | self._epoch

    @property
    def _known(self) -> tuple[Capabilities, Layout]:
        if self._welcome is None or self._layout is None:
            raise DeviceError(f"{self.place} has not been greeted yet: nothing is known of it")
        return self._welcome.capabilities, self._layout

    def _stage(self, stage: int) -> tuple[Any, tuple[Place, ...]]:
        capabilities, layout = self._known
        if not 0 <= stage < len(capabilities.stages):
            raise BadInput(f"{self.place} has stages 0..{len(capabilities.stages) - 1}, not {stage}")
        return capabilities.stages[stage], layout.parameters[stage]

    def _write_frame(self, address: int, data: bytes) -> f.Frame:
        return f.Frame(f.WRITE, 0, self._now, self._before << 4 | f.PARAMETERS, address, data)

    def _run_id(self, seq: int) -> int:
        return (self._first_id + seq) & 0xFFFFFFFF

    def _request(self, job: int, place: int, frame: f.Frame) -> Request:
        self._seq += 1
        offset = self._run_id(self._seq) if frame.type == f.RUN else frame.offset
        frame = frame._replace(seq=self._seq & 255, offset=offset)
        while len(self._parts) >= 512:  # never answered, long since given up
            del self._parts[next(iter(self._parts))]
        self._parts[frame.type, frame.seq, offset] = _Part(self._seq, job, place, frame.status)
        body = frame.body()
        return Request(self._seq, job, [body], len(body) + 8)

    def _drop_parts(self, job: int) -> None:
        for key in [k for k, p in self._parts.items() if p.job == job]:
            del self._parts[key]

    def _parked(self) -> None:
        self._before = 0
        self.forget()


@dataclasses.dataclass
class _Park(Job):
    host: Any = None

    def result(self) -> None:
        self.host._parked()


class _Image:
    """A stage's bytes, as the device should hold them; between parameters there are zeros."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._start = min((p.address for p in places), default=0)
        self._bytes = bytearray()

    def put(self, address: int, data: bytes) -> None:
        first = address - self._start
        self._bytes.extend(bytes(max(0, first + len(data) - len(self._bytes))))
        self._bytes[first : first + len(data)] = data

    def summary(self) -> bytes:
        return _APPLY.pack(self._start, len(self._bytes), zlib.crc32(self._bytes))


def _unnumbered(frame: f.Frame) -> Request:
    body = frame.body()
    return Request(-1, -1, [body], len(body) + 8)


def _chunks(address: int, data: bytes, most: int) -> list[tuple[int, bytes]]:
    return [(address + i, data[i : i + most]) for i in range(0, len(data), most)]


def _next(*epochs: int) -> int:
    """The epoch after the first of them, 1..15, that is none of them."""
    found = epochs[0]
    while found in epochs or found == 0:
        found = found % 15 + 1
    return found


def _said(frame: f.Frame) -> str:
    return f"status {frame.status} and {len(frame.data)} bytes"


def _snapshot(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise BadReply(f"its telemetry is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadReply(f"its telemetry is {type(found).__name__}, not an object of named numbers")
    return found


def _health(text: bytes) -> Mapping[str, Any]:
    found = _snapshot(text)
    return {"ok": bool(found.get("ok", True)), "detail": str(found.get("detail", ""))}
