"""A whole device behind ZeroMQ in one file: copy it, put your y = f(x) in the marked place, run it, train.

    python zmq_device.py tcp://127.0.0.1:5555           then open zmq+tcp://127.0.0.1:5555

Needs pyzmq and numpy, nothing else. It speaks HZO/1 (docs/wire-zeromq.md) as far as one stage with one
parameter array needs it, with one host at a time. It has no keys: bind 127.0.0.1, reach it through `ssh -L`.
"""

import atexit
import json
import struct
import sys
import time

import numpy as np
import zmq

# ---- yours: what the device is, and what it does -----------------------------------------------

SPEC = {  # widths, shape and ranges, in your units
    "identity": "reference-zmq",
    "stages": [{"name": "layer", "in_width": 3, "out_width": 2,
                "parameters": [{"name": "weight", "shape": [2, 3], "low": -2.0, "high": 2.0}]}],
    "boundaries": [{"low": -1.0, "high": 1.0}, {}],
    "max_batch": 1024, "longest_call_s": 2.0,
}  # fmt: skip
PARK_AFTER_S = 30.0  # the host was silent for so long: safe state
parameter = np.zeros((2, 3))  # several: make one array of them, and take it apart in program()


def respond(x):
    """y [rows, 2] of x [rows, 3]: drive your inputs, read your outputs."""
    return np.tanh(x @ parameter.T)


def program(values):
    """Set the hardware to the parameter's new values, then wait until it has settled."""
    parameter[:] = values


def park():
    """The safe state: laser off, heaters cold. The host writes the parameter again before it goes on."""
    parameter[:] = 0.0


# ---- HZO/1: to be copied as it is -----------------------------------------------

HEADER = struct.Struct("<4sBBHQQII")  # magic, kind, flags, arrays, session, seq, version, credit
ARRAY = struct.Struct("<BBHff5I")  # type (1: float32), number of dimensions, role, scale, zero, dimensions
HELLO, WRITE, RUN, READ, PING, BYE, DO = range(1, 8)
READY, ACK, RESULT, SNAPSHOT, PONG, ERROR = 129, 130, 131, 132, 133, 192
CREDIT = 16  # requests that the host may have on their way
STAGE, PARAMETER = SPEC["stages"][0], SPEC["stages"][0]["parameters"][0]
ASKED = {"lo": 0, "hi": 1, "taps": [], "repeats": 1, "stage": 0, "names": [PARAMETER["name"]], "do": "park"}
WELCOME = {"protocol": [1, 0], "boot": f"{time.time_ns():016x}", "features": ["park"], "capabilities": SPEC}


class Refused(Exception):
    """Nothing was done. args: the code and the text of the ERROR to be sent."""


def refuse(wrong, code, text):
    if wrong:
        raise Refused(code, text)


class Device:
    def __init__(self):
        self.session, self.heard, self.ping_s = None, 0.0, 1.0  # of the one host
        self.version = 0  # of the parameter; 0: parked
        self.kept = {}  # seq -> answer: a repeated request is answered, not done again

    def receive(self, frames):
        """The frames of the reply; None where this is no message, wants no reply, or had it long ago."""
        try:
            head, meta, description, *arrays = frames
            magic, kind, _, count, session, seq, version, _ = HEADER.unpack(head)
            meta = dict(json.loads(meta or b"{}"))
            sized = (len(arrays), len(description)) == (count, 32 * count)
            if magic[:3] != b"HZO" or not sized or not HELLO <= kind <= DO:
                return None
            refuse(magic[3] != 1, "VERSION", f"the host speaks HZO/{magic[3]}, this device HZO/1")
            answer = self.answer(kind, session, seq, version, meta, description, arrays)
        except Refused as refused:
            answer = ERROR, dict(zip(("code", "text"), refused.args, strict=True))
        except (ValueError, TypeError, OverflowError, RecursionError, struct.error):
            return None
        return answer and self.message(session, seq, *answer)

    def greet(self, session, meta):
        resumed, silent_s = session == self.session, time.monotonic() - self.heard
        free = resumed or self.session is None or silent_s > 3 * self.ping_s or meta.get("takeover")
        refuse(not free, "BUSY", f"in use by another host, heard {silent_s:.1f} s ago: wait, or take over")
        if not resumed:
            self.park()
        self.session, self.heard, self.ping_s = session, time.monotonic(), float(meta.get("ping_s", 1.0))
        return READY, WELCOME | {"resumed": resumed, "longest_call_s": SPEC["longest_call_s"]}

    def answer(self, kind, session, seq, version, meta, description, arrays):
        """Kind, META and array of the answer, or None."""
        if kind == HELLO:
            return self.greet(session, meta)
        refuse(session != self.session, "SESSION", "this device does not know you: say HELLO")
        self.heard = time.monotonic()
        if kind == PING:
            return (PONG,)
        if kind == BYE:
            self.session = None
            return self.park()
        if seq in self.kept or (len(self.kept) == 2 * CREDIT and seq < min(self.kept)):
            return self.kept.get(seq)
        needed = version if kind == RUN else meta.get("base") or self.version  # base 0 fits any
        refuse(needed != self.version, "STALE", f"the device holds version {self.version} of its parameter")
        other = any(meta.get(key, value) != value for key, value in ASKED.items())
        refuse(other, "INPUT", f"this device has one stage, no taps and no repeats; asked: {meta}")
        values = taken(kind, description, arrays) if kind in (RUN, WRITE) else None
        try:
            answer = self.do(kind, version, values)
        except Exception as problem:  # noqa: BLE001 - whatever your code raises is told to the host
            answer = ERROR, {"code": "DEVICE", "text": f"{type(problem).__name__}: {problem}"}
            if kind == WRITE:
                self.park()  # who knows what it holds
        self.kept[seq] = answer
        if len(self.kept) > 2 * CREDIT:
            del self.kept[min(self.kept)]
        return answer

    def do(self, kind, version, values):
        if kind == READ:  # one answer to whatever may be asked: parameters, snapshot, health
            return SNAPSHOT, {"ok": True, "detail": "", "names": ASKED["names"]}, np.array(parameter, "<f4")
        if kind == RUN:
            y = np.array(respond(values), "<f4")
            if y.shape != (len(values), STAGE["out_width"]):
                raise ValueError(f"respond() gave {y.shape} for {len(values)} rows")
            return RESULT, None, y
        if kind == WRITE:
            program(values)
            self.version = version
        else:
            self.park()
        return (ACK,)

    def park(self):
        """What was written, and asked, counts as lost."""
        self.version, self.kept = 0, {}
        park()

    def message(self, session, seq, kind, meta=None, *arrays):
        infinite = not all(np.isfinite(values).all() for values in arrays)
        head = HEADER.pack(b"HZO\x01", kind, infinite, len(arrays), session, seq, self.version, CREDIT)
        description = b"".join(described(values.shape, role=kind == RESULT) for values in arrays)
        return [head, json.dumps(meta or {}).encode(), description, *(values.tobytes() for values in arrays)]


def described(shape, role=0):
    return ARRAY.pack(1, len(shape), role, 1.0, 0.0, *shape, *[0] * (5 - len(shape)))


def taken(kind, description, arrays):
    """The one array that came, if it is what this device takes: DESC must be the very bytes expected."""
    rows = min(sum(map(len, arrays)) // (4 * STAGE["in_width"]), SPEC["max_batch"])
    spec = PARAMETER if kind == WRITE else {"shape": [rows, STAGE["in_width"]], **SPEC["boundaries"][0]}
    refuse(description != described(spec["shape"]), "INPUT", f"expected one float32 array {spec['shape']}")
    values = np.frombuffer(arrays[0], "<f4").reshape(spec["shape"])
    inside = (values >= spec["low"] - 1e-6) & (values <= spec["high"] + 1e-6)
    refuse(not inside.all(), "INPUT", f"values outside {spec['low']:g}..{spec['high']:g}, or not finite")
    return values.copy()


def main(url):
    atexit.register(park)  # also after Ctrl-C
    device = Device()
    port = zmq.Context().socket(zmq.ROUTER)
    port.linger = 0
    port.maxmsgsize = 1 << 28
    port.bind(url)
    print(f"serving {SPEC['identity']} at {port.last_endpoint.decode()}", flush=True)
    while True:
        if port.poll(200):  # in slices, so that Ctrl-C is heard on Windows too
            peer, *frames = port.recv_multipart()
            if reply := device.receive(frames):
                port.send_multipart([peer, *reply])
        if device.version and time.monotonic() - device.heard > PARK_AFTER_S:
            print(f"parked: no host for {PARK_AFTER_S:g} s", flush=True)
            device.park()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555")
