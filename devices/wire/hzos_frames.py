"""HZO-S/1 frames: what goes over a serial line, byte by byte. `docs/wire-serial.md` describes it for implementers.

A frame is `00 COBS(body crc32) 00`, a body an 8-byte header and data. Reading never raises: a line is noisy, and what
does not check is counted and dropped. Knows no ports, no clock and no meaning of a body's data.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from cobs import cobs

from hzo_hil.devices.errors import WireError

VERSION = 1
HELLO, WRITE, RUN, READ, PING, DO = 1, 2, 3, 4, 5, 6
REPLY = 8
OK, STALE, LENGTH, ADDRESS, VALUE, FAULT, BAD_VERSION, BAD_TYPE = range(8)
SATURATED = 0x80
MANIFEST, INPUT, PARAMETERS, OUTPUT, TELEMETRY = range(5)
PARK, MAINTAIN, APPLY = 1, 2, 3

HEADER = struct.Struct("<BBBBI")
CRC = struct.Struct("<I")
OVERHEAD = HEADER.size + CRC.size
"""Bytes of a frame, before COBS, that are no data."""
LEAST_MTU, MOST_MTU = 64, 512


class Frame(NamedTuple):
    """One body. `status` is what a request calls boot and epoch, `region` what a reply calls boot and epoch."""

    type: int
    seq: int
    status: int = 0
    region: int = 0
    offset: int = 0
    data: bytes = b""
    version: int = VERSION

    def body(self) -> bytes:
        head = HEADER.pack(self.version << 4 | self.type, self.seq, self.status, self.region, self.offset)
        return head + self.data


def parse(body: bytes | memoryview | bytearray) -> Frame:
    """Raises WireError for a body shorter than a header."""
    if len(body) < HEADER.size:
        raise WireError(f"a body of {len(body)} bytes is shorter than its header of {HEADER.size}")
    first, seq, status, region, offset = HEADER.unpack_from(body)
    return Frame(first & 15, seq, status, region, offset, bytes(body[HEADER.size :]), first >> 4)


def on_line(body: bytes) -> bytes:
    """The bytes sent for a body: a zero first as well, so that garbage before it ends there."""
    return b"\0" + cobs.encode(body + CRC.pack(zlib.crc32(body))) + b"\0"


def line_bytes(mtu: int) -> int:
    """Most bytes between the zeros of a frame of `mtu` bytes before COBS."""
    return mtu + -(-mtu // 254)


def checked(part: bytes) -> bytes | None:
    """The body of what stood between two zeros, or None if it is damaged."""
    try:
        raw = cobs.decode(part)
    except cobs.DecodeError:
        return None
    if len(raw) < OVERHEAD:
        return None
    body = raw[: -CRC.size]
    return body if CRC.unpack_from(raw, len(body))[0] == zlib.crc32(body) else None


class Splitter:
    """Cuts a stream of bytes, in pieces of any size, into bodies. Holds less than one frame, whatever comes.

    `bad_frames` counts what was dropped: damaged, too short, or longer than `mtu` bytes before COBS.
    """

    def __init__(self, mtu: int = MOST_MTU) -> None:
        self._most = line_bytes(mtu)
        self._begun = bytearray()
        self._too_long = False
        self.bad_frames = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Bodies completed by `chunk`, in order."""
        *ended, rest = chunk.split(b"\0")
        bodies = []
        for part in ended:
            body = self._end(part)
            if body is not None:
                bodies.append(body)
        self._begin(rest)
        return bodies

    def reset(self) -> None:
        """Forget a frame begun, as after the line was opened again."""
        self._begun.clear()
        self._too_long = False

    def _begin(self, part: bytes) -> None:
        self._too_long = self._too_long or len(self._begun) + len(part) > self._most
        if self._too_long:
            self._begun.clear()
        else:
            self._begun += part

    def _end(self, part: bytes) -> bytes | None:
        self._begin(part)
        whole, too_long = bytes(self._begun), self._too_long
        self.reset()
        if not whole and not too_long:
            return None  # two zeros in a row are no frame
        body = None if too_long else checked(whole)
        self.bad_frames += body is None
        return body
