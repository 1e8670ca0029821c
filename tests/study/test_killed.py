"""A study killed at any moment and resumed ends with the table of one that was left alone, no run done twice."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.study.conftest import TINY, Lab, doing, events, kill, values, wait_for

posix_only = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")


def done(folder: Path) -> int:
    return sum(1 for _ in folder.glob("runs/*/result.json"))


@posix_only
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_twice_at_random_moments_and_resumed(lab: Lab, seed: int) -> None:
    axes = {"x": {"field": "options.x", "values": [0.1 * n for n in range(10)]}, "seed": [0, 1, 2]}
    file = lab.study(axes=axes, config={"pause_s": 0.05})
    assert lab.run(file, "--study-dir", "left_alone", "--workers", 2).returncode == 0
    (lab.path / "log").unlink()
    moments = random.Random(seed)
    for resume in ([], ["--resume"]):
        process = lab.start(file, "--study-dir", "killed", "--workers", 2, *resume)
        before = done(lab.path / "killed")
        wait_for(lambda before=before: done(lab.path / "killed") > before)
        time.sleep(moments.uniform(0, 0.3))
        kill(process.pid)
        process.communicate()
    assert 0 < done(lab.path / "killed") < 30
    last = lab.run(file, "--study-dir", "killed", "--workers", 2, "--resume", "--json")
    assert last.returncode == 0, last.stderr
    assert json.loads(last.stdout.splitlines()[-1])["done"] == 30
    assert values(lab.path / "killed") == values(lab.path / "left_alone")
    assert max(events(lab.path / "killed", "done").values()) == 1
    # A run is written into the log an instant before its result: the kill may fall in between, once for each worker.
    assert sum(count - 1 for count in lab.times_run.values()) <= 2 * 2


@posix_only
def test_workers_die_with_the_process_that_started_them(lab: Lab) -> None:
    file = lab.study(config={"pause_s": 1.0}, axes={"seed": list(range(20))})
    process = lab.start(file, "--workers", 2)
    wait_for(lambda: len(events(lab.path / "studies/study", "started")) == 2)
    kill(process.pid)
    process.communicate()
    time.sleep(2.5)
    assert not lab.times_run, "workers went on"


@posix_only
def test_a_training_that_was_killed_goes_on_from_its_checkpoint(lab: Lab) -> None:
    config = {**TINY, "train": {"epochs": 60, "batch_size": 10}}
    raw = {"name": "long", "config": config, "axes": {"seed": [0, 1]}}
    file = lab.write(raw)
    assert lab.run(file, "--study-dir", "left_alone", "--workers", 1).returncode == 0
    process = lab.start(file, "--study-dir", "killed", "--workers", 1)
    wait_for(lambda: any(lab.path.glob("killed/runs/*/run/checkpoints/last.pt")))
    kill(process.pid)
    process.communicate()
    assert done(lab.path / "killed") < 2
    assert lab.run(file, "--study-dir", "killed", "--workers", 1, "--resume").returncode == 0
    assert values(lab.path / "killed") == values(lab.path / "left_alone")
    said = "".join(p.read_text(encoding="utf-8") for p in lab.path.glob("killed/runs/*/output.txt"))
    assert "resumed at step" in said
    assert yaml.safe_load(next(lab.path.glob("killed/runs/*/config.yaml")).read_text())["train"]["epochs"] == 60


@posix_only
def test_ctrl_c_keeps_what_was_reached_and_says_how_to_go_on(lab: Lab) -> None:
    file = lab.study(config={"pause_s": 2.0}, axes={"seed": list(range(6))})
    process = lab.start(file, "--workers", 2)
    wait_for(lambda: done(lab.path / "studies/study") >= 1 and len(doing(lab.path / "studies/study")) == 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "--resume" in said
    assert (lab.path / "studies/study/results.parquet").is_file()
    assert sum(events(lab.path / "studies/study", "interrupted").values()) == 2
    assert lab.run(file, "--workers", 2, "--resume").returncode == 0
    assert max(lab.times_run.values()) == 1
