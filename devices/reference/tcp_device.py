"""A whole device behind plain TCP in one file: copy it, put your y = f(x) in the marked place, run it, train.

    python tcp_device.py 127.0.0.1 7000                 then open serial+tcp://127.0.0.1:7000

Needs numpy, nothing else. It speaks HZO-S/1, the serial protocol (docs/wire-serial.md), so a board with a TCP
port or a serial line can do the same: replace the socket by the port. It has no keys: bind 127.0.0.1.
"""

import atexit
import json
import select
import socket
import struct
import sys
import time
import zlib

import numpy as np

# ---- yours: what the device is, and what it does -----------------------------------------------

SPEC = {  # widths, shape and ranges, in your units
    "identity": "reference-tcp",
    "stages": [{"name": "layer", "in_width": 3, "out_width": 2,
                "parameters": [{"name": "weight", "shape": [2, 3], "low": -2.0, "high": 2.0}]}],
    "boundaries": [{"low": -1.0, "high": 1.0}, {}],
    "longest_call_s": 2.0,
}  # fmt: skip
PARK_AFTER_S = 30.0  # the host was silent for so long: safe state
parameter = np.zeros((2, 3), "<f4")  # several: make one array of them, and take it apart in program()


def respond(x):
    """y [rows, 2] of x [rows, 3]: drive your inputs, read your outputs."""
    return np.tanh(x @ parameter.T)


def program():
    """Set the hardware to `parameter`, then wait until it has settled. Called before the next query."""


def park():
    """The safe state: laser off, heaters cold. The host writes the parameter again before it goes on."""
    parameter[:] = 0.0


# ---- HZO-S/1: to be copied as it is -----------------------------------------------

HEADER = struct.Struct("<BBBBI")  # version and kind, number, boot and epoch (or status), region, offset
HELLO, WRITE, RUN, READ, PING, DO = range(1, 7)
OK, STALE, LENGTH, ADDRESS, VALUE, FAULT, VERSION, TYPE = range(8)
MTU, WINDOW = 512, 8  # most bytes of a frame, answers remembered
STAGE = SPEC["stages"][0]
ROWS = (MTU - 12) // (4 * max(STAGE["in_width"], STAGE["out_width"]))
F4 = {"dtype": "f4", "scale": 1.0}  # all numbers travel as float32
WIRE = {"segments": [[0, 1]], "rows": ROWS, "boundaries": [F4, F4], "parameters": [[{"address": 0, **F4}]]}
MANIFEST = json.dumps({**SPEC, "wire": {**WIRE, "repeats": False, "features": ["park"]}}).encode()
BOOT = time.time_ns() & 0xFFFFFFFF


class Refused(Exception):
    """args: the status of the reply, and words."""


def refuse(wrong, status, words=""):
    if wrong:
        raise Refused(status, words)


class Device:
    def __init__(self):
        self.epoch = 0  # of the parameter; 0: parked
        self.programmed = False
        self.nonce = None  # of the host
        self.answers = {}  # run id -> reply: a repeated query is answered, not run again
        self.runs = self.bad = 0

    def receive(self, body):
        """The reply to the body of a frame that checked, or None."""
        first, number, believed, region, offset = HEADER.unpack_from(body)
        kind = first & 15
        if kind & 8:
            return None  # a reply: our own, echoed by the line
        old = len(self.answers) == WINDOW and offset < min(self.answers)  # answered long ago
        if kind == RUN and (old or offset in self.answers):
            return self.answers.get(offset)
        try:
            refuse(first >> 4 != 1, VERSION)
            status, data = OK, self.answer(kind, believed, region, offset, body[8:])
        except Refused as refused:
            status, data = refused.args[0], refused.args[1].encode()
        except Exception as problem:  # noqa: BLE001 - whatever your code raises is told to the host
            status, data = FAULT, f"{type(problem).__name__}: {problem}".encode()
        told = MTU | WINDOW << 16 if kind == HELLO else offset
        reply = HEADER.pack(0x18 | kind, number, status, self.state(), told) + data[: MTU - 12]
        if kind == RUN and status in (OK, VALUE, FAULT):
            self.answers[offset] = reply
            if len(self.answers) > WINDOW:
                del self.answers[min(self.answers)]
        return reply

    def state(self):
        return (BOOT & 15) << 4 | self.epoch

    def answer(self, kind, believed, region, offset, data):
        """The data of the answer. Raises Refused."""
        if kind == HELLO and offset != self.nonce:  # another host
            self.nonce = offset
            self.answers.clear()
        if kind == HELLO:
            return struct.pack("<IIII", BOOT, self.runs & 0xFFFFFFFF, self.bad & 0xFFFFFFFF, len(MANIFEST))
        if kind == READ:
            regions = {0: MANIFEST, 2: parameter.tobytes(), 4: b'{"ok": 1}'}
            refuse(len(data) != 2, LENGTH)
            refuse(region & 15 not in regions, ADDRESS)
            return regions[region & 15][offset:][: int.from_bytes(data, "little")]
        if kind == RUN:
            refuse(self.epoch == 0 or believed != self.state(), STALE)
            refuse(region != 0, ADDRESS)
            return self.run(data)
        if kind == WRITE:
            refuse(region & 15 != 2 or offset + len(data) > parameter.nbytes, ADDRESS)
            follows = believed >> 4 == BOOT & 15 and self.epoch in (region >> 4, believed & 15)
            refuse(not follows or believed & 15 == 0, STALE)
            refuse(offset % 4 or len(data) % 4, LENGTH)
            values = checked(data, STAGE["parameters"][0])
            parameter.reshape(-1)[offset // 4 :][: len(values)] = values
            self.epoch, self.programmed = believed & 15, False
        elif kind == DO:
            refuse(region & 15 != 1, ADDRESS)
            self.park()
        else:
            refuse(kind != PING, TYPE)
        return b""

    def run(self, data):
        rows, rest = divmod(len(data), 4 * STAGE["in_width"])
        refuse(rest or not 1 <= rows <= ROWS, LENGTH)
        x = checked(data, SPEC["boundaries"][0]).reshape(rows, -1)
        self.runs += 1
        if not self.programmed:
            program()
            self.programmed = True
        y = np.ascontiguousarray(respond(x), "<f4")
        if y.shape != (rows, STAGE["out_width"]):
            raise ValueError(f"respond() gave {y.shape} for {rows} rows")
        return y.tobytes()

    def park(self):
        self.epoch = 0
        park()


def checked(data, limits):
    values = np.frombuffer(data, "<f4").copy()
    inside = (values >= limits["low"] - 1e-6) & (values <= limits["high"] + 1e-6)
    refuse(not inside.all(), VALUE, f"values outside {limits['low']:g}..{limits['high']:g}, or not finite")
    return values


def cobs(data):
    """Bytes without a zero: each block says how far the next zero is."""
    out = bytearray()
    for block in data.split(b"\0"):
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out += bytes([len(block) + 1]) + block
    return bytes(out)


def uncobs(code):
    """The inverse; nothing for what is no such code."""
    out = b""
    while code:
        length, block = code[0], code[1 : code[0]]
        code = code[length:]
        if len(block) != length - 1:
            return b""
        out += block + b"\0" * (length < 255 and len(code) > 0)
    return out


def exchange(device, port, begun):
    """Answer all frames that have come whole; what has come of the next one. OSError: the host is gone."""
    chunk = port.recv(65536)
    if not chunk:
        raise ConnectionResetError
    *frames, begun = (begun + chunk).split(b"\0")
    for frame in filter(None, frames):
        body = uncobs(frame[: MTU + 4])
        if not 12 <= len(body) <= MTU or zlib.crc32(body[:-4]).to_bytes(4, "little") != body[-4:]:
            device.bad += 1
        elif reply := device.receive(body[:-4]):
            port.sendall(b"\0" + cobs(reply + zlib.crc32(reply).to_bytes(4, "little")) + b"\0")
    return begun[: MTU + 4]


def main(host, number):
    atexit.register(park)  # also after Ctrl-C
    device, server = Device(), socket.create_server((host, number))
    print(f"serving {SPEC['identity']} at {host}:{server.getsockname()[1]}", flush=True)
    port, begun, heard = None, b"", time.monotonic()
    while True:
        ready = select.select([server, port or server], [], [], 0.2)[0]  # in slices: Windows defers Ctrl-C
        if server in ready:  # a host that comes anew replaces one that is gone
            port, begun = server.accept()[0], b""
            port.settimeout(5.0)
            port.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        elif ready:
            heard = time.monotonic()
            try:
                begun = exchange(device, port, begun)
            except OSError:
                port = None
        if device.epoch and time.monotonic() - heard > PARK_AFTER_S:
            print(f"parked: no host for {PARK_AFTER_S:g} s", flush=True)
            device.park()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 7000)
