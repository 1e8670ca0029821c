"""Sessions with the firmware: what it remembers, what it refuses, and what a reset does."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.firmware.line import (
    ADDRESS,
    BAD_TYPE,
    BAD_VERSION,
    DO,
    HELLO,
    LENGTH,
    MANIFEST,
    OK,
    PARAMETERS,
    PING,
    READ,
    RUN,
    SATURATED,
    STALE,
    TELEMETRY,
    VALUE,
    WRITE,
    Line,
    cobs,
    frame,
)

WINDOW = 8
BYTES = 78
ROW = struct.pack("<4h", 100, -200, 300, 4096)


@pytest.fixture
def line(start_host: Callable[..., int]) -> Iterator[Line]:
    """A host build with noise, so that a query run twice would be seen, greeted and written to."""
    with Line(start_host(noise=64, boot=5)) as made:
        made.hello()
        assert made.write(0, bytes(range(32)) + bytes(BYTES - 32)).status == OK
        yield made


def telemetry(line: Line) -> dict[str, int]:
    found = json.loads(line.read(TELEMETRY, 500))
    assert isinstance(found, dict)
    return found


def test_hello_says_sizes_and_counts(start_host: Callable[..., int], describe: Any) -> None:
    with Line(start_host(boot=0xC0FFEE17)) as line:
        line.send(b"\0garbage\0")
        answer = line.hello(nonce=99)
        assert answer.offset == 512 | WINDOW << 16
        assert struct.unpack("<4I", answer.data) == (0xC0FFEE17, 0, 1, len(describe.text()))
        assert (line.boot, line.epoch) == (7, 0)


def test_the_manifest_comes_in_parts(line: Line, describe: Any) -> None:
    whole = b"".join(line.read(MANIFEST, 500, at) for at in range(0, len(describe.text()), 500))
    assert whole == describe.text()
    assert line.read(MANIFEST, 500, len(whole)) == line.read(MANIFEST, 500, 2**32 - 1) == b""


def test_a_query_sent_again_is_answered_from_memory(line: Line) -> None:
    first = line.run(10, 0, ROW)
    assert first.status == OK
    assert first.offset == 10
    again = line.run(10, 0, ROW)
    assert again.data == first.data
    assert line.run(11, 0, ROW).data != first.data, "another query has other noise"
    counts = telemetry(line)
    assert (counts["runs"], counts["repeated"]) == (2, 1)


def test_the_smallest_of_the_remembered_goes_first(line: Line) -> None:
    numbers = [100, 107, 101, 106, 102, 105, 103, 104]
    kept = {n: line.run(n, 0, ROW).data for n in numbers}
    line.run(108, 0, ROW)
    line.send(frame(RUN, 77, line.boot << 4 | line.epoch, 0, 100, ROW))
    assert line.answers(1, patience_s=0.1) == [], "100 was answered long ago: silence"
    for number in numbers[1:]:
        assert line.run(number, 0, ROW).data == kept[number]
    assert telemetry(line)["runs"] == 9


def test_another_nonce_is_another_host(line: Line) -> None:
    first = line.run(500, 0, ROW)
    line.hello(nonce=1)
    assert line.run(500, 0, ROW).data == first.data
    line.hello(nonce=2)
    for number in range(1, WINDOW + 2):
        assert line.run(number, 0, ROW).status == OK, "a smaller number is no longer an old one"
    assert telemetry(line)["runs"] == 1 + WINDOW + 1


def test_stale_requests_are_not_run(start_host: Callable[..., int]) -> None:
    with Line(start_host(boot=5)) as line:
        line.hello()
        assert (line.boot, line.epoch) == (5, 0)
        assert line.run(1, 0, ROW).status == STALE, "nothing was written yet"
        assert line.write(0, bytes(BYTES)).status == OK
        assert line.epoch == 1
        for state in (6 << 4 | 1, 5 << 4 | 2, 5 << 4):
            assert line.ask(RUN, 0, 1, ROW, state).status == STALE
        assert line.ask(WRITE, PARAMETERS | 1 << 4, 0, b"\1", 6 << 4 | 2).status == STALE, "another boot"
        assert line.ask(WRITE, PARAMETERS | 7 << 4, 0, b"\1", 5 << 4 | 8).status == STALE, "it follows another epoch"
        assert line.ask(WRITE, PARAMETERS | 1 << 4, 0, b"\1", 5 << 4).status == STALE, "epoch 0 is the device's"
        assert line.read(PARAMETERS, BYTES) == bytes(BYTES)
        assert line.run(1, 0, ROW).status == OK
        assert telemetry(line)["runs"] == 1


def test_a_write_sent_again_changes_nothing_more(line: Line) -> None:
    before = line.epoch
    answer = line.ask(WRITE, PARAMETERS | before << 4, 1, b"\7\x81", line.boot << 4 | before + 1)
    again = line.ask(WRITE, PARAMETERS | before << 4, 1, b"\7\x81", line.boot << 4 | before + 1)
    assert answer.place == again.place
    assert line.epoch == before + 1
    assert line.read(PARAMETERS, 4) == b"\0\7\x81\3"


@pytest.mark.parametrize(
    ("address", "data", "status"),
    [
        (0, b"\x80", VALUE),  # weights are -127..127
        (32, struct.pack("<h", 129), VALUE),  # biases -128..128
        (32, struct.pack("<h", -129), VALUE),
        (30, b"\0\0" + struct.pack("<h", 500), VALUE),  # a weight and a bias in one write
        (33, b"\0\0", ADDRESS),  # half a bias, twice
        (31, b"\0\0", ADDRESS),
        (77, b"\0\0", ADDRESS),
        (78, b"\0", ADDRESS),
        (2**32 - 1, b"\0", ADDRESS),
    ],
)
def test_a_write_that_is_refused_changes_nothing(line: Line, address: int, data: bytes, status: int) -> None:
    before, epoch = line.read(PARAMETERS, BYTES), line.epoch
    assert line.write(address, data).status == status
    assert line.read(PARAMETERS, BYTES) == before
    assert line.epoch == epoch


def test_requests_that_make_no_sense_are_refused_by_name(line: Line) -> None:
    assert line.run(20, 3, ROW).status == ADDRESS
    assert line.run(20, 0, ROW[:-1]).status == LENGTH
    assert line.run(20, 0, b"").status == LENGTH
    assert line.run(20, 0, ROW * 32).status == LENGTH, "31 rows at most"
    assert line.run(20, 0, ROW, repeats_log2=11).status == VALUE
    assert line.run(20, 0, ROW, repeats_log2=10).status == OK
    assert line.ask(READ, 1, 0, b"\1\0").status == ADDRESS
    assert line.ask(READ, 2, 0, b"\1").status == LENGTH
    assert line.ask(DO, 9).status == ADDRESS
    assert line.ask(7).status == BAD_TYPE
    line.send(frame(2 << 4 | PING, 4))
    (answer,) = line.answers(1)
    assert (answer.type >> 4, answer.status) == (1, BAD_VERSION)
    assert telemetry(line)["runs"] == 1


def test_saturation_is_told_and_remembered(line: Line) -> None:
    assert line.write(0, b"\x7f" * 32).status == OK
    loud = struct.pack("<4h", *[32767] * 4)
    assert line.run(30, 0, loud).status == OK | SATURATED
    assert line.run(30, 0, loud).status == OK | SATURATED
    assert telemetry(line)["saturated_rows"] == 1
    assert line.run(31, 0, struct.pack("<4h", *[-32768] * 4)).status == OK, "a rectifier's 0 is a fair answer"


def test_park_darkens_and_asks_to_be_written_again(line: Line) -> None:
    assert line.ask(DO, 1).status == OK
    assert line.epoch == 0
    assert line.read(PARAMETERS, BYTES) == bytes(BYTES)
    assert line.run(40, 0, ROW).status == STALE


def test_a_damaged_frame_is_counted_and_the_next_one_heard(line: Line) -> None:
    good = frame(PING, 9)
    body = bytes([16 | PING, 9]) + bytes(6)
    wrong = b"\0" + cobs(body + struct.pack("<I", zlib.crc32(body) ^ 1)) + b"\0"
    too_long = frame(WRITE, 9, data=bytes(512))
    line.send(wrong + good + good[:-3] + good + too_long + b"\x05\x01\0" + good)
    assert [a.seq for a in line.answers(3)] == [9] * 3
    # A frame cut short ends at the zero that the next one starts with.
    assert telemetry(line)["bad_frames"] == 4


def test_bytes_in_any_pieces(line: Line) -> None:
    for byte in frame(PING, 1) + frame(HELLO, 2, offset=1):
        line.send(bytes([byte]))
    assert [a.seq for a in line.answers(2)] == [1, 2]


def test_a_reset_board_has_another_boot_and_epoch_0(start_emulator: Callable[[], Any]) -> None:
    board = start_emulator()
    with Line(board.port) as line:
        line.hello()
        line.write(0, bytes(range(32)) + bytes(BYTES - 32))
        assert (line.boot, line.epoch) == (1, 1)
        assert line.run(1, 0, ROW).status == OK
        board.reset()
        stale = line.run(2, 0, ROW)
        assert stale.status == STALE
        assert (line.boot, line.epoch) == (2, 0)
        assert line.read(PARAMETERS, BYTES) == bytes(BYTES)
        assert line.write(0, bytes(BYTES)).status == OK
        assert line.run(2, 0, ROW).status == OK
        assert struct.unpack("<4I", line.hello().data)[:2] == (2, 1)


def test_a_board_switched_off_repeats_its_boot_but_has_epoch_0(start_emulator: Callable[[], Any]) -> None:
    for _ in range(2):
        with Line(start_emulator().port) as line:
            line.hello()
            assert (line.boot, line.epoch) == (1, 0)
            # What a host that noticed nothing would send.
            assert line.ask(RUN, 0, 1, ROW, 1 << 4 | 1).status == STALE
            assert line.ask(WRITE, PARAMETERS | 1 << 4, 0, b"\1", 1 << 4 | 2).status == STALE
            line.write(0, bytes(BYTES))


def test_the_emulated_uart_loses_nothing_of_a_full_window(start_emulator: Callable[[], Any]) -> None:
    with Line(start_emulator().port) as line:
        line.hello()
        line.write(0, bytes(range(32)) + bytes(BYTES - 32))
        rows = ROW * 31
        for start in range(1, 200, WINDOW):
            sent = range(start, start + WINDOW)
            line.send(b"".join(frame(RUN, n & 255, line.boot << 4 | line.epoch, 0, n, rows) for n in sent))
            assert [a.offset for a in line.answers(WINDOW)] == list(sent)
        assert telemetry(line)["bad_frames"] == 0
