"""A whole device behind ZeroMQ in one file: copy it, put your y = f(x) in the marked place, run it, train on it.

    python zmq_device.py tcp://127.0.0.1:5555           then open zmq+tcp://127.0.0.1:5555

Needs pyzmq and numpy, nothing else. It speaks HZO/1 as docs/wire-zeromq.md describes it, for one host at a time, and
binds without keys: keep it on this machine (127.0.0.1) or reach it through `ssh -L`.
"""

import json
import struct
import sys
import time

import numpy as np
import zmq

# ---- yours: what the device is, and what it does -----------------------------------------------

SPEC = {  # widths, parameters and ranges in your units; a range that is left out has no end
    "identity": "reference-zmq",
    "stages": [{"name": "layer", "in_width": 3, "out_width": 2,
                "parameters": [{"name": "weight", "shape": [2, 3], "low": -2.0, "high": 2.0}]}],
    "boundaries": [{"low": -1.0, "high": 1.0}, {}],
    "max_batch": 1024, "longest_call_s": 2.0, "dtype": "float32",
}  # fmt: skip
PARK_AFTER_S = 30.0  # the host was silent for so long: safe state
parameters = {"weight": np.zeros((2, 3), np.float32)}


def respond(x):
    """y [rows, 2] of x [rows, 3]: drive your inputs, read your outputs."""
    return np.tanh(x @ parameters["weight"].T)


def program(values):
    """Set the hardware to {name: array}, then wait until it has settled."""
    parameters.update(values)


def park():
    """The safe state: laser off, heaters cold. The host writes all parameters again before it goes on."""
    parameters["weight"] = np.zeros((2, 3), np.float32)


# ---- HZO/1: to be copied as it is -----------------------------------------------

HDR, ARR = struct.Struct("<4sBBHQQII"), struct.Struct("<BBHff5I")
HELLO, WRITE, RUN, READ, PING, BYE, DO = range(1, 8)
READY, ACK, RESULT, SNAPSHOT, PONG, ERROR = 129, 130, 131, 132, 133, 192
CODES = {1: "<f4", 2: "<f8", 3: "<i1", 4: "<i2", 5: "<i4", 6: "<u1", 7: "<u2", 8: "<u8"}
CREDIT, STAGE, BOOT = 16, SPEC["stages"][0], f"{time.time_ns():016x}"


class Refused(Exception):
    """args: code, text"""


class Device:
    def __init__(self):
        self.session, self.run_id, self.ping_s, self.heard, self.version, self.floor = None, "", 1.0, 0.0, 0, 0
        self.parked = False
        self.kept = {}  # request number -> reply: a repeated request is answered, not run again

    def receive(self, frames):
        """The reply to one message, or None. The number of frames and their sizes are checked before anything is made
        of them."""
        if len(frames) < 3 or len(frames[0]) != HDR.size or frames[0][:3] != b"HZO":
            return None
        magic, kind, _, count, session, seq, version, _ = HDR.unpack(frames[0])
        if magic[3] != 1:
            return self.error(0, 0, "VERSION", f"the host speaks HZO/{magic[3]}, this device HZO/1")
        try:
            if len(frames) != 3 + count or len(frames[2]) != 32 * count:
                return None
            meta = json.loads(bytes(frames[1]) or b"{}").items()
            arrays = [unpacked(frames[2][32 * i :], frames[3 + i]) for i in range(count)]
        except (ValueError, KeyError, AttributeError):
            return None
        if kind == HELLO:
            return self.greet(session, seq, dict(meta))
        if session != self.session:
            return self.error(session, seq, "SESSION", "this device does not know you: say HELLO")
        self.heard = time.monotonic()
        if kind == PING:
            return self.message(PONG, seq)
        if kind == BYE:
            self.lose()
            self.session = None
        if kind == BYE or seq in self.kept or seq <= self.floor:
            return self.kept.get(seq)  # None: it had its answer long ago
        try:
            reply = self.act(kind, seq, version, dict(meta), arrays)
        except Refused as refused:
            reply = self.error(session, seq, *refused.args)
            if refused.args[0] == "STALE":
                return reply
        except Exception as error:  # noqa: BLE001 - whatever your code raises is told to the host
            reply = self.error(session, seq, "DEVICE", f"{type(error).__name__}: {error}")
        self.kept[seq] = reply
        if len(self.kept) > 2 * CREDIT:
            self.floor = min(self.kept)
            del self.kept[self.floor]
        return reply

    def greet(self, session, seq, meta):
        known, run_id, now = session == self.session, meta.get("run_id", ""), time.monotonic()
        mine = known or self.session is None or meta.get("takeover") or (run_id and run_id == self.run_id)
        if not mine and now - self.heard < 3 * self.ping_s:
            return self.error(session, seq, "BUSY", f"in use by run {self.run_id!r}: wait, or take over")
        if not known:
            self.session, self.run_id, self.version, self.floor, self.kept = session, run_id, 0, seq, {}
        self.heard, self.ping_s = now, float(meta.get("ping_s", 1.0))
        ready = {"protocol": [1, 0], "boot": BOOT, "features": ["park"], "capabilities": SPEC, "resumed": known}
        return self.message(READY, seq, ready | {"longest_call_s": SPEC["longest_call_s"]})

    def act(self, kind, seq, version, meta, arrays):
        late = version != self.version or self.parked
        if (kind == RUN and late) or (
            kind == WRITE and meta.get("base", 0) not in (0, self.version)
        ):  # 0: writes everything
            raise Refused("STALE", f"the device holds parameter version {self.version}: write everything again")
        if kind == RUN:
            return self.run(seq, meta, arrays)
        if kind == WRITE:
            named, specs = dict(zip(meta["names"], arrays, strict=True)), {p["name"]: p for p in STAGE["parameters"]}
            if set(named) != set(specs) or any(stage != 0 for stage, _ in arrays):
                raise Refused("INPUT", f"a write of stage 0 names {sorted(specs)}, not {sorted(named)}")
            program({n: checked(v, specs[n]["shape"], specs[n], f"parameter {n}") for n, (_, v) in named.items()})
            self.version, self.parked = version, False
            return self.message(ACK, seq)
        if kind == DO and meta.get("do") == "park":
            self.lose()
            return self.message(ACK, seq)
        what = meta.get("what") if kind == READ else None
        if what == "parameters" and meta.get("stage", 0) == 0:
            return self.message(SNAPSHOT, seq, {"names": list(parameters)}, [(0, v) for v in parameters.values()])
        if what in ("snapshot", "health"):
            return self.message(SNAPSHOT, seq, {"ok": True, "detail": "", "identity": SPEC["identity"]})
        raise Refused("INPUT", f"message type {kind} with {meta} asks for nothing this device has")

    def run(self, seq, meta, arrays):
        if (meta.get("lo", 0), meta.get("hi", 1)) != (0, 1) or meta.get("taps") or meta.get("repeats", 1) != 1:
            raise Refused("INPUT", f"this device has stage 0 only, no taps and no repeats, and was asked {meta}")
        if len(arrays) != 1 or arrays[0][1].ndim != 2 or not 0 < len(arrays[0][1]) <= SPEC["max_batch"]:
            raise Refused("INPUT", f"a run needs one array of 1 to {SPEC['max_batch']} rows")
        x = checked(arrays[0][1], [len(arrays[0][1]), STAGE["in_width"]], SPEC["boundaries"][0], "inputs")
        y = np.asarray(respond(x), SPEC["dtype"])
        if y.shape != (len(x), STAGE["out_width"]):
            raise Refused("REPLY", f"respond() gave {y.shape} for {len(x)} rows")
        return self.message(RESULT, seq, None, [(1, y)], flags=int(not np.isfinite(y).all()))

    def lose(self):
        """Park; what was written counts as lost."""
        park()
        self.version, self.parked = 0, True

    def message(self, kind, seq, meta=None, arrays=(), flags=0, session=None):
        code = {np.dtype(v): k for k, v in CODES.items()}
        desc = [ARR.pack(code[a.dtype], a.ndim, r, 1.0, 0.0, *(a.shape + (0,) * (5 - a.ndim))) for r, a in arrays]
        session = self.session if session is None else session
        head = HDR.pack(b"HZO\x01", kind, flags, len(arrays), session, seq, self.version, CREDIT)
        return [head, json.dumps(meta).encode() if meta else b"", b"".join(desc), *(a.tobytes() for _, a in arrays)]

    def error(self, session, seq, code, text):
        return self.message(ERROR, seq, {"code": code, "text": text[:2000]}, session=session)


def unpacked(desc, frame):
    """(role, array) of a frame; ValueError where its size is not what is described."""
    code, ndim, role, scale, zero, *dims = ARR.unpack_from(desc)
    values = np.frombuffer(frame, CODES[code]).reshape(dims[:ndim])
    return role, values if (scale, zero) == (1.0, 0.0) else values * np.float32(scale) + np.float32(zero)


def checked(values, shape, limits, what):
    """`values` as this device computes with them, if they are what it takes."""
    values, low, high = np.array(values, SPEC["dtype"]), limits.get("low", -np.inf), limits.get("high", np.inf)
    if values.shape != tuple(shape):
        raise Refused("INPUT", f"{what}: shape {list(values.shape)}, needs {list(shape)}")
    if not (np.isfinite(values).all() and (values >= low - 1e-6).all() and (values <= high + 1e-6).all()):
        raise Refused("INPUT", f"{what}: values outside {low:g}..{high:g}, or not finite")
    return values


def main(url):
    device, port = Device(), zmq.Context().socket(zmq.ROUTER)
    for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 0), (zmq.SNDHWM, 0), (zmq.MAXMSGSIZE, 1 << 28)):
        port.setsockopt(option, value)
    port.bind(url)
    print(f"serving {SPEC['identity']} at {port.getsockopt_string(zmq.LAST_ENDPOINT)}", flush=True)
    try:
        while True:
            if port.poll(200):  # in slices, so that Ctrl-C is heard on Windows too
                peer, *frames = port.recv_multipart()
                if (reply := device.receive(frames)) is not None:
                    port.send_multipart([peer, *reply])
            if device.version and time.monotonic() - device.heard > PARK_AFTER_S:
                print(f"parked: no host for {PARK_AFTER_S:g} s", flush=True)
                device.lose()
    finally:
        park()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555")
