"""The vectors in docs/ are what this code sends and understands; run as a module, this writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Query, Segment
from hzo_hil.devices.errors import WireError
from hzo_hil.devices.manifest import to_json
from hzo_hil.devices.wire import messages as m
from hzo_hil.devices.wire.hzo1_host import Hzo1Host
from hzo_hil.devices.wire.hzo1_served import Hzo1Served, Job
from tests.wire.hzo1_parts import Counting

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "vectors" / "hzo1"


def session() -> list[dict[str, Any]]:
    """A whole session, every message of it: who sends it, what it is, its frames."""
    host = Hzo1Host(0x0123456789ABCDEF)
    served = Hzo1Served(to_json(Counting().capabilities), 0xB007, 4, ("where", "repeats", "park"), 0.2)
    x = np.array([[1.0, 0.5, 0.25, 0.125]], np.float32)
    w = np.arange(16, dtype=np.float32).reshape(4, 4)
    log: list[dict[str, Any]] = []

    def said(who: str, what: str, frames: Any) -> list[bytes]:
        plain = [f if type(f) is bytes else f.tobytes() for f in frames]
        log.append({"from": who, "what": what, "frames": [f.hex() for f in plain]})
        return plain

    def exchange(what: str, request: Any, reply: Any = None) -> None:
        answer: Any = served.receive(b"host", said("host", what, request.frames), 0.0)
        if isinstance(answer, Job):
            answer = reply(answer)
        if answer is not None:
            host.receive(said("device", f"answer to: {what}", answer))

    def result(job: Job) -> Any:
        meta = b'{"seconds":0.0125,"monitors":{"power":0.5}}'
        return served.answered(job, [job.message.arrays[0] @ w], [1], meta)

    exchange("a greeting", host.hello(False, "run-1", 1.0))
    exchange("a write of a whole stage", host.write(0, 0, {"w": w})[0], served.answered)
    run = host.run(1, Query(Segment(0, 1), x))[0]
    exchange("a query", run, result)
    exchange("the same query again, answered from what was kept", run)
    exchange("a query, 3 repeats, with noise keys",
             host.run(2, Query(Segment(0, 1), x, (), 3, np.array([2**63 + 1], np.uint64)))[0], result)  # fmt: skip
    exchange("a write of two values", host.write(3, 0, {"w": w}, {"w": np.array([1, 5])})[0], served.answered)
    stale = host.run(4, Query(Segment(0, 1), x))[0]
    served.lost()
    exchange("a query to a device that lost its parameters", stale, result)
    exchange("a read of parameters", host.read(5, "parameters")[0],
             lambda job: served.answered(job, [w], [0], b'{"names":["w"]}'))  # fmt: skip
    exchange("a question for its health", host.read(6, "health")[0],
             lambda job: served.answered(job, meta=b'{"ok":true,"detail":""}'))  # fmt: skip
    exchange("parking", host.do(7, "park")[0], served.answered)
    exchange("a ping", host.ping())
    exchange("a farewell", host.bye())
    return log


def bad() -> list[dict[str, Any]]:
    """Messages to be dropped, and why."""
    head, x = m.HDR.pack(m.MAGIC, m.RUN, 0, 1, 1, 1, 0, 0), bytes(16)
    desc = m.ARR.pack(1, 2, 0, 1.0, 0.0, 1, 4, 0, 0, 0)
    cases = [
        ("two frames", [head, b""]),
        ("a short header", [head[:-1], b"", desc, x]),
        ("another protocol", [b"ABCD" + head[4:], b"", desc, x]),
        ("an unknown type", [head[:4] + b"\x50" + head[5:], b"", desc, x]),
        ("one array declared, none sent", [head, b"", desc]),
        ("a short array", [head, b"", desc, x[:-1]]),
        ("dtype 9", [head, b"", b"\x09" + desc[1:], x]),
        ("six dimensions", [head, b"", desc[:1] + b"\x06" + desc[2:], x]),
        ("a size beyond every limit", [head, b"", desc[:12] + b"\xff" * 20, x]),
        ("a scale that is NaN", [head, b"", desc[:4] + b"\x00\x00\xc0\x7f" + desc[8:], x]),
    ]
    return [{"why": why, "frames": [f.hex() for f in frames]} for why, frames in cases]


def stored(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_this_code_says_what_the_vectors_say() -> None:
    assert stored("messages.json") == session()


def test_the_vectors_are_understood_and_written_back_byte_for_byte() -> None:
    kinds = set()
    for entry in stored("messages.json"):
        frames = [bytes.fromhex(f) for f in entry["frames"]]
        message = m.decode(frames)
        kinds.add(message.kind)
        again = m.encode(
            message.kind,
            message.session,
            message.seq,
            meta=bytes(message.meta),
            arrays=message.arrays,
            roles=message.roles,
            version=message.version,
            credit=message.credit,
            flags=message.flags,
        )
        assert [f if type(f) is bytes else f.tobytes() for f in again] == frames
    assert kinds == m.KINDS


@pytest.mark.parametrize("entry", bad(), ids=lambda e: e["why"])
def test_bad_vectors_are_refused(entry: dict[str, Any]) -> None:
    assert entry in stored("bad.json")
    with pytest.raises(WireError):
        m.decode([bytes.fromhex(f) for f in entry["frames"]])


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in (("messages.json", session()), ("bad.json", bad())):
        (FOLDER / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
