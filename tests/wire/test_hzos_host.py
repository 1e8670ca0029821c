"""The host's side of HZO-S/1 against the served one: jobs in parts, epochs, restarts, and refusals in words."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Query, Segment
from hzo_hil.devices.errors import (
    BadInput,
    BadReply,
    CapabilityError,
    DeviceError,
    DeviceRebooted,
    WireError,
)
from hzo_hil.devices.wire import hzos_frames as f
from hzo_hil.devices.wire.hzos_host import HzosHost, _next
from hzo_hil.devices.wire.hzos_layout import layout_from
from hzo_hil.devices.wire.hzos_served import HzosServed
from tests.wire.hzos_parts import TOP, Bench, MatrixDevice, matrix_device

FIRST = Segment(0, 1)


def bench(driver: MatrixDevice | None = None, **options: Any) -> Bench:
    found = Bench(HzosServed(driver or matrix_device(3, 2), **({"mtu": 64, "window": 4, "encoding": "f4"} | options)))
    found.greet()
    return found


def rows(count: int, width: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def weight(n_out: int = 2, n_in: int = 3, seed: int = 1) -> dict[str, Any]:
    return {"weight": np.random.default_rng(seed).normal(size=(n_out, n_in)).astype(np.float32)}


def test_the_greeting_brings_the_device_s_own_description() -> None:
    b = bench()
    assert b.host.capabilities.identity == "matrix"
    assert b.host.credit == 4
    assert b.host.capabilities.repeats and not b.host.capabilities.taps


def test_numbers_as_f4_arrive_bit_for_bit() -> None:
    driver = matrix_device(3, 2)
    b = bench(driver)
    held = weight()
    assert b.job(b.host.write(1, 0, held)) is None
    assert driver.weights[0].tobytes() == held["weight"].tobytes()
    reply = b.job(b.host.run(2, Query(FIRST, rows(50))))
    assert reply.outputs.tobytes() == driver.run(FIRST, rows(50)).outputs.tobytes() or np.allclose(
        reply.outputs, driver.run(FIRST, rows(50)).outputs, atol=1e-6
    )
    assert b.job(b.host.read(3, "parameters", 0))["weight"].tobytes() == held["weight"].tobytes()


def test_a_query_of_many_rows_takes_several_runs_and_one_answer() -> None:
    b = bench()
    requests = b.host.run(1, Query(FIRST, rows(10)))
    assert len(requests) == 3  # 52 bytes hold 4 rows of 3 floats
    assert [r.seq for r in requests] == list(range(requests[0].seq, requests[0].seq + 3))
    assert b.job(requests).outputs.shape == (10, 2)


def test_repeats_of_any_number_are_averages_of_powers_of_two() -> None:
    b = bench()
    b.job(b.host.write(1, 0, weight()))
    assert len(b.host.run(2, Query(FIRST, rows(1), repeats=16))) == 1
    requests = b.host.run(3, Query(FIRST, rows(2), repeats=11))
    assert sorted(1 << (r.frames[0][3] >> 4) for r in requests) == [1, 2, 8]
    single = b.job(b.host.run(4, Query(FIRST, rows(2))))
    assert b.job(requests).outputs == pytest.approx(single.outputs, abs=1e-6)


def test_a_write_of_single_values_sends_only_those() -> None:
    driver = matrix_device(8, 8)
    b = bench(driver)
    held = weight(8, 8)
    b.job(b.host.write(1, 0, held))
    held["weight"].flat[[3, 60]] = 9
    requests = b.host.write(2, 0, held, where={"weight": np.array([3, 60])})
    assert [len(r.frames[0]) - 8 for r in requests] == [4, 4, 12]  # two values, and the check of them all
    b.job(requests)
    assert driver.writes[-1][1]["weight"].tolist() == [3, 60]
    assert np.array_equal(driver.weights[0], held["weight"])


def test_health_and_snapshot() -> None:
    b = bench()
    assert b.job(b.host.read(1, "health")) == {"ok": True, "detail": ""}
    assert b.job(b.host.read(2, "snapshot"))["temperature"] == 21.5


def test_a_parked_device_runs_nothing_before_it_is_written_again() -> None:
    driver = matrix_device(3, 2)
    b = bench(driver)
    b.job(b.host.write(1, 0, weight()))
    b.job(b.host.do(2, "park"))
    assert driver.parked == 1
    ran = sum(driver.ran.values())
    with pytest.raises(DeviceRebooted, match="no longer holds the parameters.*refused 1 inputs through stages 1..1"):
        b.job(b.host.run(3, Query(FIRST, rows(1))))
    assert sum(driver.ran.values()) == ran
    b.job(b.host.write(4, 0, weight()))
    assert b.job(b.host.run(5, Query(FIRST, rows(1)))).outputs.shape == (1, 2)


def test_refusals_of_queries_from_before_the_rewrite_disturb_nothing_after_it() -> None:
    """A query of many rows is several frames; all were refused when the first refusal is acted on."""
    b = bench()
    assert b.job(b.host.write(1, 0, weight())) is None
    b.served.park()
    sent = b.host.run(2, Query(FIRST, rows(50)))
    refusals = [reply for r in sent if (reply := b.served.receive(bytes(r.frames[0]))) is not None]
    assert len(refusals) > 1
    first = b.host.receive([refusals[0]])
    assert isinstance(first[0].result, DeviceRebooted)
    write = b.host.write(3, 0, weight())
    for late in refusals[1:]:
        b.host.receive([late])
    assert b.job(write) is None
    assert b.job(b.host.run(4, Query(FIRST, rows(2)))).outputs.shape == (2, 2)


@pytest.mark.parametrize("boot", [0x17, 0x18])
def test_a_write_after_an_unnoticed_restart_is_refused(boot: int) -> None:
    """Also where the boot nibble is the same: else stage 0's power-on values would count as written."""
    driver = matrix_device(3, 2, 2)
    b = bench(driver, boot=0x07)
    b.job(b.host.write(1, 0, weight()))
    b.served = HzosServed(driver, mtu=64, window=4, boot=boot)
    with pytest.raises(DeviceRebooted):
        b.job(b.host.write(2, 1, weight(2, 2)))
    b.job(b.host.write(3, 0, weight()))
    assert b.job(b.host.run(4, Query(FIRST, rows(1)))).outputs.shape == (1, 2)


def test_a_host_that_wrote_nothing_is_answered_again_after_a_restart() -> None:
    driver = matrix_device(3, 2)
    b = bench(driver, boot=7)
    b.job(b.host.run(1, Query(FIRST, rows(1))))
    b.served = HzosServed(driver, mtu=64, window=4, boot=7)  # not even the boot id tells
    with pytest.raises(DeviceRebooted):
        b.job(b.host.run(2, Query(FIRST, rows(1))))
    assert b.job(b.host.run(3, Query(FIRST, rows(1)))).outputs.shape == (1, 2)


def test_the_same_session_is_resumed_and_answers_from_memory() -> None:
    driver = matrix_device(3, 2)
    b = bench(driver)
    b.job(b.host.write(1, 0, weight()))
    (request,) = b.host.run(2, Query(FIRST, rows(1)))
    b.served.receive(request.frames[0])  # its answer is lost with the connection
    assert b.greet().resumed
    b.jobs([request])
    assert b.results[2].outputs.shape == (1, 2)
    assert list(driver.ran.values()) == [1]


def test_another_host_in_between_is_noticed() -> None:
    b = bench()
    b.job(b.host.write(1, 0, weight()))
    other = Bench(b.served, seed=9)
    other.greet()
    other.job(other.host.write(1, 0, weight(seed=5)))
    with pytest.raises(DeviceRebooted):
        b.job(b.host.run(2, Query(FIRST, rows(1))))


def test_epochs_count_1_to_15_and_are_never_one_the_device_may_have() -> None:
    assert [_next(e) for e in (0, 1, 14, 15)] == [1, 2, 15, 1]
    assert _next(3, 4) == 5
    assert _next(15, 1) == 2
    b = bench()
    seen = [b.job(b.host.write(i, 0, weight())) or b.served.epoch for i in range(40)]
    assert 0 not in seen
    assert all(x != y for x, y in zip(seen, seen[1:], strict=False))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            Query(FIRST, rows(2, 4)),
            r"matrix at test: inputs of shape \[2, 4\] for boundary 0, which takes \[batch, 3\]",
        ),
        (Query(FIRST, rows(0)), r"inputs of shape \[0, 3\]"),
        (Query(FIRST, np.full((1, 3), np.nan, np.float32)), "nan..nan cannot be sent as f4"),
        (Query(FIRST, rows(1).astype(complex)), "inputs at boundary 0: complex128 are no real numbers"),
        (Query(FIRST, np.array([["a", "b", "c"]])), "<U1 are no real numbers"),
        (Query(Segment(0, 2), rows(1)), "no segment from boundary 0 to 2.*it offers 0..1.*over zmq"),
        (Query(FIRST, rows(1), taps=(1,)), "inner boundaries cannot be read"),
        (Query(FIRST, rows(1), repeats=0), "0 repeats: the device averages up to 65535"),
    ],
)
def test_queries_that_cannot_be_sent_are_refused_in_words(query: Query, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        bench().host.run(1, query)


def test_values_beyond_an_integer_s_range_are_refused_and_cut_answers_flagged() -> None:
    b = bench(matrix_device(2, 2), encoding="i2")
    with pytest.raises(BadInput, match=r"inputs at boundary 0: .* cannot be sent as i2 times 0.0039.*declared range"):
        b.host.run(1, Query(FIRST, np.full((1, 2), 200, np.float32)))
    with pytest.raises(BadInput, match="parameter w0.weight: .* cannot be sent as i2"):
        b.host.write(1, 0, {"weight": np.full((2, 2), 300.0)})
    b.job(b.host.write(2, 0, {"weight": np.full((2, 2), 100.0)}))
    reply = b.job(b.host.run(3, Query(FIRST, np.full((1, 2), 100, np.float32))))
    assert reply.outputs == pytest.approx(TOP)
    assert reply.monitors == {"line_saturated": 1.0}


def test_writes_that_name_wrong_parameters_or_shapes_are_refused() -> None:
    host = bench().host
    with pytest.raises(BadInput, match=r"stage 'w0' has parameters \['weight'\], a write names each"):
        host.write(1, 0, {"weights": np.zeros((2, 3))})
    with pytest.raises(BadInput, match=r"w0.weight has shape \[2, 3\], not \[3, 2\]"):
        host.write(1, 0, {"weight": np.zeros((3, 2))})
    with pytest.raises(BadInput, match=r"has stages 0..0, not 4"):
        host.write(1, 4, {})


@pytest.mark.parametrize(
    ("status", "data", "kind", "words"),
    [
        (f.VALUE, b"", BadInput, "refused 1 inputs through stages 1..1: a value is out of its range"),
        (f.FAULT, b"laser off", DeviceError, "failed at 1 inputs through stages 1..1: laser off"),
        (f.LENGTH, b"", CapabilityError, "does not know the length of.*manifest promises more"),
        (0x30, b"", BadReply, "status 48 and 0 bytes"),
        (f.OK, b"abc", BadReply, "answered 3 bytes to 1 inputs through stages 1..1, expected 8: 1 rows of 2 values"),
    ],
)
def test_a_device_s_refusals_have_their_own_errors(status: int, data: bytes, kind: type[Exception], words: str) -> None:
    b = bench()
    (request,) = b.host.run(1, Query(FIRST, rows(1)))
    sent = f.parse(request.frames[0])
    body = f.Frame(f.RUN | f.REPLY, sent.seq, status, sent.status, sent.offset, data).body()
    (event,) = b.host.receive([body])
    assert event.kind == "answer" and type(event.result) is kind
    with pytest.raises(kind, match=words):
        raise event.result


def test_answers_nobody_waits_for_are_no_jobs() -> None:
    b = bench()
    (request,) = b.host.run(1, Query(FIRST, rows(1)))
    b.host.drop([1])
    reply = b.served.receive(request.frames[0])
    (event,) = b.host.receive([reply])
    assert (event.kind, event.seq, event.job) == ("part", request.seq, -1)
    assert b.host.receive([reply])[0].kind == "pong"  # and a second time


def test_an_echoing_line_is_named() -> None:
    b = bench()
    with pytest.raises(WireError, match="sends our own requests back"):
        b.host.receive(b.host.ping().frames)
    with pytest.raises(WireError, match="one body, not 2"):
        b.host.receive([b"", b""])


def hello_reply(**fields: Any) -> bytes:
    made = {"mtu": 64, "window": 4, "length": 100, "version": 1, "status": 0} | fields
    counts = struct.pack("<IIII", 7, 0, 0, made["length"])
    offset = made["mtu"] | made["window"] << 16
    return f.Frame(9, 0, made["status"], 0x70, offset, counts, version=made["version"]).body()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 2, "status": 6}, "speaks version 2 of the serial protocol HZO-S, this host version 1"),
        ({"mtu": 9000}, "states frames of 9000 bytes"),
        ({"window": 0}, "a window of 0"),
        ({"length": 1 << 30}, "a manifest of 1073741824 bytes"),
        ({"length": 0}, "has no manifest"),
    ],
)
def test_a_device_that_cannot_be_spoken_to_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    host = HzosHost()
    host.place = "board 3"
    host.hello(False, "", 1.0)
    (event,) = host.receive([hello_reply(**fields)])
    assert event.kind == "refused"
    with pytest.raises(DeviceError if "version" in fields else CapabilityError, match="board 3 .*" + words):
        raise event.result


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wire": None}, 'lacks the object "wire"'),
        ({"segments": [[0, 2]]}, "wire, segments: 1 to 16 of 1 stages"),
        ({"segments": [[1, 1]]}, "wire: segment .1, 1. is empty"),
        ({"boundaries": []}, "0 encodings for 2 boundaries"),
        ({"boundaries": [{"dtype": "u9", "scale": 1}] * 2}, "wire: numbers on the line are i1, i2, f4, not 'u9'"),
        ({"boundaries": [{"dtype": "i2", "scale": 0}] * 2}, "scale of a number on the line is above 0"),
        ({"parameters": [[]]}, "one list a stage, with one place for each"),
        ({"parameters": [[{"address": -4, "dtype": "f4"}]]}, "w0.weight does not lie within 32 bits"),
        ({"rows": 0}, "a RUN carries at least one row"),
        ({"rows": "many"}, "wire: lacks or garbles"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(change: dict[str, Any], words: str) -> None:
    board = HzosServed(matrix_device(3, 2), mtu=64).board
    wire = json.loads(board.manifest)["wire"]
    wire = None if "wire" in change else wire | change
    with pytest.raises(CapabilityError, match=words):
        layout_from(wire, board.capabilities)


def test_overlapping_parameters_are_refused() -> None:
    board = HzosServed(matrix_device(3, 2, 2), mtu=64).board
    wire = json.loads(board.manifest)["wire"]
    wire["parameters"][1][0]["address"] = 4
    with pytest.raises(CapabilityError, match="w0.weight and w1.weight overlap at address 4"):
        layout_from(wire, board.capabilities)


@pytest.mark.parametrize("seed", range(6))
def test_through_a_noisy_line_every_answer_is_right_and_each_query_runs_once(seed: int) -> None:
    """1e-3 of bytes corrupted, lost or inserted, both ways, writes between the queries. Deterministic by its seed."""
    driver = matrix_device(3, 2)
    b = Bench(HzosServed(driver, mtu=64, window=4), rate=1e-2 if seed % 2 else 1e-3, seed=seed)
    b.greet()
    job = 0
    for turn in range(4):
        held = weight(seed=turn)
        job += 1
        assert b.job(b.host.write(job, 0, held)) is None
        batches = [rows(3, seed=1000 * turn + i) for i in range(60)]
        asked = {job + 1 + i: batch for i, batch in enumerate(batches)}
        b.jobs(*(b.host.run(number, Query(FIRST, batch)) for number, batch in asked.items()))
        job += len(batches)
        for number, batch in asked.items():
            assert np.allclose(b.results.pop(number).outputs, batch @ held["weight"].T, atol=1e-5)
    assert set(driver.ran.values()) == {1}
    assert len(driver.writes) == 4
    assert b.served.bad_frames > 0 and b.window.resent > 0
    assert b.greetings == 1
