"""Interrupting a run at any moment and going on with it: the outcome is that of a run that nobody interrupted.

Compared are parameters, optimiser, streams, metrics and summary, bit for bit, but for what a clock decided.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hzo_hil.config import parse_config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.records import RunFolder, without_clock
from hzo_hil.train import run

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"seconds", "wall_seconds", "device_seconds", "run_dir"}
REFERENCES = {"references": ["ideal", "deployed", "physics_aware"]}


def go(raw: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    raw = {**raw, "where": {**raw["where"], "run_dir": str(folder)}}
    return run(parse_config(raw), quiet=True, say=lambda text: None, **options)


def same(one: Any, two: Any, where: str = "") -> None:
    """Equal to the bit. `restored` counts how often a device was written again, which is not part of the outcome."""
    if isinstance(one, dict):
        hidden = CLOCKS | {"restored"}
        assert one.keys() - hidden == two.keys() - hidden, where
        for key in one.keys() - hidden:
            same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            same(a, b, f"{where}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, f"{where}: {one} and {two}"


def same_outcome(one: Path, two: Path) -> None:
    a, b = RunFolder.open(one), RunFolder.open(two)
    assert a.status == b.status == "finished"
    same([without_clock(row) for row in a.metrics()], [without_clock(row) for row in b.metrics()], "metrics")
    for name in ("last", "best"):
        same(a.load_checkpoint(name), b.load_checkpoint(name), name)
    import json

    same(*(json.loads((p / "summary.json").read_text(encoding="utf-8")) for p in (one, two)), "summary")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """The folder of an uninterrupted run of a configuration."""
    made: dict[str, Path] = {}

    def of(raw: dict[str, Any]) -> Path:
        key = yaml.safe_dump(raw)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            go(raw, made[key])
        return made[key]

    return of


# --- in this process: an end at every kind of moment -------------------------------------------------------------


class Killed(BaseException):
    """As kill -9 is: nothing more is written after it."""


def die_at(monkeypatch: pytest.MonkeyPatch, call: int, error: type[BaseException]) -> None:
    """Raise in the device's thread, at its n-th call; after `Killed` the run folder gets nothing more."""
    calls = [0]
    answer, save, mark = SimulatedDevice.run, RunFolder.save_checkpoint, RunFolder.mark

    def dying(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise error
        return answer(self, *arguments, **options)

    def dead() -> bool:
        return error is Killed and calls[0] >= call

    monkeypatch.setattr(SimulatedDevice, "run", dying)
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda self, *a: None if dead() else save(self, *a))
    monkeypatch.setattr(RunFolder, "mark", lambda self, *a: None if dead() else mark(self, *a))


@pytest.mark.parametrize(("call", "shared"), [(1, False), (14, False), (38, False), (62, False), (38, True)])
def test_killed_at_any_call_and_resumed_is_the_same_run(
    noisy: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, shared: bool
) -> None:
    """The books too: what a resumed run writes to the device again is not charged a second time."""
    raw = noisy({"method.shared": shared})
    with monkeypatch.context() as patched:
        die_at(patched, call, Killed)
        with pytest.raises(Killed):
            go(raw, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").status == "running"
    go(raw, tmp_path / "run", resume=True)
    same_outcome(whole(raw), tmp_path / "run")


@pytest.mark.parametrize("call", [20, 33])
def test_jacobians_averaged_over_steps_are_resumed_as_they_were(
    averaged: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patched:
        die_at(patched, call, Killed)
        with pytest.raises(Killed):
            go(averaged(), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status == "running" and folder.load_checkpoint()["step"] > 0
    go(averaged(), tmp_path / "run", resume=True)
    same_outcome(whole(averaged()), tmp_path / "run")


@pytest.mark.parametrize("call", [9, 37, 74])
def test_after_ctrl_c_not_a_finished_step_is_lost(
    noisy: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Parameters and curves are those of an uninterrupted run; the books hold what the lost step cost."""
    with monkeypatch.context() as patched:
        die_at(patched, call, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            go(noisy(), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status == "stopped"
    steps = [row["step"] for row in folder.metrics()]
    assert folder.load_checkpoint()["step"] == max(steps, default=0)
    go(noisy(), tmp_path / "run", resume=True)
    one, two = RunFolder.open(whole(noisy())), RunFolder.open(tmp_path / "run")
    a, b = one.load_checkpoint(), two.load_checkpoint()
    for name in ("model", "optimizer", "schedule", "evaluation", "best", "sums"):
        same(a[name], b[name], name)
    measured = ("step", "epoch", "loss", "train_accuracy", "test_loss", "test_accuracy")
    rows = [[{k: row.get(k) for k in measured} for row in f.metrics()] for f in (one, two)]
    assert rows[0] == rows[1]


DRIFTING = {
    "devices.chip.power_drift_std": 0.05,
    "devices.chip.power_drift_tau_s": 0.2,
    "devices.chip.laser_wander": 0.1,
    "devices.chip.wander_period_s": 1.0,
    "devices.chip.query_s": 1e-5,
    "devices.chip.options": {"layers": 2, "ports": 8, "activation": "tanh", "phase_drift_std": 0.05},
}


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
@pytest.mark.parametrize("call", [14, 38, 62])
def test_a_drifting_chip_goes_on_at_the_same_device_time(
    noisy: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: type[BaseException]
) -> None:
    """Neither the lost step nor what is written again moves its clock: answers depend on it."""
    raw = noisy(DRIFTING)
    with monkeypatch.context() as patched:
        die_at(patched, call, error)
        with pytest.raises(error):
            go(raw, tmp_path / "run")
    go(raw, tmp_path / "run", resume=True)
    one, two = (RunFolder.open(f).load_checkpoint() for f in (whole(raw), tmp_path / "run"))
    assert one["clocks"][0]["writes"] > 20
    for name in ("model", "optimizer", "clocks", "evaluation", "best", "sums"):
        same(one[name], two[name], name)
    if error is Killed:
        same_outcome(whole(raw), tmp_path / "run")


def test_killed_twice_and_between_the_two_files_of_an_epoch(
    noisy: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = RunFolder.save_checkpoint
    for name in ("best", "last"):
        with monkeypatch.context() as patched:

            def dying(self: Any, state: Any, to: str = "last", name: str = name) -> Any:
                save(self, state, to)
                if to == name and state["step"] % 6 == 0:
                    patched.setattr(RunFolder, "save_checkpoint", lambda self, *a: None)
                    raise Killed

            patched.setattr(RunFolder, "save_checkpoint", dying)
            with pytest.raises(Killed):
                go(noisy(), tmp_path / "run", resume=(tmp_path / "run").exists())
    go(noisy(), tmp_path / "run", resume=True)
    same_outcome(whole(noisy()), tmp_path / "run")


def test_a_killed_reference_goes_on_where_it_was(
    noisy: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Physics-aware training begins after 75 calls of training in the loop, and makes one call a step."""
    raw = noisy(REFERENCES)
    raw["network"] = raw["network"][1:]
    with monkeypatch.context() as patched:
        die_at(patched, 85, Killed)
        with pytest.raises(Killed):
            go(raw, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.load_checkpoint("last")["step"] == 18 > folder.load_checkpoint("physics_aware")["step"] > 0
    go(raw, tmp_path / "run", resume=True)
    same_outcome(whole(raw), tmp_path / "run")


# --- a real process ----------------------------------------------------------------------------------------------


def started(raw: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    command = [sys.executable, "-m", "hzo_hil.cli", "train", str(config), "--run-dir", str(folder), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(command, env=environment, cwd=folder.parent, **pipes)


def wait_for_row(folder: Path, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        file = folder / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.002)
    raise AssertionError(f"no {rows} rows: {process.communicate()}")


def long(noisy: Any) -> dict[str, Any]:
    raw: dict[str, Any] = noisy({"train.epochs": 4, **REFERENCES})
    raw["network"] = raw["network"][1:]
    return raw


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9 on Windows")
@pytest.mark.slow
def test_kill_9_resume_and_move(noisy: Any, whole: Any, tmp_path: Path) -> None:
    """A process is killed at a moment nobody chose; its folder is moved and goes on there."""
    raw = long(noisy)
    process = started(raw, tmp_path / "run")
    wait_for_row(tmp_path / "run", 5 + time.time_ns() % 22, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert RunFolder.open(tmp_path / "elsewhere").status == "running"
    go(raw, tmp_path / "elsewhere", resume=True)
    same_outcome(whole(raw), tmp_path / "elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--resume", "--force"])
def test_a_run_under_way_is_left_alone(noisy: Any, whole: Any, hzo: Any, tmp_path: Path, how: str) -> None:
    """Two processes that go on with one run would write over each other's checkpoints and metrics."""
    raw = long(noisy)
    process = started(raw, tmp_path / "run")
    wait_for_row(tmp_path / "run", 5, process)
    second = hzo("train", tmp_path / "run.yaml", "--run-dir", tmp_path / "run", how)
    assert process.poll() is None, "too fast to meet"
    assert second.status == 2 and "another process is training in" in second.err
    _, err = process.communicate()
    assert process.returncode == 0, err
    same_outcome(whole(raw), tmp_path / "run")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to whole consoles only")
@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_ctrl_c_and_a_polite_kill(noisy: Any, tmp_path: Path, sent: signal.Signals, status: int) -> None:
    process = started(long(noisy), tmp_path / "run")
    wait_for_row(tmp_path / "run", 9, process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert out == "" and "Traceback" not in err
    assert f"go on with: hzo-hil train {tmp_path / 'run' / 'config.yaml'} --resume --run-dir {tmp_path / 'run'}" in err
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status == "stopped"
    assert folder.load_checkpoint()["step"] >= 8


# --- what may change, and what not -------------------------------------------------------------------------------


@pytest.fixture
def half(noisy: Any, tmp_path: Path) -> Path:
    go(noisy({"budget.max_queries": 1000}), tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").status == "stopped"
    return tmp_path / "run"


def test_another_what_is_refused_with_the_fields_that_differ(noisy: Any, half: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        go(noisy({"train.optimizer.lr": 0.5, "seed": 6}), half, resume=True)
    text = str(caught.value)
    assert "was run with another configuration and cannot be resumed with this one:" in text
    assert "seed: 5 -> 6" in text and "train.optimizer.lr: 0.02 -> 0.5" in text
    assert "Only the sections where and budget, and where a device is reached, may change" in text
    assert RunFolder.open(half).status == "stopped"


def test_another_where_and_budget_are_taken(noisy: Any, half: Path) -> None:
    go(noisy({"where.tensorboard": False, "where.threads": 1, "where.picture": False}), half, resume=True)
    assert RunFolder.open(half).status == "finished"


def test_another_device_asks_for_other_device(noisy: Any, half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(config: Any) -> Any:
        from hzo_hil.opening import open_device

        return {n: open_device(s.model_copy(update={"identity": "bench-7"})) for n, s in config.devices.items()}

    monkeypatch.setattr("hzo_hil.train.open_devices", elsewhere)
    with pytest.raises(
        ConfigError, match="chip: onn-calibrated_chip-5 and would go on with chip: bench-7.*--other-device"
    ):
        go(noisy(), half, resume=True)
    assert RunFolder.open(half).status == "stopped"
    with pytest.warns(UserWarning, match="was trained on onn-calibrated_chip-5 and is loaded on bench-7"):
        go(noisy(), half, resume=True, other_device=True)
    assert '"bench-7"' in (half / "device.json").read_text(encoding="utf-8")


def test_the_newest_unfinished_run_is_found(noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = noisy({"budget.max_queries": 1000})
    summary = run(parse_config(raw), quiet=True, say=lambda text: None)
    assert Path(summary["run_dir"]).parent == Path("runs")
    (tmp_path / "runs" / "noisy-broken").mkdir()
    (tmp_path / "runs" / "noisy-broken" / "run.json").write_text("{", encoding="utf-8")
    again = run(parse_config(noisy()), resume=True, quiet=True, say=lambda text: None)
    assert again["run_dir"] == summary["run_dir"] and again["stopped"] is None
    with pytest.raises(ConfigError, match="no unfinished run of this configuration under .*runs; give --run-dir"):
        run(parse_config(raw), resume=True, quiet=True, say=lambda text: None)


def test_a_finished_run_is_only_reported_again(noisy: Any, tmp_path: Path) -> None:
    one = go(noisy(), tmp_path / "run")
    two = go(noisy(), tmp_path / "run", resume=True)
    same(one, two)


def test_a_damaged_device_file_is_explained(noisy: Any, half: Path) -> None:
    (half / "device.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"device.json is damaged.*add --other-device"):
        go(noisy(), half, resume=True)
