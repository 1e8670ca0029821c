"""The window by itself: span, bytes, what is sent again and when, and the verdict on silence."""

from __future__ import annotations

import math

import pytest

from hzo_hil.devices.wire.conversation import Request
from hzo_hil.devices.wire.window import MARGIN_S, Window


def asked(seq: int, size: int = 10) -> Request:
    return Request(seq, seq, [], size)


def seqs(requests: list[Request]) -> list[int]:
    return [r.seq for r in requests]


def test_credit_is_a_span_not_a_count() -> None:
    window = Window(credit=4)
    for seq in range(4):
        window.add(asked(seq), 0.0)
    for seq in (1, 2, 3):
        assert window.take(seq, 0.1) is not None
    assert not window.room(asked(4)) and len(window) == 1
    window.take(0, 0.2)
    assert window.room(asked(4)) and window.room(asked(1000))


def test_bytes_are_limited_but_one_request_always_fits() -> None:
    window = Window(credit=9, byte_limit=100)
    assert window.room(asked(1, 1000))
    window.add(asked(1, 60), 0.0)
    assert not window.room(asked(2, 41)) and window.room(asked(2, 40))


def test_three_later_answers_mean_lost() -> None:
    window = Window(credit=8)
    for seq in range(5):
        window.add(asked(seq), 0.0)
    for seq in (1, 2):
        window.take(seq, 0.01)
    assert window.due(0.01) == []
    window.take(3, 0.01)
    assert seqs(window.due(0.01)) == [0] and window.due(0.01) == [] and window.resent == 1
    window.take(4, 0.01)  # sent before the resend: says nothing about it
    assert window.due(0.01) == []


def test_a_pong_tells_of_everything_sent_before_the_ping() -> None:
    window = Window(credit=8)
    window.add(asked(1), 0.0)
    assert not window.wants_ping(0.1) and window.wants_ping(0.21)
    window.pinged(0.21)
    window.add(asked(2), 0.22)
    window.heard(0.3)
    window.pong(0.3)
    assert seqs(window.due(0.3)) == [1]


def test_pings_back_off_and_stop_when_heard() -> None:
    window = Window(credit=8, longest_call_s=100)
    window.add(asked(1), 0.0)
    pings, now = [], 0.0
    while now < 6.0:
        if window.wants_ping(now):
            window.pinged(now)
            pings.append(now)
        now += 0.01
    gaps = [b - a for a, b in zip(pings, pings[1:], strict=False)]
    assert (
        all(b >= a - 1e-6 for a, b in zip(gaps, gaps[1:], strict=False))
        and gaps[-1] == pytest.approx(1.0, abs=0.02)
        and len(pings) < 10
    )
    window.heard(6.0)
    assert not window.wants_ping(6.1) and window.wants_ping(6.3)


def test_without_probes_each_request_is_repeated_in_its_own_time() -> None:
    window = Window(credit=8, probes=False, shortest_s=0.02, longest_call_s=10)
    for seq in range(20):
        window.add(asked(seq), seq * 1.0)
        window.take(seq, seq * 1.0 + 0.01)
    window.add(asked(20), 100.0)
    assert window.wait(100.0) == pytest.approx(0.02, abs=0.02)
    assert window.due(100.01) == []
    assert seqs(window.due(100.05)) == [20]
    assert window.due(100.06) == [] and window.wait(100.06) < 0.2
    assert not window.wants_ping(101.0)


@pytest.mark.parametrize("probes", [True, False])
def test_silence_is_quiet_once_then_lost(probes: bool) -> None:
    window = Window(credit=8, longest_call_s=1.0, probes=probes)
    window.add(asked(1), 5.0)
    window.due(5.9)
    assert window.verdict(5.0 + 1.0 + MARGIN_S - 0.01) == "fine"
    assert window.verdict(5.0 + 1.0 + MARGIN_S) == "quiet"
    assert seqs(window.due(6.4)) == [1]
    assert window.verdict(6.5) == "fine"
    assert window.verdict(5.0 + 1.0 + 2 * MARGIN_S + 0.01) == "lost"
    window.heard(7.0)
    assert window.verdict(7.0) == "fine"


def test_a_needless_resend_teaches_patience() -> None:
    window = Window(credit=8, probes=False, shortest_s=0.02, longest_call_s=10)
    for seq in range(10):
        window.add(asked(seq), seq * 1.0)
        window.take(seq, seq * 1.0 + 0.025)
    seq, now = 10, 100.0
    for _ in range(40):  # the line has filled up: answers take 60 ms from now on
        for k in range(4):
            window.add(asked(seq + k), now)
        for later in (0.01, 0.02, 0.03, 0.04, 0.05, 0.059):
            window.due(now + later)
        for k in range(4):
            window.take(seq + k, now + 0.06)
        seq, now = seq + 4, now + 1.0
    before = window.resent
    window.add(asked(seq), now)
    assert window.due(now + 0.059) == [] and window.resent == before < 20


def test_patience_beyond_the_slowest_probe_is_kept() -> None:
    for probes in (True, False):
        window = Window(credit=8, probes=probes, longest_call_s=100)
        for seq in range(20):  # 9600 baud: 3 s each
            window.add(asked(seq), seq * 10.0)
            window.take(seq, seq * 10.0 + 3.0)
        window.add(asked(20), 1000.0)
        window.heard(1000.0)
        assert not window.due(1002.9) and not window.wants_ping(1002.9)


def test_silence_while_nothing_is_owed_is_no_fault() -> None:
    window = Window(longest_call_s=1.0)
    window.heard(0.0)
    assert window.verdict(1000.0) == "fine" and window.wait(1000.0) == math.inf
    window.add(asked(1), 1000.0)
    assert window.verdict(1000.5) == "fine"


def test_wait_never_sleeps_past_something_due() -> None:
    for probes in (True, False):
        window = Window(credit=8, longest_call_s=0.5, probes=probes)
        window.add(asked(1), 0.0)
        now, seen = 0.0, []
        while now < 3.0:
            now += max(window.wait(now), 1e-3)
            verdict = window.verdict(now)
            seen += [verdict] if verdict != "fine" else []
            window.due(now)
            if window.wants_ping(now) or verdict == "quiet":
                window.pinged(now)
            if verdict == "lost":
                break
        assert seen == ["quiet", "lost"] and now == pytest.approx(0.5 + 2 * MARGIN_S, abs=0.01)


def test_a_new_connection_makes_everything_due() -> None:
    window = Window(credit=8)
    for seq in (3, 4):
        window.add(asked(seq), 0.0)
    window.reopened(9.0)
    assert window.behind and seqs(window.due(9.0)) == [3, 4] and window.verdict(9.1) == "fine"
    assert seqs(window.clear()) == [3, 4] and len(window) == 0 and window.bytes == 0
