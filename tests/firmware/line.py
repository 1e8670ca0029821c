"""A host for tests, written from the protocol's description alone: struct, zlib, COBS by hand, nothing of hzo_hil's."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from typing import Any, NamedTuple

HELLO, WRITE, RUN, READ, PING, DO = range(1, 7)
OK, STALE, LENGTH, ADDRESS, VALUE, FAULT, BAD_VERSION, BAD_TYPE = range(8)
SATURATED = 0x80
MANIFEST, INPUT, PARAMETERS, OUTPUT, TELEMETRY = range(5)


class Answer(NamedTuple):
    type: int
    seq: int
    status: int
    place: int
    offset: int
    data: bytes


def cobs(data: bytes) -> bytes:
    line, block = bytearray(), bytearray()
    for at, byte in enumerate(data):
        if byte:
            block.append(byte)
        if not byte or (len(block) == 254 and at + 1 < len(data)):
            line += bytes([len(block) + 1]) + block
            block = bytearray()
    return bytes(line + bytes([len(block) + 1]) + block)


def uncobs(line: bytes) -> bytes:
    data, at = bytearray(), 0
    while at < len(line):
        code = line[at]
        data += line[at + 1 : at + code]
        at += code
        if code < 255 and at < len(line):
            data.append(0)
    return bytes(data)


def frame(kind: int, seq: int = 0, state: int = 0, region: int = 0, offset: int = 0, data: bytes = b"") -> bytes:
    body = struct.pack("<BBBBI", kind if kind > 15 else 16 | kind, seq, state, region, offset) + data
    return b"\0" + cobs(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


class Line:
    """A socket to a board. `ask` sends one request and waits for its answer; `boot` and `epoch` follow the answers."""

    def __init__(self, port: int, patience_s: float = 10.0) -> None:
        self.socket = _connected(port, patience_s)
        self.patience_s = patience_s
        self.seq = 0
        self.boot = self.epoch = 0
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answers(self, count: int, patience_s: float | None = None) -> list[Answer]:
        """Exactly `count` answers, or fewer if the board stays silent for `patience_s`."""
        found: list[Answer] = []
        self.socket.settimeout(self.patience_s if patience_s is None else patience_s)
        while len(found) < count:
            while b"\0" not in self._rest:
                try:
                    chunk = self.socket.recv(65536)
                except TimeoutError:
                    return found
                assert chunk, "the board closed the line"
                self._rest += chunk
            part, self._rest = self._rest.split(b"\0", 1)
            if part:
                body = uncobs(part)
                assert struct.unpack("<I", body[-4:])[0] == zlib.crc32(body[:-4])
                found.append(Answer(*struct.unpack("<BBBBI", body[:8]), body[8:-4]))
        return found

    def ask(self, kind: int, region: int = 0, offset: int = 0, data: bytes = b"", state: int | None = None) -> Answer:
        self.seq = (self.seq + 1) & 255
        state = self.boot << 4 | self.epoch if state is None else state
        self.send(frame(kind, self.seq, state, region, offset, data))
        (answer,) = self.answers(1)
        assert (answer.type, answer.seq) == (16 | 8 | kind & 15, self.seq)
        self.boot, self.epoch = answer.place >> 4, answer.place & 15
        return answer

    def hello(self, nonce: int = 1) -> Answer:
        return self.ask(HELLO, offset=nonce)

    def write(self, address: int, data: bytes) -> Answer:
        """As a host does: the next epoch, never 0."""
        epoch = self.epoch % 15 + 1
        return self.ask(WRITE, PARAMETERS | self.epoch << 4, address, data, self.boot << 4 | epoch)

    def run(self, number: int, segment: int, data: bytes, repeats_log2: int = 0) -> Answer:
        return self.ask(RUN, repeats_log2 << 4 | segment, number, data)

    def read(self, region: int, count: int, offset: int = 0) -> bytes:
        answer = self.ask(READ, region, offset, struct.pack("<H", count))
        assert answer.status == OK
        return answer.data

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _connected(port: int, patience_s: float) -> socket.socket:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            made = socket.create_connection(("127.0.0.1", port), timeout=patience_s)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
