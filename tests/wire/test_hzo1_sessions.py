"""Sessions of HZO/1 on one thread with a false clock: what is lost, doubled, stale, stolen or silent."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Query, Reply, Segment
from hzo_hil.devices.errors import (
    BadInput,
    BadReply,
    Busy,
    CapabilityError,
    DeviceError,
    DeviceGone,
    DeviceRebooted,
    LinkLost,
)
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.transports.memory import MemoryTransport
from hzo_hil.devices.wire import messages as m
from tests.wire.hzo1_parts import EYE, WHOLE, WIDTH, Counting, Rig, TwoStages, rows


def collect(host: Any, count: int, most: int = 3000) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for _ in range(most):
        found.update(host.poll(0.1))
        if len(found) >= count:
            return found
    raise AssertionError(f"{len(found)} of {count} answers")


def test_every_call_arrives_and_is_answered() -> None:
    rig = Rig()
    host = rig.host()
    w = np.arange(16, dtype=np.float32).reshape(4, 4)
    host.write(0, {"w": w})
    reply = host.run(WHOLE, rows(3.0, 2))
    np.testing.assert_array_equal(reply.outputs, rows(3.0, 2) @ w)
    assert reply.monitors == {"power": 0.5} and reply.seconds > 0
    assert reply.outputs.flags.writeable and reply.outputs.flags.c_contiguous and reply.outputs.dtype == np.float32
    np.testing.assert_array_equal(host.read(0)["w"], w)
    assert host.snapshot() == {"serial": "A1", "temperature": 25.0}
    assert host.health().ok and host.health().detail == "well"
    assert host.window == 16 and host.capabilities.repeats and {"where", "park", "repeats"} <= host.features
    with pytest.raises(CapabilityError, match="has no maintain"):
        host.maintain()


@pytest.mark.parametrize("seed", range(6))
def test_under_chaos_each_query_runs_at_most_once_and_each_answer_is_right(seed: int) -> None:
    rig = Rig()
    host = rig.host(chaos=seed)
    name = 0
    expected: dict[int, Any] = {}
    for round_ in range(5):
        w = np.full((WIDTH, WIDTH), round_ + 1, np.float32)
        host.write(0, {"w": w})
        tickets: dict[int, Any] = {}
        found: dict[int, Any] = {}
        for _ in range(200):
            name += 1
            tickets[host.submit(Query(WHOLE, rows(float(name))))] = rows(float(name)) @ w
            found.update(host.poll(0.0))
        found.update(collect(host, len(tickets) - len(found)))
        for ticket, outputs in tickets.items():
            np.testing.assert_array_equal(found[ticket].outputs, outputs)
        expected.update(tickets)
    assert max(rig.device.runs.values()) == 1 and len(rig.device.runs) == 1000
    assert host.counters["resent"] > 0 and host.counters["reboots"] == 0


def test_a_killed_server_is_noticed_and_everything_outstanding_fails_with_a_reboot() -> None:
    rig = Rig()
    host = rig.host()
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    host.run(WHOLE, rows(1.0))
    rig.kill()
    tickets = [host.submit(Query(WHOLE, rows(10.0 + i))) for i in range(20)]
    assert host.poll(0.1) == []
    rig.start()
    found = collect(host, 20)
    assert sorted(found) == tickets and all(isinstance(r, DeviceRebooted) for r in found.values())
    assert "restarted" in str(found[tickets[0]]) and host.counters["reboots"] == 1
    host.write(0, {"w": 2 * np.eye(4, dtype=np.float32)})
    np.testing.assert_array_equal(host.run(WHOLE, rows(5.0)).outputs, 2 * rows(5.0))
    assert max(rig.device.runs.values()) == 1


def test_a_run_before_the_next_write_is_refused_after_a_reboot() -> None:
    rig = Rig()
    host = rig.host()
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    rig.kill()
    rig.start()
    for _ in range(2):
        with pytest.raises(DeviceRebooted):
            host.run(WHOLE, rows(1.0))
    assert not rig.device.runs


def test_a_hung_server_is_noticed_in_time_and_recovers_without_running_twice(caplog: Any) -> None:
    rig = Rig()
    host = rig.host()
    host.run(WHOLE, rows(1.0))
    hung_at = rig.now
    rig.hung = True
    tickets = [host.submit(Query(WHOLE, rows(2.0 + i))) for i in range(8)]
    with caplog.at_level(logging.WARNING, "hzo_hil.link"):
        while host.state == "up":
            host.poll(0.1)
        assert rig.now - hung_at <= 0.2 + 2.0
        assert len([r for r in caplog.records if "is lost" in r.message]) == 1
        assert "counting" in caplog.text and rig.url in caplog.text
        rig.wait(host, 3.0)
        rig.hung = False
        found = collect(host, 8)
    assert "is back after" in caplog.text and host.state == "up"
    assert sorted(found) == tickets and all(isinstance(r, Reply) for r in found.values())
    assert max(rig.device.runs.values()) == 1 and host.counters["reconnects"] == 1


def test_an_idle_hung_device_is_noticed_too() -> None:
    rig = Rig()
    host = rig.host()
    host.open()
    rig.wait(host, 2.5)
    assert host.state == "up"
    hung_at, rig.hung = rig.now, True
    while host.state == "up":
        host._step(0.05)
    assert rig.now - hung_at <= 0.2 + 2.0


def test_a_device_that_stays_away_gives_lost_after_patience() -> None:
    rig = Rig()
    host = rig.host(patience_s=4.0)
    host.open()
    rig.kill()
    ticket = host.submit(Query(WHOLE, rows(1.0)))
    start = rig.now
    found = collect(host, 1)
    assert isinstance(found[ticket], DeviceGone) and "Is its server running" in str(found[ticket])
    assert 4.0 <= rig.now - start <= 7.0
    with pytest.raises(DeviceGone):
        host.write(0, {"w": np.eye(4, dtype=np.float32)})
    rig.start()
    with pytest.raises(DeviceRebooted):
        host.write(0, {"w": np.eye(4, dtype=np.float32)})
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    assert host.state == "up"


def test_nobody_there() -> None:
    rig = Rig()
    rig.kill()
    start = rig.now
    with pytest.raises(LinkLost, match=r"nobody answers at memory://rig\d+ within 5 s.*Is the server running"):
        rig.host().capabilities  # noqa: B018
    assert rig.now - start < 5.5


def test_a_second_host_is_told_who_is_there_and_may_take_over() -> None:
    rig = Rig()
    first = rig.host(run_id="first")
    first.write(0, {"w": np.eye(4, dtype=np.float32)})
    with pytest.raises(Busy, match=r"in use by run 'first', heard 0.0 s ago.*take over"):
        rig.host(run_id="second").open()
    second = rig.host(run_id="second", takeover=True)
    second.write(0, {"w": 3 * np.eye(4, dtype=np.float32)})
    ticket = first.submit(Query(WHOLE, rows(1.0)))
    assert first.poll(0.3) == [] and ticket not in rig.device.runs
    np.testing.assert_array_equal(second.run(WHOLE, rows(1.0)).outputs, 3 * rows(1.0))


def test_a_restarted_host_of_the_same_run_takes_over_and_an_expired_session_is_free() -> None:
    rig = Rig()
    rig.host(run_id="night").open()
    rig.host(run_id="night").open()
    with pytest.raises(Busy):
        rig.host(run_id="day").open()
    rig.now += 3.1
    rig.host(run_id="day").open()


def test_goodbye_frees_the_device_and_parks_it() -> None:
    rig = Rig()
    first = rig.host()
    first.write(0, {"w": np.eye(4, dtype=np.float32)})
    first.close()
    assert rig.device.calls[-1] == "park" and first.state == "closed"
    rig.host().open()
    assert rig.boots == 1


def test_silence_parks_once_and_what_comes_after_is_stale(caplog: Any) -> None:
    rig = Rig(park_after_s=5.0)
    host = rig.host()
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    with caplog.at_level(logging.WARNING, "hzo_hil.server"):
        rig.now += 5.1
        rig.idle(0.0)
        rig.idle(0.0)
    assert rig.device.calls.count("park") == 1
    assert "parked counting: nothing was heard of the host for 5 s" in caplog.text
    with pytest.raises(DeviceRebooted, match="must be written again"):
        host.run(WHOLE, rows(1.0))
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    host.run(WHOLE, rows(1.0))


def test_a_pinging_host_keeps_the_device_from_being_parked() -> None:
    rig = Rig(park_after_s=5.0)
    host = rig.host()
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    rig.wait(host, 20.0)
    assert "park" not in rig.device.calls and host.counters["pings"] >= 15


def test_parking_by_the_host_forgets_the_parameters() -> None:
    rig = Rig()
    host = rig.host()
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    host.park()
    assert rig.device.calls[-1] == "park"
    with pytest.raises(DeviceRebooted):
        host.run(WHOLE, rows(1.0))


def test_only_changed_values_travel() -> None:
    rig = Rig()
    host = rig.host()
    w = np.zeros((4, 4), np.float32)
    host.write(0, {"w": w})
    w = w.copy()
    w[1, 2] = 7
    host.write(0, {"w": w}, where={"w": np.array([6])})
    np.testing.assert_array_equal(rig.device.w, w)
    np.testing.assert_array_equal(rig.device.where["w"], [6])
    request = host._talk.write(9999, 0, {"w": w}, {"w": np.array([6])})[0]
    assert [len(bytes(f)) for f in request.frames[3:]] == [4, 4]


def test_repeats_are_averaged_by_the_server() -> None:
    class Noisy(Counting):
        def run(self, segment: Any, inputs: Any) -> Reply:
            self.sizes = [*getattr(self, "sizes", []), len(inputs)]
            noise = np.arange(sum(self.sizes) - len(inputs), sum(self.sizes), dtype=np.float32)
            return Reply(inputs + noise[:, None])

    rig = Rig(Noisy(max_batch=4))
    reply = rig.host().run(WHOLE, rows(1.0, 2), repeats=5)
    np.testing.assert_allclose(reply.outputs, rows(1.0, 2) + np.array([[2.0], [7.0]]))
    assert rig.device.sizes == [4, 4, 2]


def test_noise_keys_travel_to_keyed_devices_and_count_up_with_the_repeats() -> None:
    class Keyed(Counting):
        def run(self, segment: Any, inputs: Any, keys: Any = None) -> Reply:
            self.keys = keys
            return Reply(inputs)

        def write(self, stage: int, parameters: Any, where: Any = None, key: int = -1) -> None:
            self.key = key

    rig = Rig(Keyed(keyed=True))
    host = rig.host()
    host.write(0, {"w": np.eye(4)}, key=2**63 + 5)
    host.run(WHOLE, rows(1.0, 2), repeats=3, keys=np.array([10, 2**63], np.uint64))
    assert rig.device.key == 2**63 + 5
    assert rig.device.keys.tolist() == [10, 11, 12, 2**63, 2**63 + 1, 2**63 + 2]


def test_taps_come_back_by_boundary() -> None:
    class Tapped(Counting):
        def run(self, segment: Any, inputs: Any, taps: Any = ()) -> Reply:
            return Reply(inputs, {t: inputs + t for t in taps})

    rig = Rig(Tapped(taps=True))
    reply = rig.host().run(WHOLE, rows(1.0), taps=(1,))
    np.testing.assert_array_equal(reply.taps[1], rows(1.0) + 1)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda x: x[:, :3], r"answered float32 \[1, 3\].*expected float32 \[1, 4\]"),
        (lambda x: x.astype(np.float16), r"answered float16"),
        (lambda x: x.astype(complex), r"answered complex128"),
        (lambda x: x.tolist(), r"answered list"),
        (lambda x: None, r"answered NoneType"),
    ],
)
def test_a_driver_that_answers_wrongly_is_named(answer: Any, text: str) -> None:
    device = Counting()
    device.run = lambda segment, inputs: Reply(answer(inputs))  # type: ignore[method-assign]
    with pytest.raises(BadReply, match=text):
        Rig(device).host().run(WHOLE, rows(1.0))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (BadInput("too bright"), BadInput, "too bright"),
        (DeviceError("laser off"), DeviceError, "laser off"),
        (KeyError("gone"), DeviceError, "raised KeyError: 'gone'"),
    ],
)
def test_a_driver_that_raises_does_not_end_the_server(error: Exception, kind: Any, text: str) -> None:
    rig = Rig()
    run = rig.device.run
    rig.device.run = lambda segment, inputs: (_ for _ in ()).throw(error)
    host = rig.host()
    with pytest.raises(kind, match=text):
        host.run(WHOLE, rows(1.0))
    rig.device.run = run
    host.run(WHOLE, rows(2.0))


def test_a_failed_write_leaves_no_doubt() -> None:
    rig = Rig()
    host = rig.host()
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    with pytest.raises(BadInput, match=r"parameter 'w' is \[4, 4\], \[2, 2\] came"):
        host.write(0, {"w": np.eye(2, dtype=np.float32)})
    host.run(WHOLE, rows(1.0))  # refused whole: the old ones still hold
    write, rig.device.write = rig.device.write, lambda *a, **k: (_ for _ in ()).throw(OSError("bus"))
    with pytest.raises(DeviceError, match="OSError: bus"):
        host.write(0, {"w": np.eye(4, dtype=np.float32)})
    with pytest.raises(DeviceRebooted):
        host.run(WHOLE, rows(2.0))
    rig.device.write = write
    host.write(0, {"w": np.eye(4, dtype=np.float32)})
    host.run(WHOLE, rows(2.0))


def test_wrong_inputs_are_refused_before_the_driver_sees_them() -> None:
    rig = Rig()
    host = rig.host()
    with pytest.raises(BadInput, match=r"inputs at boundary 0 are \[batch, 4\], \[1, 3\] came"):
        host.run(WHOLE, np.zeros((1, 3), np.float32))
    with pytest.raises(BadInput, match="complex"):
        host.run(WHOLE, np.zeros((1, 4), complex))
    assert not rig.device.runs


def test_non_finite_answers_are_flagged() -> None:
    device = Counting()
    device.run = lambda segment, inputs: Reply(inputs / 0)  # type: ignore[method-assign]
    rig = Rig(device)
    host = rig.host()
    host.open()
    flags: list[int] = []
    receive = host._talk.receive
    host._talk.receive = lambda f: (flags.append(m.decode(f).flags), receive(f))[1]  # type: ignore[method-assign]
    with np.errstate(all="ignore"):
        assert np.isinf(host.run(WHOLE, rows(1.0)).outputs).any()
    assert flags == [m.NON_FINITE]


def test_a_driver_that_fills_one_buffer_again_and_again_does_not_change_kept_answers() -> None:
    class Reusing(Counting):
        buffer = np.empty((4096, WIDTH), np.float32)

        def run(self, segment: Any, inputs: Any) -> Reply:
            self.buffer[:] = inputs
            return Reply(self.buffer)

    rig = Rig(Reusing())
    host = rig.host()
    host.open()
    for name in (1.0, 5.0):
        host.submit(Query(WHOLE, rows(name, 4096)))
    collect(host, 2)
    kept = rig.server._served.session.kept  # type: ignore[union-attr]
    assert [reply[3][0, 0] for reply in kept.values()] == [1.0, 5.0]


def test_oversize_requests_are_refused_before_they_are_sent() -> None:
    rig = Rig()
    host = rig.host()
    host.open()
    host._talk.limits = m.Limits(array=1 << 16, total=1 << 16)  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="at most 65536 bytes in 61 arrays go into one message.*max_batch"):
        host.run(WHOLE, rows(1.0, 8192))
    assert len(host._window) == 0


def test_cancelled_queries_are_forgotten_and_the_link_goes_on() -> None:
    rig = Rig()
    host = rig.host()
    host.open()
    for i in range(40):
        host.submit(Query(WHOLE, rows(float(i))))
    host.cancel()
    ticket = host.submit(Query(WHOLE, rows(99.0)))
    assert [t for t, _ in host.poll(1.0)] == [ticket]
    assert host.poll(0.1) == []


@pytest.mark.parametrize("version", [0, 2, 9])
def test_another_version_is_named_by_both_sides(version: int) -> None:
    rig = Rig()
    host = rig.host()
    other = bytes([*b"HZO", version])
    receive = host._talk.receive
    host._talk.receive = lambda f: receive([other + bytes(f[0])[4:], *f[1:]])  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=rf"the other side speaks HZO/{version}, this one HZO/1\. Install the same"):
        host.open()
    hello = host._talk.hello(False, "", 1.0).frames
    answer = rig.server._served.receive(b"p", [other + hello[0][4:], *hello[1:]], 0.0)  # type: ignore[union-attr]
    text = m.decode(answer).options()  # type: ignore[arg-type]
    assert text["code"] == "VERSION" and text["text"] == f"the host speaks HZO/{version}, this device HZO/1"
    fresh = rig.host()._talk
    fresh.hello(False, "", 1.0)
    assert isinstance(fresh.receive(answer)[0].result, DeviceError)  # type: ignore[arg-type]


def test_garbage_is_counted_and_dropped() -> None:
    rig = Rig()
    host = rig.host()
    host.open()
    inbox = host._transport._inbox  # type: ignore[attr-defined]
    for frames in ([b"x"], [b"HZO\x01" + bytes(28), b"", b""], [b""] * 70):
        inbox.put(frames)
        rig.server._take(b"p", frames)  # type: ignore[union-attr]
    host.run(WHOLE, rows(1.0))
    assert host.counters["bad_frames"] == 3 and rig.server.bad_messages == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", [-1, 1, 1.5, 70000, "0", True])
def test_an_unknown_stage_is_refused_before_anything_is_numbered(stage: Any) -> None:
    rig = Rig()
    host = rig.host()
    host.write(0, {"w": EYE})
    with pytest.raises(BadInput, match=r"has no stage .*; its stages are 0 \(matrix\)"):
        host.write(stage, {"w": EYE})
    with pytest.raises(BadInput, match="its stages are"):
        host.read(stage)
    host.run(WHOLE, rows(1.0))
    assert host.counters["reboots"] == 0


@pytest.mark.parametrize("stage", [-1, 1.5, 70000])
def test_what_cannot_be_packed_counts_nothing_up(stage: Any) -> None:
    rig = Rig()
    host = rig.host()
    host.write(0, {"w": EYE})
    with pytest.raises(BadInput, match="stages are numbered"):
        host._talk.write(99, stage, {"w": EYE})
    with pytest.raises(BadInput, match="complex"):
        host.write(0, {"w": EYE * 1j})
    host.run(WHOLE, rows(1.0))


def test_writing_everything_again_always_recovers() -> None:
    rig = Rig()
    host = rig.host()
    for _ in range(3):
        host.write(0, {"w": EYE})
    host._talk.forget()  # as after a STALE that nobody but the host knows of
    with pytest.raises(DeviceRebooted):
        host.run(WHOLE, rows(1.0))
    host.write(0, {"w": 2 * EYE}, where={"w": np.array([0])})
    np.testing.assert_array_equal(host.run(WHOLE, rows(1.0)).outputs, 2 * rows(1.0))


@pytest.mark.parametrize("lost", ["by the host", "by both", "parked"])
def test_stages_not_written_again_are_not_run(lost: str) -> None:
    rig = Rig(TwoStages())
    host = rig.host()
    for stage in (0, 1):
        host.write(stage, {"w": EYE})
    host.run(Segment(0, 2), rows(1.0))
    if lost == "parked":
        host.park()
    else:
        host._talk.forget()
    if lost == "by both":
        rig.server._served.lost()  # type: ignore[union-attr]
    host.write(0, {"w": EYE})
    host.run(Segment(0, 1), rows(2.0))
    with pytest.raises(DeviceRebooted, match="what the stages 1 hold was not written since"):
        host.run(Segment(0, 2), rows(3.0))
    for stage in (0, 1):
        host.write(stage, {"w": EYE})
    host.run(Segment(0, 2), rows(3.0))
    assert max(rig.device.runs.values()) == 1


def test_single_values_are_refused_by_a_device_that_starts_anew() -> None:
    rig = Rig()
    host = rig.host()
    host.write(0, {"w": EYE})
    meta = b'{"names":["w"],"base":0,"where":true}'
    arrays = [np.ones(1, np.float32), np.zeros(1, np.int32)]
    frames = m.encode(m.WRITE, host._talk.session, 99, meta=meta, arrays=arrays, roles=(0, 0), version=9)  # type: ignore[attr-defined] # fmt: skip
    sent = [f if type(f) is bytes else f.tobytes() for f in frames]
    answer = rig.server._served.receive(b"p", sent, rig.now)  # type: ignore[union-attr]
    assert m.decode(answer).options()["code"] == "STALE"  # type: ignore[arg-type]


class Hinting:
    """A line that says what may be wrong with it, and that may break."""

    problem, bad_frames, hint = "", 0, "Not one byte came."

    def __init__(self, inner: Any) -> None:
        self.inner, self.broken = inner, False
        self.close, self.open = inner.close, inner.open

    def send(self, frames: Any) -> bool:
        return bool(self.inner.send(frames))

    def receive(self, timeout: float) -> Any:
        if self.broken:
            raise LinkLost("the port is gone")
        return self.inner.receive(timeout)


def test_hints_of_the_line_are_passed_on() -> None:
    rig = Rig()
    line = Hinting(MemoryTransport(rig.url, idle=rig.idle))
    host = RemoteDevice(rig.url, clock=lambda: rig.now, transport=line, patience_s=2.0)
    rig.kill()
    with pytest.raises(LinkLost, match="nobody answers .* Not one byte came"):
        host.open()
    rig.start()
    host.open()
    rig.kill()
    with pytest.raises(DeviceGone, match="has not answered .* Not one byte came"):
        host.run(WHOLE, rows(1.0))


def test_a_line_that_breaks_at_the_first_greeting_fails_at_once() -> None:
    rig = Rig()
    line = Hinting(MemoryTransport(rig.url, idle=rig.idle))
    line.broken = True
    host = RemoteDevice(rig.url, clock=lambda: rig.now, transport=line)
    start = rig.now
    with pytest.raises(LinkLost, match="the port is gone"):
        host.open()
    assert rig.now == start and host.state == "new"
    line.broken = False
    host.run(WHOLE, rows(1.0))


def test_a_line_that_breaks_while_greeting_anew_is_waited_for_without_spinning() -> None:
    rig = Rig()
    line = Hinting(MemoryTransport(rig.url, idle=rig.idle))
    host = RemoteDevice(rig.url, clock=time.monotonic, transport=line, patience_s=0.5)
    host.open()
    line.broken, steps = True, 0
    step = host._step

    def counted(patience: float) -> None:
        nonlocal steps
        steps += 1
        step(patience)

    host._step = counted  # type: ignore[method-assign]
    with pytest.raises(DeviceGone):
        host.run(WHOLE, rows(1.0))
    assert steps < 30
    host.close()


def test_the_line_about_parking_leaves_the_time_to_the_log(caplog: Any) -> None:
    rig = Rig()
    host = rig.host()
    host.run(WHOLE, rows(1.0))
    with caplog.at_level(logging.WARNING, "hzo_hil.server"):
        host.park()
    assert [r.getMessage() for r in caplog.records] == ["parked counting: the host asked for it"]
