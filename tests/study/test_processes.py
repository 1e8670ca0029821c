"""Local processes: a worker that dies or hangs loses nothing but time, and a run has the threads it was given."""

from __future__ import annotations

import os
import signal

import pytest

from tests.study.conftest import Lab, events

posix_only = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")


@posix_only
def test_a_run_whose_process_died_is_begun_again(lab: Lab, hzo) -> None:
    result = hzo("study", lab.study("deadly"), "--workers", 2, "--json")
    assert result.status == 0, result.err
    assert result.json["done"] == 3
    assert "was lost" in result.err
    assert sum(events(lab.path / "studies/study", "lost").values()) == 1


@posix_only
def test_a_run_that_kills_its_process_each_time_fails_and_stops_nothing(lab: Lab, hzo) -> None:
    file = lab.study("deadly", config={"always": True}, executor={"retries": 1})
    result = hzo("study", file, "--workers", 2, "--json")
    assert result.status == 1
    assert (result.json["done"], result.json["failed"]) == (2, 1)
    assert "lost 2 times" in result.err


@posix_only
def test_a_run_that_hangs_is_stopped_and_begun_again(lab: Lab, hzo) -> None:
    result = hzo("study", lab.study("hanging", executor={"timeout_s": 2}), "--workers", 2, "--json")
    assert result.json["done"] == 3, result.err
    assert "timeout_s" in result.err


@pytest.mark.parametrize("threads", [1, 3])
def test_a_run_has_the_threads_it_was_given(lab: Lab, hzo, threads: int) -> None:
    from hzo_hil import load_study

    before = os.environ.get("OMP_NUM_THREADS")
    assert hzo("study", lab.study("threads", executor={"threads": threads}), "--workers", 1).status == 0
    assert set(load_study("studies/study")["n"]) == {threads}
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_one_process_does_many_runs(lab: Lab, hzo) -> None:
    from hzo_hil import load_study

    assert hzo("study", lab.study(axes={"seed": list(range(8))}), "--workers", 2).status == 0
    assert len(set(load_study("studies/study")["pid"])) == 2


@pytest.mark.parametrize("device", [{"url": "zmq+tcp://127.0.0.1:1"}, {"driver": "lab:Chip"}])
def test_runs_on_one_real_device_wait_for_each_other(lab: Lab, hzo, device) -> None:
    from hzo_hil import load_study

    file = lab.study("using_device", config={"devices": {"chip": device}}, axes={"seed": list(range(6))})
    assert hzo("study", file, "--workers", 3).status == 0
    assert load_study("studies/study")["overlap"].sum() == 0


def test_what_a_run_prints_is_kept_beside_it(lab: Lab, hzo) -> None:
    result = hzo("study", lab.study("chatty"), "--workers", 1)
    assert "a word" not in result.out + result.err
    assert {p.read_text() for p in lab.path.glob("studies/study/runs/*/output.txt")} == {"a word\n"}
