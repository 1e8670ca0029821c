"""The pipelined fake: the same answers, late, out of order or never, as scripted."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hzo_hil.devices.api import Query, Segment
from hzo_hil.devices.errors import CapabilityError, DeviceRebooted, LinkLost
from hzo_hil.devices.fake import FakeDevice, Script

WHOLE = Segment(0, 2)


def device(script: Script | None = None, **options):
    options = {"virtual_time": True, "window": 6, "dtype": "float64"} | options
    return FakeDevice.mlp([3, 4, 2], script=script, pipelined=True, **options)


def query(number: int) -> Query:
    return Query(WHOLE, np.full((2, 3), float(number)))


def collect(fake, count: int, timeout: float = 1.0, polls: int = 100):
    """Tickets and answers in the order they came."""
    found = []
    for _ in range(polls):
        found += fake.poll(timeout)
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} of {count} answers after {polls} polls")


def test_answers_are_those_of_the_blocking_device():
    fake = device()
    tickets = {fake.submit(query(n)): n for n in range(6)}
    answers = collect(fake, 6)
    assert [ticket for ticket, _ in answers] == list(tickets)
    for ticket, reply in answers:
        assert np.array_equal(reply.outputs, fake.run(WHOLE, query(tickets[ticket]).inputs).outputs)


def test_reordering_is_seeded_and_changes_no_answer():
    def order(seed: int):
        fake = device(Script(seed=seed, reorder=True))
        for n in range(6):
            fake.submit(query(n))
        return collect(fake, 6)

    straight = dict(collect_straight())
    first, again, other = order(1), order(1), order(2)
    assert [t for t, _ in first] == [t for t, _ in again] != [t for t, _ in other]
    for ticket, reply in [*first, *other]:
        assert np.array_equal(reply.outputs, straight[ticket].outputs)


def collect_straight():
    fake = device()
    for n in range(6):
        fake.submit(query(n))
    return collect(fake, 6)


def test_a_delayed_answer_lets_the_others_pass():
    fake = device(Script(latency_s=0.1, delay={0: 2.0}))
    for n in range(3):
        fake.submit(query(n))
    assert [ticket for ticket, _ in fake.poll(0.5)] == [1, 2]
    assert fake.seconds == pytest.approx(0.1)
    assert fake.poll(1.0) == []
    assert fake.seconds == pytest.approx(1.1)
    assert [ticket for ticket, _ in fake.poll(5.0)] == [0]
    assert fake.seconds == pytest.approx(2.1)


def test_real_time_waits_no_longer_than_asked():
    fake = device(Script(latency_s=0.4), virtual_time=False)
    fake.submit(query(0))
    start = time.monotonic()
    assert fake.poll(0.01) == []
    assert 0.01 <= time.monotonic() - start < 0.4
    assert len(fake.poll(10.0)) == 1
    assert 0.4 <= time.monotonic() - start < 5
    assert fake.poll(10.0) == []  # nothing is on its way
    assert time.monotonic() - start < 5


def test_failures_come_in_place_of_replies():
    fake = device(Script(lose={1}, reboot_at={3}))
    for n in range(5):
        fake.submit(query(n))
    kinds = [type(answer).__name__ for _, answer in collect(fake, 5)]
    assert kinds == ["Reply", "LinkLost", "Reply", "DeviceRebooted", "DeviceRebooted"]


def test_writes_take_effect_between_the_queries_around_them():
    fake = device()
    before = fake.run(WHOLE, query(0).inputs).outputs
    first = fake.submit(query(0))
    fake.write(1, {name: value + 1 for name, value in fake.read(1).items()})
    second = fake.submit(query(0))
    answers = dict(collect(fake, 2))
    assert np.array_equal(answers[first].outputs, before)
    assert not np.any(answers[second].outputs == before)


def test_a_hanging_query_never_answers_until_it_is_cancelled():
    fake = device(Script(hang={0}))
    fake.submit(query(0))
    fake.submit(query(1))
    assert [ticket for ticket, _ in fake.poll(10.0)] == [1]
    assert fake.poll(1000.0) == []
    fake.cancel()
    assert fake.cancelled == 1
    ticket = fake.submit(query(2))
    assert [t for t, _ in fake.poll(1.0)] == [ticket]


def test_a_scripted_exception_leaves_submit_itself():
    fake = device(Script(fail={0: KeyboardInterrupt()}))
    with pytest.raises(KeyboardInterrupt):
        fake.submit(query(0))
    assert fake.poll(0.0) == []


def test_the_window_is_a_limit():
    fake = device(window=2)
    fake.submit(query(0))
    fake.submit(query(1))
    with pytest.raises(CapabilityError, match="beyond its window of 2"):
        fake.submit(query(2))
    assert (fake.most_in_flight, len(fake.calls)) == (2, 2)
    with pytest.raises(CapabilityError, match="a window of 0 lets nothing through"):
        device(window=0)


def test_errors_are_those_of_the_blocking_device():
    for script, error in [(Script(lose={0}), LinkLost), (Script(reboot_at={0}), DeviceRebooted)]:
        fake, blocking = device(script), FakeDevice.mlp([3, 4, 2], script=script, dtype="float64")
        fake.submit(query(0))
        with pytest.raises(error) as raised:
            blocking.run(WHOLE, query(0).inputs)
        assert str(fake.poll(0.0)[0][1]) == str(raised.value)
