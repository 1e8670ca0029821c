"""The device's side of HZO-S/1: the published dialogue byte for byte, and what its driver sees of it."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Health, Reply
from hzo_hil.devices.errors import BadInput, CapabilityError, ConfigError, DeviceRebooted
from hzo_hil.devices.wire import hzos_frames as f
from hzo_hil.devices.wire.hzos_served import HzosServed
from tests.wire.hzos_parts import MatrixDevice, matrix_device
from tests.wire.test_hzos_frames import vectors

SESSION = vectors("session")


def served(device: MatrixDevice | None = None, **options: Any) -> HzosServed:
    options = {"mtu": 64, "window": 2, "encoding": "i2", "boot": 0xC0FFEE07} | options
    return HzosServed(device or matrix_device(), **options)


def asked(
    device: HzosServed, kind: int, status: int = 0, region: int = 0, offset: int = 0, data: bytes = b""
) -> f.Frame:
    reply = device.receive(f.Frame(kind, 1, status, region, offset, data).body())
    assert reply is not None
    frame = f.parse(reply)
    assert (frame.type, frame.seq) == (kind | f.REPLY, 1)
    return frame


def i2(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}h", *values)


def apply(device: HzosServed, status: int, before: int) -> bytes | None:
    image = device.board.image(0, device.board.size)
    data = struct.pack("<III", 0, len(image), zlib.crc32(image))
    return device.receive(f.Frame(f.DO, 1, status, before << 4 | f.APPLY, 0, data).body())


def test_the_published_dialogue_byte_for_byte() -> None:
    device, splitter = served(), f.Splitter(64)
    assert device.board.manifest.decode() == SESSION["device"]["manifest"]
    for step in SESSION["steps"]:
        sent = b""
        for body in splitter.feed(bytes.fromhex(step["host"])):
            device.bad_frames = splitter.bad_frames
            reply = device.receive(body)
            sent += b"" if reply is None else f.on_line(reply)
        device.bad_frames = splitter.bad_frames
        assert sent.hex() == step["device"], step["note"]


def test_the_manifest_is_read_in_parts() -> None:
    device = served()
    length = struct.unpack("<IIII", asked(device, f.HELLO, offset=5).data)[3]
    parts = [asked(device, f.READ, offset=at, data=b"\x34\x00").data for at in range(0, length, 52)]
    manifest = json.loads(b"".join(parts))
    assert manifest["identity"] == "matrix"
    assert manifest["wire"]["boundaries"][0] == {"dtype": "i2", "scale": pytest.approx(1 / 256)}
    assert asked(device, f.READ, offset=length + 7, data=b"\x34\x00").data == b""


def test_a_count_beyond_the_frame_is_cut_to_it() -> None:
    assert len(asked(served(), f.READ, data=b"\xff\xff").data) == 52


def test_the_driver_is_written_once_and_told_what_changed() -> None:
    driver = matrix_device()
    device = served(driver)
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2))
    asked(device, f.WRITE, 0x71, 0x02, 4, i2(3, 4))
    assert driver.writes == []
    assert apply(device, 0x71, 0) is not None
    asked(device, f.RUN, 0x71, 0, 9, i2(0, 0))
    assert driver.writes == [(0, None)]
    asked(device, f.WRITE, 0x72, 0x12, 2, i2(7))
    asked(device, f.RUN, 0x72, 0, 10, i2(0, 0))
    assert driver.writes[1][1]["weight"].tolist() == [1]
    assert driver.weights[0].ravel() * 256 == pytest.approx([1, 7, 3, 4])


def test_apply_is_silent_until_every_byte_is_there() -> None:
    driver = matrix_device()
    device = served(driver)
    whole = i2(1, 2, 3, 4)
    data = struct.pack("<III", 0, 8, zlib.crc32(whole))
    request = f.Frame(f.DO, 1, 0x71, f.APPLY, 0, data).body()
    asked(device, f.WRITE, 0x71, 0x02, 0, whole[:4])
    assert device.receive(request) is None
    asked(device, f.WRITE, 0x71, 0x02, 4, whole[4:])
    assert f.parse(device.receive(request) or b"").status == f.OK
    assert f.parse(device.receive(request) or b"").status == f.OK
    assert len(driver.writes) == 1


def test_a_frame_sent_twice_is_not_written_twice_but_a_new_write_of_equal_values_is() -> None:
    driver = matrix_device()
    device = served(driver)
    for status, before in ((0x71, 0x02), (0x71, 0x02), (0x72, 0x12)):
        asked(device, f.WRITE, status, before, 0, i2(1, 2, 3, 4))
        assert apply(device, status, before >> 4) is not None
    assert len(driver.writes) == 2


def test_a_refused_write_changes_nothing_and_is_refused_again_when_sent_again() -> None:
    driver = matrix_device()
    device = served(driver)
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(9, 9, 9, 9))
    assert f.parse(apply(device, 0x71, 0) or b"").status == f.OK

    def too_hot(*_: Any, **__: Any) -> None:
        raise BadInput("total power 2 W, at most 1 W")

    driver.write = too_hot  # type: ignore[method-assign]
    asked(device, f.WRITE, 0x72, 0x12, 0, i2(1, 2, 3, 4))
    for _ in range(2):
        reply = f.parse(apply(device, 0x72, 1) or b"")
        assert (reply.status, reply.data) == (f.VALUE, b"total power 2 W, at most 1 W")
        asked(device, f.WRITE, 0x72, 0x12, 0, i2(1, 2, 3, 4))  # late, sent before the answer came
    assert asked(device, f.RUN, 0x72, 0, 9, i2(256, 0)).data == i2(9, 9)
    del driver.write
    asked(device, f.WRITE, 0x73, 0x22, 0, i2(5))
    assert asked(device, f.RUN, 0x73, 0, 10, i2(256, 0)).data == i2(5, 9)
    assert [w[0] for w in driver.writes] == [0, 0]


def test_a_host_that_did_not_ask_learns_of_a_refused_write_by_its_queries() -> None:
    driver = matrix_device()
    device = served(driver)

    def too_hot(*_: Any, **__: Any) -> None:
        raise BadInput("too hot")

    driver.write = too_hot  # type: ignore[method-assign]
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2, 3, 4))
    for run_id in (1, 2, 3):
        assert asked(device, f.RUN, 0x71, 0, run_id, i2(0, 0)).status == f.VALUE
    assert driver.ran == {}


def test_after_a_write_that_failed_nothing_runs() -> None:
    driver = matrix_device()
    device = served(driver)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("bus")

    driver.write = broken  # type: ignore[method-assign]
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2, 3, 4))
    assert [f.parse(apply(device, 0x71, 0) or b"").status for _ in range(1)] == [f.FAULT]
    assert asked(device, f.RUN, 0x71, 0, 1, i2(0, 0)).status == f.STALE


def test_settling_is_waited_for_once_a_write() -> None:
    waited: list[float] = []
    device = HzosServed(matrix_device(settling_s=0.02), mtu=64, window=2, encoding="i2", boot=7, sleep=waited.append)
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2, 3, 4))
    asked(device, f.RUN, 0x71, 0, 1, i2(1, 1))
    asked(device, f.RUN, 0x71, 0, 2, i2(1, 1))
    assert waited == [0.02]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (CapabilityError("no such path"), f.VALUE, "no such path"),
        (OSError("bus error"), f.FAULT, "OSError: bus error"),
        (DeviceRebooted("lost"), f.STALE, "lost"),
    ],
)
def test_what_a_driver_raises_is_an_answer(error: Exception, status: int, words: str) -> None:
    driver = matrix_device()
    device = served(driver)
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2, 3, 4))
    calls = []

    def broken(*_: Any) -> Reply:
        calls.append(1)
        raise error

    driver.run = broken  # type: ignore[method-assign]
    for _ in range(2):
        reply = asked(device, f.RUN, 0x71, 0, 9, i2(1, 1))
        assert (reply.status, reply.data.decode()) == (
            status,
            words if calls == [1] and reply.data else reply.data.decode(),
        )
    assert len(calls) == 1  # remembered, or STALE before the driver is asked
    assert (device.epoch == 0) == (status == f.STALE)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (np.zeros((1, 3), np.float32), "the driver answered float32 [1, 3], expected [1, 2]"),
        (np.array([["a", "b"]]), "the driver answered <U1"),
        (np.full((1, 2), np.nan, np.float32), "NaN or infinity, which integers"),
    ],
)
def test_wrong_answers_of_a_driver_never_reach_the_line(outputs: Any, words: str) -> None:
    driver = matrix_device()
    device = served(driver, mtu=256)
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2, 3, 4))
    driver.run = lambda segment, inputs: Reply(outputs)  # type: ignore[method-assign]
    reply = asked(device, f.RUN, 0x71, 0, 9, i2(1, 1))
    assert reply.status == f.FAULT
    assert words in reply.data.decode()


def test_words_are_cut_between_characters_to_fit_the_frame() -> None:
    driver = matrix_device()
    device = served(driver)
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2, 3, 4))

    def broken(*_: Any) -> Reply:
        raise BadInput("é" * 100)

    driver.run = broken  # type: ignore[method-assign]
    assert asked(device, f.RUN, 0x71, 0, 9, i2(1, 1)).data.decode("utf-8") == "é" * 26


def test_telemetry_fits_a_frame_and_names_health() -> None:
    driver = matrix_device()
    driver.health = lambda: Health(False, "lock lost")  # type: ignore[method-assign]
    reply = asked(served(driver), f.READ, 0, f.TELEMETRY, 0, b"\xff\x00")
    assert json.loads(reply.data) == {"ok": 0, "detail": "lock lost", "writes": 0} or len(reply.data) <= 52
    assert json.loads(reply.data)["detail"] == "lock lost"


def test_maintain_is_done_once_an_id() -> None:
    driver = matrix_device()
    driver.maintain = lambda: calls.append(1)  # type: ignore[attr-defined]
    calls: list[int] = []
    device = served(driver)
    asked(device, f.WRITE, 0x71, 0x02, 0, i2(1, 2, 3, 4))
    for number in (5, 5, 6):
        assert asked(device, f.DO, 0x71, f.MAINTAIN, number).status == f.OK
    assert calls == [1, 1]
    assert asked(device, f.DO, 0x73, f.MAINTAIN, 7).status == f.STALE


def test_a_device_that_does_not_fit_a_frame_is_told_so() -> None:
    with pytest.raises(
        CapabilityError, match=r"one row takes 80 bytes as f4, a frame of 64 carries 52.*smaller encoding"
    ):
        served(matrix_device(20, 20), encoding="f4")
    with pytest.raises(ConfigError, match="mtu: 1024 bytes; a frame has 64 to 512"):
        served(mtu=1024)
    with pytest.raises(ConfigError, match="window: 0 answers"):
        served(window=0)


def test_integers_need_a_declared_range() -> None:
    from hzo_hil.devices.fake import FakeDevice

    with pytest.raises(CapabilityError, match="boundary 0 declares no finite range.*or serve it as f4"):
        HzosServed(FakeDevice.mlp([2, 2]), encoding="i2")


def test_of_many_stages_the_line_offers_single_ones_and_the_longest() -> None:
    device = served(matrix_device(*[2] * 9))
    segments = [(s.lo, s.hi) for s in device.board.layout.segments]
    assert len(segments) == 16
    assert {(k, k + 1) for k in range(8)} <= set(segments)
    assert (0, 8) in segments
