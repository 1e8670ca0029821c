"""Recording and replay: what was recorded is answered to the bit, and everything else is refused in words."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from hzo_hil.devices.api import Device, Health, Pipelined, Query, Reply, Segment
from hzo_hil.devices.errors import BadInput, BadReply, DataError, DeviceError, DeviceRebooted, LinkLost
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.pool import Pool
from hzo_hil.devices.recorded import Recorder, Replay
from hzo_hil.opening import models_of, open_device

WHOLE = Segment(0, 2)


def fake(script: Script | None = None, **options) -> FakeDevice:
    return FakeDevice.mlp([3, 4, 2], script=script, seed=1, dtype="float64", **options)


def rows(seed: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"weight": random.normal(size=(4, 3)), "bias": random.normal(size=4)}


def a_session(device) -> list[np.ndarray]:
    """Queries before and after a write of stage 0, a shorter segment, a read."""
    device.open()
    found = [device.run(WHOLE, rows(0)).outputs, device.run(Segment(0, 1), rows(1)).outputs]
    device.write(0, weights(0))
    found += [device.run(WHOLE, rows(0)).outputs, device.read(0)["weight"]]
    device.close()
    return found


def recorded_session(path: Path, **options) -> list[np.ndarray]:
    return a_session(Recorder(fake(**options), path))


@pytest.mark.parametrize("match", ["strict", "key"])
def test_a_replay_answers_what_was_recorded_to_the_bit(tmp_path, match):
    answers = recorded_session(tmp_path / "s.rec")
    replay = Replay(tmp_path / "s.rec", match=match)
    assert isinstance(replay, Device) and not isinstance(replay, Pipelined)
    assert replay.capabilities == fake().capabilities
    assert not replay.finished
    for got, expected in zip(a_session(replay), answers, strict=True):
        assert got.dtype == expected.dtype and np.array_equal(got, expected)
    assert replay.finished


def test_recording_changes_no_answer_and_calls_the_device_as_it_was_called(tmp_path):
    plain, inner = fake(), fake()
    for got, expected in zip(a_session(Recorder(inner, tmp_path / "s.rec")), a_session(plain), strict=True):
        assert np.array_equal(got, expected)
    assert [(c.segment, c.rows) for c in inner.calls] == [(c.segment, c.rows) for c in plain.calls]
    assert inner.opened == inner.closed == 1


def test_taps_repeats_keys_monitors_and_seconds_come_back(tmp_path):
    class Monitored(FakeDevice):
        def run(self, segment, inputs, **options):
            reply = super().run(segment, inputs, **options)
            return Reply(reply.outputs, reply.taps, {"power": 1.25}, seconds=0.5)

    made = FakeDevice.mlp([3, 4, 2], taps=True, repeats=True, keyed=True, script=Script(noise=0.1))
    made.__class__ = Monitored
    inputs = rows(0).astype(np.float32)
    options = {"taps": (1,), "repeats": 3, "keys": np.arange(5, dtype=np.uint64)}
    recorder = Recorder(made, tmp_path / "s.rec")
    expected = recorder.run(WHOLE, inputs, **options)
    for match in ("strict", "key"):
        got = Replay(tmp_path / "s.rec", match=match).run(WHOLE, inputs, **options)
        assert np.array_equal(got.outputs, expected.outputs)
        assert np.array_equal(got.taps[1], expected.taps[1])
        assert (got.monitors, got.seconds) == ({"power": 1.25}, 0.5)
    with pytest.raises(BadInput, match=r"whose keys differ in 1 of 5 values, by 3 at most"):
        keys = np.array([0, 1, 2, 3, 7], dtype=np.uint64)
        Replay(tmp_path / "s.rec").run(WHOLE, inputs, **(options | {"keys": keys}))


# --- strict ------------------------------------------------------------------------------------------------------


def test_strict_names_what_was_asked_and_what_was_recorded(tmp_path):
    recorded_session(tmp_path / "s.rec")
    replay = Replay(tmp_path / "s.rec")
    changed = rows(0)
    changed[2, 1] += 0.25
    with pytest.raises(BadInput) as error:
        replay.run(WHOLE, changed)
    text = str(error.value)
    assert "call 0 asks a query of stages 1..2 with inputs float64 [5, 3]; recorded at this place:" in text
    assert "whose inputs differ in 1 of 15 values, by 0.25 at most" in text and "match='key'" in text
    # A refused call does not move the place.
    replay.run(WHOLE, rows(0))
    with pytest.raises(
        BadInput, match=r"call 1 asks a write of stage 0 \(bias, weight\); recorded at this place: a query of"
    ):
        replay.write(0, weights(0))


def test_strict_ends_where_the_recording_ends(tmp_path):
    recorded_session(tmp_path / "s.rec")
    replay = Replay(tmp_path / "s.rec")
    a_session(replay)
    with pytest.raises(BadInput, match=r"after the last of 5 recorded calls\. Record a longer session"):
        replay.run(WHOLE, rows(0))


def test_strict_refuses_other_parameters(tmp_path):
    recorded_session(tmp_path / "s.rec")
    replay = Replay(tmp_path / "s.rec")
    replay.run(WHOLE, rows(0)), replay.run(Segment(0, 1), rows(1))
    with pytest.raises(
        BadInput, match=r"a write of stage 0 \(bias, weight\), whose value:bias differ in 4 of 4 values"
    ):
        replay.write(0, weights(9))


# --- by key ------------------------------------------------------------------------------------------------------


def test_by_key_the_order_is_free_and_parameters_count(tmp_path):
    before, short, after, _ = recorded_session(tmp_path / "s.rec")
    replay = Replay(tmp_path / "s.rec", match="key")
    replay.write(0, weights(0))
    assert np.array_equal(replay.run(WHOLE, rows(0)).outputs, after)
    with pytest.raises(BadInput, match="was never asked under these parameters"):
        replay.run(Segment(0, 1), rows(1))
    other = Replay(tmp_path / "s.rec", match="key")
    assert np.array_equal(other.run(Segment(0, 1), rows(1)).outputs, short)
    assert np.array_equal(other.run(WHOLE, rows(0)).outputs, before)


def test_only_the_parameters_of_the_stages_asked_are_part_of_the_key(tmp_path):
    recorder = Recorder(fake(), tmp_path / "s.rec")
    expected = recorder.run(Segment(1, 2), np.ones((1, 4))).outputs
    replay = Replay(tmp_path / "s.rec", match="key")
    replay.write(0, weights(5))
    assert np.array_equal(replay.run(Segment(1, 2), np.ones((1, 4))).outputs, expected)


def test_several_answers_to_one_key_are_used_in_order_and_then_end(tmp_path):
    recorder = Recorder(fake(Script(noise=0.1)), tmp_path / "s.rec")
    answers = [recorder.run(WHOLE, rows(0)).outputs for _ in range(3)]
    replay = Replay(tmp_path / "s.rec", match="key")
    for expected in answers:
        assert np.array_equal(replay.run(WHOLE, rows(0)).outputs, expected)
    with pytest.raises(BadInput, match=r"was asked 4 times, recorded 3 times"):
        replay.run(WHOLE, rows(0))


def test_reads_by_key_give_what_was_written_or_what_was_read(tmp_path):
    recorder = Recorder(fake(), tmp_path / "s.rec")
    first = recorder.read(1)["weight"]
    replay = Replay(tmp_path / "s.rec", match="key")
    assert np.array_equal(replay.read(1)["weight"], first)
    replay.write(1, {"weight": np.zeros((2, 4)), "bias": np.ones(2)})
    assert np.array_equal(replay.read(1)["bias"], np.ones(2))
    with pytest.raises(BadInput, match="stage 0 was never read while it was recorded, nor written since"):
        replay.read(0)


# --- errors, and what else a driver may do ------------------------------------------------------------------------


def test_recorded_errors_are_raised_again(tmp_path):
    class Odd(Exception):
        pass

    script = Script(lose=[0], reboot_at=[2], fail={1: Odd("laser off")})
    recorder = Recorder(fake(script), tmp_path / "s.rec")
    for kind in (LinkLost, Odd, DeviceRebooted):
        with pytest.raises(kind):
            recorder.run(WHOLE, rows(0))
    for match in ("strict", "key"):
        replay = Replay(tmp_path / "s.rec", match=match)
        with pytest.raises(LinkLost, match="scripted loss"):
            replay.run(WHOLE, rows(0))
        with pytest.raises(DeviceError, match=r"Odd: laser off \(recorded\)"):
            replay.run(WHOLE, rows(0))
        with pytest.raises(DeviceRebooted):
            replay.run(WHOLE, rows(0))


def test_lost_writes_are_raised_again_and_count_for_no_parameters(tmp_path):
    recorder = Recorder(fake(Script(lose_write=[0])), tmp_path / "s.rec")
    with pytest.raises(LinkLost):
        recorder.write(0, weights(0))
    outputs = recorder.run(WHOLE, rows(0)).outputs
    replay = Replay(tmp_path / "s.rec")
    with pytest.raises(LinkLost):
        replay.write(0, weights(0))
    assert np.array_equal(replay.run(WHOLE, rows(0)).outputs, outputs)
    assert np.array_equal(Replay(tmp_path / "s.rec", match="key").run(WHOLE, rows(0)).outputs, outputs)


def test_an_answer_that_is_no_number_reaches_the_asker_and_is_recorded_as_an_error(tmp_path):
    class Wordy(FakeDevice):
        def run(self, segment, inputs, **options):
            return "volts"

    made = fake()
    made.__class__ = Wordy
    assert Recorder(made, tmp_path / "s.rec").run(WHOLE, rows(0)) == "volts"
    with pytest.raises(BadReply, match="the driver answered str, no numbers"):
        Replay(tmp_path / "s.rec").run(WHOLE, rows(0))


def test_park_maintain_snapshot_and_health_travel(tmp_path):
    class Full(FakeDevice):
        done: list[str]

        def park(self):
            self.done.append("park")

        def maintain(self):
            self.done.append("maintain")

        def health(self):
            return Health(False, "bias drifted")

    made = fake()
    made.__class__, made.done = Full, []
    recorder = Recorder(made, tmp_path / "s.rec")
    recorder.park(), recorder.maintain(), recorder.health()
    snapshot = recorder.snapshot()
    assert made.done == ["park", "maintain"]
    replay = Replay(tmp_path / "s.rec")
    assert replay.health() == replay.health() == Health(False, "bias drifted")
    assert replay.snapshot() == snapshot
    replay.park()
    with pytest.raises(BadInput, match="call 1 asks a park; recorded at this place: a maintain"):
        replay.park()
    for plain in (Recorder(fake(), tmp_path / "t.rec"), recorded_and_replayed(tmp_path / "u.rec")):
        assert not hasattr(plain, "park") and not hasattr(plain, "maintain")
        assert plain.health().ok


def recorded_and_replayed(path: Path) -> Replay:
    recorded_session(path)
    return Replay(path)


# --- pipelined ---------------------------------------------------------------------------------------------------


def collect(device, tickets: int) -> list[tuple[int, Reply | Exception]]:
    found = []
    while len(found) < tickets:
        found += device.poll(1.0)
    return found


def test_a_pipelined_device_is_replayed_in_the_order_of_its_answers(tmp_path):
    options = {"pipelined": True, "window": 6, "virtual_time": True}
    recorder = Recorder(fake(Script(reorder=True, seed=3, lose=[4]), **options), tmp_path / "s.rec")
    assert isinstance(recorder, Pipelined) and recorder.window == 6
    asked = [recorder.submit(Query(WHOLE, rows(n))) for n in range(6)]
    expected = collect(recorder, 6)
    order = [asked.index(t) for t, _ in expected]
    assert order != sorted(order)
    replay = Replay(tmp_path / "s.rec")
    assert isinstance(replay, Pipelined) and replay.window == 6
    again = [replay.submit(Query(WHOLE, rows(n))) for n in range(6)]
    got = collect(replay, 6)
    assert [again.index(t) for t, _ in got] == order
    for (_, a), (_, b) in zip(got, expected, strict=True):
        assert isinstance(a, LinkLost) == isinstance(b, LinkLost)
        assert isinstance(a, LinkLost) or np.array_equal(a.outputs, b.outputs)
    assert replay.poll(0.0) == []


def test_cancelled_queries_stay_unanswered(tmp_path):
    recorder = Recorder(fake(pipelined=True, virtual_time=True), tmp_path / "s.rec")
    recorder.submit(Query(WHOLE, rows(0)))
    recorder.cancel()
    recorder.submit(Query(WHOLE, rows(1)))
    (_, expected), *_ = collect(recorder, 1)
    replay = Replay(tmp_path / "s.rec")
    replay.submit(Query(WHOLE, rows(0)))
    assert replay.poll(0.0) == []
    replay.cancel()
    replay.submit(Query(WHOLE, rows(1)))
    ((_, got),) = collect(replay, 1)
    assert np.array_equal(got.outputs, expected.outputs)


# --- files -------------------------------------------------------------------------------------------------------


def test_every_cut_of_a_file_is_named_and_usable_up_to_it(tmp_path):
    recorded_session(tmp_path / "s.rec")
    whole = (tmp_path / "s.rec").read_bytes()
    ends = record_ends(whole)
    for size in range(8, len(whole), 37):
        path = tmp_path / "cut.rec"
        path.write_bytes(whole[:size])
        if size in ends:
            continue
        with pytest.raises(DataError, match=r"ends within record \d+ \(byte \d+\)"):
            Replay(path)
        if size > ends[1]:
            assert Replay(path, cut=True).capabilities == fake().capabilities


def record_ends(whole: bytes) -> list[int]:
    ends = [8]
    while ends[-1] < len(whole):
        head, size, _ = struct.unpack_from("<III", whole, ends[-1])
        ends.append(ends[-1] + 12 + head + size)
    return ends


def test_a_changed_byte_is_found_wherever_it_is(tmp_path):
    recorded_session(tmp_path / "s.rec")
    whole = bytearray((tmp_path / "s.rec").read_bytes())
    for place in range(0, len(whole), 101):
        broken = bytearray(whole)
        broken[place] ^= 0x40
        (tmp_path / "broken.rec").write_bytes(broken)
        with pytest.raises(DataError, match=r"damaged|no recording|of format|ends within"):
            Replay(tmp_path / "broken.rec")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no recording of a device"),
        (b"\x93NUMPY whatever", "is no recording of a device: it begins with"),
        (b"HZOREC9\nxyz", "is of format b'9'; this version reads b'1'"),
        (b"HZOREC1\n", "is empty: the recorder was never opened"),
        (b"HZOREC1\n" + struct.pack("<III", 2**31, 0, 0), "its head claims 2147483648 bytes"),
        (b"HZOREC1\n" + struct.pack("<III", 4, 0, zlib.crc32(b"[ab]")) + b"[ab]", "record 0: no JSON"),
        (b"HZOREC1\n" + struct.pack("<III", 2, 0, zlib.crc32(b"[]")) + b"[]", "its head is no object"),
    ],
)
def test_foreign_files_are_refused_in_words(tmp_path, content, words):
    (tmp_path / "s.rec").write_bytes(content)
    with pytest.raises(DataError) as error:
        Replay(tmp_path / "s.rec")
    assert words in str(error.value) and "s.rec" in str(error.value)


def test_a_missing_file_and_a_record_out_of_place_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Replay(tmp_path / "none.rec")
    head = json.dumps({"kind": "query", "arrays": [["inputs", "|O", [1]]]}).encode()
    (tmp_path / "s.rec").write_bytes(b"HZOREC1\n" + struct.pack("<III", len(head), 0, zlib.crc32(head)) + head)
    with pytest.raises(DataError, match="the device comes first, and once"):
        Replay(tmp_path / "s.rec")


def test_arrays_of_objects_are_never_made(tmp_path):
    recorded_session(tmp_path / "s.rec")
    head = json.dumps(
        {"kind": "query", "number": 9, "segment": [0, 1], "taps": [], "repeats": 1, "arrays": [["inputs", "|O", [1]]]}
    ).encode()
    with (tmp_path / "s.rec").open("ab") as file:
        body = head + bytes(8)
        file.write(struct.pack("<III", len(head), 8, zlib.crc32(body)) + body)
    with pytest.raises(DataError, match="which is no array"):
        Replay(tmp_path / "s.rec")


def test_a_recorder_never_overwrites(tmp_path):
    recorded_session(tmp_path / "s.rec")
    with pytest.raises(DataError, match=r"exists: record to another file, or append=True"):
        Recorder(fake(), tmp_path / "s.rec")


def test_after_a_crash_recording_goes_on_in_the_same_file(tmp_path, caplog):
    answers = recorded_session(tmp_path / "s.rec")
    whole = (tmp_path / "s.rec").read_bytes()
    (tmp_path / "s.rec").write_bytes(whole + whole[8:58])
    recorder = Recorder(fake(), tmp_path / "s.rec", append=True)
    later = recorder.run(WHOLE, rows(7)).outputs
    assert "50 bytes of an incomplete record" in caplog.text
    replay = Replay(tmp_path / "s.rec")
    for got, expected in zip(a_session(replay), answers, strict=True):
        assert np.array_equal(got, expected)
    assert np.array_equal(replay.run(WHOLE, rows(7)).outputs, later)
    with pytest.raises(DataError, match="is of device 'fake' and this is 'other'"):
        Recorder(fake(identity="other"), tmp_path / "s.rec", append=True).open()


def test_what_was_recorded_survives_a_process_that_dies(tmp_path, run_python):
    """os._exit flushes nothing and runs no destructor: as after a crash, all complete records are there."""
    code = f"""
import os, numpy as np
from hzo_hil.devices.api import Segment
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.devices.recorded import Recorder
r = Recorder(FakeDevice.mlp([3, 4, 2], seed=1, dtype="float64"), {str(tmp_path / "s.rec")!r})
r.open()
r.run(Segment(0, 2), np.ones((2, 3)))
os._exit(9)
"""
    assert run_python(code, without=("torch",)).returncode == 9
    expected = fake().run(WHOLE, np.ones((2, 3))).outputs
    assert np.array_equal(Replay(tmp_path / "s.rec").run(WHOLE, np.ones((2, 3))).outputs, expected)


def test_options_are_checked(tmp_path):
    recorded_session(tmp_path / "s.rec")
    with pytest.raises(BadInput, match="matches 'strict' or by 'key', not 'loose'"):
        Replay(tmp_path / "s.rec", match="loose")


# --- a lab session as a regression test ---------------------------------------------------------------------------


def trained(device) -> list[np.ndarray]:
    """Parameters of a small Opaque after three steps on `device`."""
    torch = pytest.importorskip("torch")
    from tests.core.nets import affine_opaque, inputs, loss_of

    module = affine_opaque([3, 4, 2], device=device, tree="chain", probes="hadamard", eps=0.05)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    for step in range(3):
        optimiser.zero_grad()
        loss_of(module(inputs(4, 3, seed=step, grad=False))).backward()
        optimiser.step()
    return [p.detach().numpy().copy() for p in module.parameters()]


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("match", ["strict", "key"])
def test_training_against_the_replay_gives_the_same_parameters_bit_for_bit(tmp_path, pipelined, match):
    def noisy() -> FakeDevice:
        script = Script(noise=0.01, seed=5, reorder=pipelined, lose=[7] if pipelined else [])
        return fake(script, pipelined=pipelined, max_batch=4)

    recorded = trained(Recorder(noisy(), tmp_path / "s.rec"))
    replay = Replay(tmp_path / "s.rec", match=match)
    replayed = trained(replay)
    assert replay.finished
    for a, b in zip(recorded, replayed, strict=True):
        assert np.array_equal(a, b)
    assert not all(np.array_equal(a, b) for a, b in zip(recorded, trained(fake()), strict=True))


def test_a_recorded_chip_keeps_what_only_it_has(tmp_path: Path) -> None:
    """Its models, so that stages have twins; a pool's way to hand out rows."""
    chip = open_device({"kind": "onn", "options": {"layers": 1, "ports": 4}, "record": tmp_path / "session.bin"})
    assert models_of(chip) is not None
    chips = [FakeDevice.mlp([3, 2], seed=seed) for seed in (1, 2)]
    assert Recorder(Pool(chips, identical=False), tmp_path / "pool.bin").by_sample
