"""A whole device behind plain TCP in one file: copy it, put your y = f(x) in the marked place, run it, train on it.

    python tcp_device.py 127.0.0.1 7000                 then open serial+tcp://127.0.0.1:7000

Needs numpy, nothing else. It speaks HZO-S/1, the serial protocol (docs/wire-serial.md), so a board with a TCP port or a
real serial line can do the same: replace the socket by the port. It has no keys: keep it on this machine or in the lab.
"""

import json
import select
import socket
import struct
import sys
import time
import zlib

import numpy as np

# ---- yours: what the device is, and what it does -----------------------------------------------

SHAPE, LOW, HIGH = (2, 3), -2.0, 2.0  # of the only parameter
SPEC = {  # widths, parameters and ranges in your units; a range that is left out has no end
    "identity": "reference-tcp",
    "stages": [{"name": "layer", "in_width": 3, "out_width": 2,
                "parameters": [{"name": "weight", "shape": SHAPE, "low": LOW, "high": HIGH}]}],
    "boundaries": [{"low": -1.0, "high": 1.0}, {}],
    "longest_call_s": 2.0, "dtype": "float32",
    # How the numbers lie in frames: float32 in and out, the parameter at address 0 of region 2.
    "wire": {"segments": [[0, 1]], "rows": 41, "boundaries": [{"dtype": "f4", "scale": 1.0}] * 2,
             "parameters": [[{"address": 0, "dtype": "f4", "scale": 1.0}]], "repeats": False, "features": ["park"]},
}  # fmt: skip
PARK_AFTER_S = 30.0  # the host was silent for so long: safe state
memory = bytearray(4 * 2 * 3)  # region 2: the parameters as the host writes them


def respond(x, weight):
    """y [rows, 2] of x [rows, 3]: drive your inputs, read your outputs."""
    return np.tanh(x @ weight.T)


def program(weight):
    """Set the hardware, then wait until it has settled. Called before the first query after a change."""


def park():
    """The safe state: laser off, heaters cold. The host writes all parameters again before it goes on."""
    memory[:] = bytes(len(memory))


# ---- HZO-S/1: to be copied as it is -----------------------------------------------

HELLO, WRITE, RUN, READ, PING, DO = range(1, 7)
OK, STALE, LENGTH, ADDRESS, VALUE, FAULT, VERSION, TYPE = range(8)
MTU, WINDOW = 512, 8
IN, OUT = 4 * SPEC["stages"][0]["in_width"], 4 * SPEC["stages"][0]["out_width"]
MANIFEST = json.dumps(SPEC, separators=(",", ":")).encode()
BOOT = time.time_ns() & 0xFFFFFFFF


class Device:
    epoch, nonce, runs, bad, changed = 0, None, 0, 0, False
    inputs = outputs = b""

    def __init__(self):
        self.answers = {}  # run id -> reply: a repeated query is answered, not run again

    def receive(self, body):
        """The body of the reply to one that checked, or None."""
        first, seq, believed, region, offset = struct.unpack_from("<BBBBI", body)
        kind, data = first & 15, body[8:]
        if kind & 8:
            return None  # a reply: our own, echoed by the line
        if first >> 4 != 1:
            return self.reply(kind, seq, VERSION, offset)
        if kind == HELLO:
            if offset != self.nonce:
                self.nonce = offset
                self.answers.clear()
            counts = struct.pack("<IIII", BOOT, self.runs & 0xFFFFFFFF, self.bad & 0xFFFFFFFF, len(MANIFEST))
            return self.reply(kind, seq, OK, MTU | WINDOW << 16, counts)
        if kind == RUN:
            return self.run(seq, believed, region, offset, data)
        status, answer = OK, b""
        if kind == WRITE:
            status = self.write(believed, region, offset, data)
        elif kind == READ:
            telemetry = json.dumps({"ok": 1, "runs": self.runs, "bad_frames": self.bad}).encode()
            regions = {0: MANIFEST, 1: self.inputs, 2: bytes(memory), 3: self.outputs, 4: telemetry}
            if len(data) != 2 or region & 15 not in regions:
                status = LENGTH if len(data) != 2 else ADDRESS
            else:
                count = min(int.from_bytes(data, "little"), MTU - 12)
                answer = regions[region & 15][offset : offset + count]
        elif kind == DO and region & 15 == 1:
            self.lose()
        elif kind != PING:
            status = ADDRESS if kind == DO else TYPE
        return self.reply(kind, seq, status, offset, answer)

    def write(self, believed, region, offset, data):
        """Bytes of parameters; the epoch they make, and (high half of region) the one they follow."""
        boot, epoch, before = believed >> 4, believed & 15, region >> 4
        if region & 15 != 2 or offset + len(data) > len(memory):
            return ADDRESS
        if boot != BOOT & 15 or epoch == 0 or self.epoch not in (before, epoch):
            return STALE
        if offset % 4 or len(data) % 4:
            return LENGTH
        values = np.frombuffer(data, "<f4")
        if not (np.isfinite(values).all() and (values >= LOW).all() and (values <= HIGH).all()):
            return VALUE
        memory[offset : offset + len(data)] = data
        self.epoch, self.changed = epoch, True
        return OK

    def run(self, seq, believed, region, run_id, data):
        if run_id in self.answers:
            return self.answers[run_id]
        if len(self.answers) >= WINDOW and run_id < min(self.answers):
            return None  # answered long ago
        rows, rest = divmod(len(data), IN)
        if self.epoch == 0 or believed != (BOOT & 15) << 4 | self.epoch:
            return self.reply(RUN, seq, STALE, run_id)
        if region != 0:  # the first of wire.segments, one repeat
            return self.reply(RUN, seq, ADDRESS, run_id)
        if rest or not rows or rows > SPEC["wire"]["rows"]:
            return self.reply(RUN, seq, LENGTH, run_id)
        self.runs += 1
        status, answer = self.compute(np.frombuffer(data, "<f4").reshape(rows, -1))
        self.inputs, self.outputs = data, answer if status == OK else b""
        if len(self.answers) >= WINDOW:
            del self.answers[min(self.answers)]
        self.answers[run_id] = self.reply(RUN, seq, status, run_id, answer)
        return self.answers[run_id]

    def compute(self, x):
        low, high = (SPEC["boundaries"][0].get(end, default) for end, default in (("low", -np.inf), ("high", np.inf)))
        if not (np.isfinite(x).all() and (x >= low - 1e-6).all() and (x <= high + 1e-6).all()):
            return VALUE, f"inputs outside {low:g}..{high:g}, or not finite".encode()
        try:
            weight = np.frombuffer(bytes(memory), "<f4").reshape(SHAPE)
            if self.changed:
                program(weight)
                self.changed = False
            y = np.ascontiguousarray(respond(x, weight), "<f4")
            if y.shape != (len(x), OUT // 4):
                raise ValueError(f"respond() gave {y.shape} for {len(x)} rows")
            return OK, y.tobytes()
        except Exception as error:  # noqa: BLE001 - whatever your code raises is told to the host
            return FAULT, f"{type(error).__name__}: {error}".encode()[: MTU - 12]

    def lose(self):
        """Park; what was written counts as lost."""
        park()
        self.epoch = 0

    def reply(self, kind, seq, status, offset, data=b""):
        return struct.pack("<BBBBI", 0x10 | 8 | kind, seq, status, (BOOT & 15) << 4 | self.epoch, offset) + data


def cobs(data):
    """Bytes without a zero: each block says how far the next zero is."""
    out = bytearray()
    for block in data.split(b"\0"):
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out += bytes([len(block) + 1]) + block
    return bytes(out)


def uncobs(data):
    """The inverse; None for what is no such code."""
    out, place = bytearray(), 0
    while place < len(data):
        code = data[place]
        block = data[place + 1 : place + code]
        if code == 0 or len(block) != code - 1:
            return None
        out += block
        place += code
        if code < 255 and place < len(data):
            out += b"\0"
    return bytes(out)


def listen(device, port, begun):
    """Take what the port has, answer every whole frame; what is left of one that has begun. None: the host hung up."""
    chunk = port.recv(65536)
    if not chunk:
        return None
    *frames, begun = (begun + chunk).split(b"\0")
    for frame in filter(None, frames):
        body = uncobs(frame) if len(frame) <= MTU + 3 else None
        if body is None or not 12 <= len(body) <= MTU or zlib.crc32(body[:-4]).to_bytes(4, "little") != body[-4:]:
            device.bad += 1
        elif (reply := device.receive(body[:-4])) is not None:
            port.sendall(b"\0" + cobs(reply + zlib.crc32(reply).to_bytes(4, "little")) + b"\0")
    return begun[-(MTU + 4) :]


def main(host, number):
    device, server = Device(), socket.create_server((host, number))
    print(f"serving {SPEC['identity']} at {host}:{server.getsockname()[1]}", flush=True)
    port, begun, heard = None, b"", time.monotonic()
    try:
        while True:
            ready = select.select([server, port] if port else [server], [], [], 0.2)[0]  # slices: Windows defers Ctrl-C
            if server in ready:  # a host that comes anew replaces one that is gone
                port, begun = server.accept()[0], b""
                port.settimeout(5.0), port.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            elif port in ready:
                heard = time.monotonic()
                try:
                    begun = listen(device, port, begun)
                except OSError:
                    begun = None
                port = port if begun is not None else None
            if device.epoch and time.monotonic() - heard > PARK_AFTER_S:
                print(f"parked: no host for {PARK_AFTER_S:g} s", flush=True)
                device.lose()
    finally:
        park()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 7000)
