"""The device's half of HZO-S/1 in Python: bodies in, bodies out. No port, no clock, no thread.

One request at a time, in order, at most one answer each:

    request      boot differs   epoch differs   otherwise
    HELLO        -              -               boot id, MTU, WINDOW; another nonce clears remembered answers
    READ, PING   -              -               answered
    WRITE        STALE          STALE (*)       bytes kept; the device takes the request's new epoch, never 0
    RUN          STALE          STALE           run once; its answer is remembered; a known id is answered from memory
    DO apply     STALE          STALE (*)       the driver gets what was written; dropped while bytes are missing
    DO maintain  STALE          STALE           done once an id
    DO park      -              -               parked; epoch 0: nothing runs before the next WRITE

(*) a WRITE says which epoch it follows: the device's must be that one, or already the new one. Else a WRITE after an
unnoticed restart would make everything that was not written again look valid.
Numbers too old to be remembered, replies (an echo on the line) and bodies without a header are dropped in silence.
"""

from __future__ import annotations

import logging
import secrets
import struct
import zlib
from collections.abc import Callable
from typing import TypeVar

from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import BadInput, ConfigError, DeviceRebooted, WireError
from hzo_hil.devices.wire import hzos_frames as f
from hzo_hil.devices.wire.hzos_board import Board

log = logging.getLogger("hzo_hil.server")
MOST_WINDOW = 64
T = TypeVar("T")
APPLY = struct.Struct("<III")


class _Refused(Exception):
    """A request is answered with a status and, perhaps, words."""

    def __init__(self, status: int, words: str = "") -> None:
        super().__init__(words)
        self.status = status


class HzosServed:
    """Hosts a device. `receive` takes the body of a frame that checked and returns the body to send, or None.

    `boot` (32 bits, else random) names this start of the device. `bad_frames` is for the caller to keep up to date.
    """

    def __init__(
        self,
        device: Device,
        *,
        mtu: int = f.MOST_MTU,
        window: int = 8,
        encoding: str = "f4",
        boot: int | None = None,
        sleep: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        if not f.LEAST_MTU <= mtu <= f.MOST_MTU:
            raise ConfigError(f"mtu: {mtu} bytes; a frame has {f.LEAST_MTU} to {f.MOST_MTU}")
        if not 1 <= window <= MOST_WINDOW:
            raise ConfigError(f"window: {window} answers remembered; 1 to {MOST_WINDOW}")
        self.board = Board(device, mtu, encoding, sleep)
        self.mtu, self.window = mtu, window
        self.boot = secrets.randbits(32) if boot is None else boot
        self.epoch = 0
        self.runs = 0
        self.bad_frames = 0
        self._nonce: int | None = None
        self._answers: dict[int, bytes] = {}
        self._done: tuple[int, _Refused | None] | None = None
        self._refusal: _Refused | None = None  # how the driver took what was last written,
        self._refused_epoch = 0  # of which epoch that was,
        self._told = False  # and whether the host asked and knows
        self._telemetry = b""
        self._actions: dict[int, Callable[[f.Frame], bytes | None]] = {
            f.WRITE: self._write, f.READ: self._read, f.PING: lambda frame: b"", f.DO: self._do,
        }  # fmt: skip

    def receive(self, body: bytes) -> bytes | None:
        try:
            frame = f.parse(body)
        except WireError:
            return None
        if frame.type & f.REPLY:
            return None  # our own words, echoed by the line
        if frame.version != f.VERSION:
            return self._reply(frame, f.BAD_VERSION)
        if len(body) + f.CRC.size > self.mtu:
            return self._reply(frame, f.LENGTH)
        if frame.type == f.HELLO:
            return self._hello(frame)
        if frame.type == f.RUN:
            return self._run(frame)
        action = self._actions.get(frame.type)
        if action is None:
            return self._reply(frame, f.BAD_TYPE)
        try:
            data = action(frame)
            return None if data is None else self._reply(frame, f.OK, data)
        except _Refused as refused:
            return self._reply(frame, refused.status, self._words(str(refused)))

    def lost(self) -> None:
        """The parameters are gone: nothing runs before the next WRITE."""
        self.epoch = 0
        self._refusal = None
        self.board.forget()

    def park(self) -> None:
        """Bring the driver to its safe state, as when the host has been silent for long."""
        self.lost()
        self.board.park()

    # --- requests ----------------------------------------------------------------------------------------------

    def _hello(self, frame: f.Frame) -> bytes:
        if frame.offset != self._nonce:
            self._nonce = frame.offset
            self._answers.clear()
            self._done = None
        runs, bad = self.runs & 0xFFFFFFFF, self.bad_frames & 0xFFFFFFFF
        counts = struct.pack("<IIII", self.boot, runs, bad, len(self.board.manifest))
        return self._reply(frame, f.OK, counts, offset=self.mtu | self.window << 16)

    def _write(self, frame: f.Frame) -> bytes:
        if frame.region & 15 != f.PARAMETERS or frame.offset + len(frame.data) > self.board.size:
            raise _Refused(f.ADDRESS)
        self._check_follows(frame)
        again = self.epoch == frame.status & 15
        if self._refusal is not None and self._refused_epoch == frame.status & 15:
            return b""  # sent twice: what was refused is not offered to the driver again
        self._refusal = None
        self.epoch = frame.status & 15
        self.board.store(frame.offset, frame.data, again)
        return b""

    def _check_follows(self, frame: f.Frame) -> None:
        """STALE unless the device is where the host believes it."""
        boot, epoch, before = frame.status >> 4, frame.status & 15, frame.region >> 4
        if boot != self.boot & 15 or epoch == 0 or self.epoch not in (before, epoch):
            raise _Refused(f.STALE)

    def _read(self, frame: f.Frame) -> bytes:
        if len(frame.data) != 2:
            raise _Refused(f.LENGTH)
        count = min(int.from_bytes(frame.data, "little"), self.mtu - f.OVERHEAD)
        region, start = frame.region & 15, frame.offset
        if region == f.PARAMETERS:
            return self._guarded(lambda: self._parameters(start, count))
        if region == f.TELEMETRY and start == 0:
            self._telemetry = self._guarded(self.board.telemetry)
        memory = {
            f.MANIFEST: self.board.manifest, f.INPUT: self.board.inputs, f.OUTPUT: self.board.outputs,
            f.TELEMETRY: self._telemetry,
        }.get(region)  # fmt: skip
        if memory is None:
            raise _Refused(f.ADDRESS)
        return memory[start : start + count]

    def _parameters(self, start: int, count: int) -> bytes:
        self._bring()
        return self.board.read(start, count)

    def _bring(self) -> None:
        """Hand the driver what was written.

        What it refuses is forgotten, and it goes on with what it has once the host knows; until then nothing runs.
        Where it failed, nobody knows what it has: nothing runs before the next WRITE.
        """
        if self._refusal is not None:
            if self._told:
                return
            raise self._refusal
        epoch = self.epoch
        try:
            self._guarded(self.board.apply)
        except _Refused as refused:
            if refused.status != f.STALE:
                self.board.revert()
                if refused.status == f.FAULT:
                    self.lost()
                self._refusal, self._refused_epoch, self._told = refused, epoch, False
            raise

    def _run(self, frame: f.Frame) -> bytes | None:
        known = self._answers.get(frame.offset)
        if known is not None:
            return known
        full = len(self._answers) >= self.window
        if full and frame.offset < min(self._answers):
            return None  # answered long ago
        segments, index = self.board.layout.segments, frame.region & 15
        if frame.status != (self.boot & 15) << 4 | self.epoch or self.epoch == 0:
            return self._reply(frame, f.STALE)
        if index >= len(segments):
            return self._reply(frame, f.ADDRESS)
        driven, answered = self.board.row_bytes(segments[index])
        rows, rest = divmod(len(frame.data), driven)
        if rest or not rows or rows * answered + f.OVERHEAD > self.mtu:
            return self._reply(frame, f.LENGTH)
        self.runs += 1
        try:
            self._bring()
            found = self._guarded(lambda: self.board.run(segments[index], frame.data, 1 << (frame.region >> 4)))
            reply = self._reply(frame, f.OK | f.SATURATED * found[1], found[0])
        except _Refused as refused:
            reply = self._reply(frame, refused.status, self._words(str(refused)))
            if refused.status == f.STALE:
                return reply
        if full:
            del self._answers[min(self._answers)]
        self._answers[frame.offset] = reply
        return reply

    def _do(self, frame: f.Frame) -> bytes | None:
        action = frame.region & 15
        if action == f.PARK:
            self._guarded(self.park)
            return b""
        if action == f.APPLY:
            return self._apply(frame)
        if action != f.MAINTAIN:
            raise _Refused(f.ADDRESS)
        if frame.status != (self.boot & 15) << 4 | self.epoch or self.epoch == 0:
            raise _Refused(f.STALE)
        if self._done is None or self._done[0] != frame.offset:
            self._done = frame.offset, self._maintain()
        if self._done[1] is not None:
            raise self._done[1]
        return b""

    def _maintain(self) -> _Refused | None:
        try:
            self._guarded(self.board.maintain)
        except _Refused as refused:
            return refused
        return None

    def _apply(self, frame: f.Frame) -> bytes | None:
        """Only once the bytes named are the host's: a WRITE that was lost comes again, and after it this does."""
        if len(frame.data) != APPLY.size:
            raise _Refused(f.LENGTH)
        start, count, wanted = APPLY.unpack(frame.data)
        if start + count > self.board.size:
            raise _Refused(f.ADDRESS)
        if self._refusal is not None and self._refused_epoch == frame.status & 15:
            self._told = True
            raise self._refusal
        self._check_follows(frame)
        if zlib.crc32(self.board.image(start, count)) != wanted:
            return None
        self.epoch = frame.status & 15
        try:
            self._bring()
        finally:
            self._told = True
        return b""

    # --- answers -----------------------------------------------------------------------------------------------

    def _guarded(self, action: Callable[[], T]) -> T:
        """The driver's mistakes and the host's become a status; nothing a driver raises ends the server."""
        try:
            return action()
        except _Refused:
            raise
        except DeviceRebooted as error:
            self.lost()
            raise _Refused(f.STALE, str(error)) from error
        except BadInput as error:
            raise _Refused(f.VALUE, str(error)) from error
        except Exception as error:
            log.warning("the driver failed: %s: %s", type(error).__name__, error)
            raise _Refused(f.FAULT, f"{type(error).__name__}: {error}") from error

    def _words(self, text: str) -> bytes:
        """As much of a text as fits a frame, cut between characters."""
        return text.encode("utf-8")[: self.mtu - f.OVERHEAD].decode("utf-8", "ignore").encode("utf-8")

    def _reply(self, frame: f.Frame, status: int, data: bytes = b"", offset: int | None = None) -> bytes:
        now = (self.boot & 15) << 4 | self.epoch
        kind = frame.type | f.REPLY
        return f.Frame(kind, frame.seq, status, now, frame.offset if offset is None else offset, data).body()
