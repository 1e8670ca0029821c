"""Run folders: complete after a kill at any moment, valid JSON, errors that say what to do, a picture."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from hzo_hil import environment as environment_module
from hzo_hil import runfiles
from hzo_hil.checkpoints import load_checkpoint, save_checkpoint
from hzo_hil.compare import differences, what_hash
from hzo_hil.devices.errors import BadInput, HzoError
from hzo_hil.metricsfile import MetricsFile, read_metrics, without_clock
from hzo_hil.picture import _spread, draw_curves
from hzo_hil.records import FORMAT, RunFolder, RunFolderError, TensorBoardLog, write_json

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"name": "onn digits", "seed": 3, "method": {"probes": "hadamard", "eps": 1e-5}, "where": {"threads": 2}}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "run", CONFIG) as folder:
        yield folder


def state(step: int) -> dict[str, Any]:
    """A state whose every value tells its step."""
    return {"step": step, "weights": torch.full((4000,), float(step)), "lists": [{"step": step}, (step, None)]}


def fail(monkeypatch: pytest.MonkeyPatch, number: int, suffix: str = ".tmp") -> None:
    """From here on, opening a file of this suffix for writing fails as the system would."""
    real = Path.open

    def refuse(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if self.name.endswith(suffix) and "r" not in mode:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)


# ---- creating and opening


def test_a_new_run_holds_its_configuration_and_environment(run: RunFolder) -> None:
    assert run.config == CONFIG
    about = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert (about["format"], about["status"], about["what_hash"]) == (FORMAT, "running", what_hash(CONFIG))
    made_with = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    assert made_with["packages"]["torch"] == torch.__version__
    assert made_with["packages"]["numpy"] == np.__version__
    assert made_with["threads"] == torch.get_num_threads()
    assert not list(run.path.rglob("*.tmp"))


def test_the_default_path_names_the_run_and_never_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    first, second = (RunFolder.create(None, CONFIG, where_fields=["where"]) for _ in range(2))
    tail = what_hash(CONFIG, ["where"])[:8]
    assert first.path == Path("runs") / f"onn-digits-20260102-030405-{tail}"
    assert second.path == Path("runs") / f"onn-digits-20260102-030405-{tail}-2"
    assert RunFolder.create(None, {"name": "../../up"}).path.parent == Path("runs")


def test_what_was_written_is_read_back_after_a_copy(run: RunFolder, tmp_path: Path) -> None:
    run.write_device({"identity": "chip 7", "phases": np.arange(3.0), "gain": np.float32(2.0)})
    run.log({"step": 1, "loss": 0.5})
    run.save_checkpoint(state(1))
    run.finish({"accuracy": {"in_loop": 0.9}, "queries": np.int64(12)}, "stopped")
    shutil.copytree(run.path, tmp_path / "elsewhere")
    copy = RunFolder.open(tmp_path / "elsewhere")
    assert (copy.status, copy.config, copy.metrics()) == ("stopped", CONFIG, [{"step": 1, "loss": 0.5}])
    assert copy.load_checkpoint()["step"] == 1
    device = json.loads((copy.path / "device.json").read_text(encoding="utf-8"))
    assert device == {"identity": "chip 7", "phases": [0.0, 1.0, 2.0], "gain": 2.0}
    assert json.loads((copy.path / "summary.json").read_text(encoding="utf-8"))["queries"] == 12
    copy.mark("running")
    assert RunFolder.open(copy.path).status == "running"


def test_a_used_folder_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds a run already. Go on with it \(--resume\).*--run-dir"):
        RunFolder.create(run.path, CONFIG)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("words", encoding="utf-8")
    with pytest.raises(
        RunFolderError, match=r"thesis is not empty \(chapter.txt\) and holds no run that could be resumed"
    ):
        RunFolder.create(thesis, CONFIG)
    assert [file.name for file in thesis.iterdir()] == ["chapter.txt"]


def test_force_moves_the_earlier_run_aside_and_keeps_all_of_it(run: RunFolder) -> None:
    run.log({"step": 1})
    run.save_checkpoint(state(1))
    run.close()
    (run.path / "notes.txt").write_text("mine", encoding="utf-8")
    for number in (1, 2):
        fresh = RunFolder.create(run.path, {"name": f"again {number}"}, force=True)
        assert fresh.metrics() == []
        assert not fresh.has_checkpoint()
        fresh.close()
    first = RunFolder.open(run.path / "earlier-1")
    assert (first.config, first.metrics(), first.load_checkpoint()["step"]) == (CONFIG, [{"step": 1}], 1)
    assert RunFolder.open(run.path / "earlier-2").config == {"name": "again 1"}
    assert (run.path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_one_at_a_time_writes_and_anybody_reads(run: RunFolder) -> None:
    other = RunFolder.open(run.path)
    with pytest.raises(RunFolderError, match=r"another process is training in .*run: wait for it, stop it"):
        other.hold()
    with pytest.raises(RunFolderError, match="another process is training"):
        RunFolder.create(run.path, CONFIG, force=True)
    assert other.config == CONFIG and not (run.path / "earlier-1").exists()
    run.close()
    with other:
        other.hold()
        with pytest.raises(RunFolderError, match="another process is training"):
            run.hold()


def test_a_run_that_could_not_begin_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        fail(broken, errno.ENOSPC)
        with pytest.raises(RunFolderError, match="The disk is full") as kept:
            RunFolder.create(tmp_path / "run", CONFIG)
    RunFolder.create(tmp_path / "run", CONFIG, force=True).close()
    assert kept.value.__traceback__ is not None  # as a notebook keeps it, with what its frames hold


def test_what_is_no_run_folder_is_said(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="nothing is not a run folder: it is not there"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(RunFolderError, match="is not a run folder: it has no run.json"):
        RunFolder.open(tmp_path)
    (run.path / "run.json").write_text('{"format": 1, "sta', encoding="utf-8")
    with pytest.raises(RunFolderError, match="run.json is damaged"):
        RunFolder.open(run.path)
    for content in ("[1]", '{"format": true}', '{"format": 0}'):
        (run.path / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(RunFolderError, match="has no format version"):
            RunFolder.open(run.path)


def test_a_newer_format_is_refused_with_the_version_that_made_it(run: RunFolder) -> None:
    write_json(run.path / "run.json", {"format": FORMAT + 1, "hzo_hil": "9.9"})
    with pytest.raises(
        RunFolderError, match=rf"has format {FORMAT + 1} \(made by hzo-hil 9.9\).*up to {FORMAT}. Install"
    ):
        RunFolder.open(run.path)


@pytest.mark.parametrize("content", ["a: [1", "just text"])
def test_a_damaged_configuration_is_said(run: RunFolder, content: str) -> None:
    (run.path / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(RunFolderError, match="config.yaml is damaged"):
        _ = RunFolder.open(run.path).config


def test_an_unknown_status_is_refused(run: RunFolder) -> None:
    with pytest.raises(BadInput, match="'done' is none of running, finished, stopped, failed"):
        run.mark("done")  # type: ignore[arg-type]


# ---- metrics


def test_metrics_are_valid_json_whatever_the_numbers(run: RunFolder) -> None:
    run.log(
        {"step": 1, "loss": float("nan"), "list": [np.inf, 1.0], "tensor": torch.tensor(2.5), "text": "é\n\r\u2028"}
    )
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == run.metrics()[0]
    assert run.metrics() == [{"step": 1, "loss": None, "list": [None, 1.0], "tensor": 2.5, "text": "é\n\r\u2028"}]


def test_metrics_that_json_cannot_hold_are_refused_before_a_byte_is_written(run: RunFolder) -> None:
    with pytest.raises(BadInput, match="a value of type object cannot be written as JSON"):
        run.log({"step": 1, "thing": object()})
    assert not (run.path / "metrics.jsonl").exists()


def test_a_row_is_on_the_disk_as_soon_as_it_is_logged(run: RunFolder) -> None:
    for step in range(3):
        run.log({"step": step})
        assert [row["step"] for row in read_metrics(run.path)] == list(range(step + 1))


def test_resuming_drops_later_rows_and_the_torn_line(run: RunFolder) -> None:
    for step in range(1, 8):
        run.log({"step": step})
        run.log({"note": f"after {step}"})
    run.close()
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "lo')
    again = RunFolder.open(run.path)
    assert len(again.metrics()) == 14
    assert again.truncate_metrics(5) == 4
    assert again.metrics()[-2:] == [{"step": 5}, {"note": "after 5"}]
    again.log({"step": 6, "second": True})
    assert again.metrics()[-1] == {"step": 6, "second": True}
    assert again.truncate_metrics(0) == 11
    assert (again.metrics(), again.truncate_metrics(0)) == ([], 0)


def test_logging_after_a_torn_line_does_not_join_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "loss": 0.')
    with MetricsFile(path) as metrics:
        metrics.log({"step": 2})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_damaged_line_in_the_middle_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 3}\n')
    with pytest.warns(UserWarning, match="1 damaged lines were left out, the first is line 2"):
        assert read_metrics(path) == [{"step": 1}, {"step": 3}]


def test_clock_fields_are_told_from_results() -> None:
    row = {"step": 1, "loss": 0.5, "wall_seconds": 3.0, "device_seconds": 2.0, "time": "now", "queries_per_second": 9}
    assert without_clock(row) == {"step": 1, "loss": 0.5}


# ---- checkpoints


def test_a_checkpoint_round_trip_with_an_optimiser(run: RunFolder) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    run.save_checkpoint(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    )
    loaded = run.load_checkpoint()
    assert torch.equal(loaded["model"]["weight"], model.weight)
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert torch.equal(loaded["rng"], torch.get_rng_state())


def test_best_and_last_are_apart(run: RunFolder) -> None:
    run.save_checkpoint(state(1), "best")
    run.save_checkpoint(state(2))
    assert (run.load_checkpoint("best")["step"], run.load_checkpoint()["step"]) == (1, 2)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.ones(2), r"state\['a'\]\[1\] is a numpy.ndarray.*torch.from_numpy"),
        (np.float64(1.0), r"state\['a'\]\[1\] is a numpy.float64"),
        (Counter(), r"state\['a'\]\[1\] is a collections.Counter"),
        (lambda: 0, r"state\['a'\]\[1\] is a builtins.function"),
        ({Path("x"): 1}, r"a key of state\['a'\]\[1\] is a pathlib"),
    ],
)
def test_a_state_that_could_not_be_loaded_is_refused_when_saved(run: RunFolder, value: Any, where: str) -> None:
    run.save_checkpoint(state(1))
    with pytest.raises(BadInput, match=where):
        run.save_checkpoint({"a": [0, value]})
    assert run.load_checkpoint()["step"] == 1


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    elif how == "noise":
        content = bytearray(random.Random(1).randbytes(len(content)))
    else:  # a flipped bit among the weights, which torch itself reads without complaint
        content[content.find(torch.full((4,), 2.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", "noise", "bit"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run: RunFolder, how: str) -> None:
    run.save_checkpoint(state(1))
    run.save_checkpoint(state(2))
    damage(run.path / "checkpoints" / "last.pt", how)
    with pytest.warns(UserWarning, match=r"last.pt is damaged .*; using last.prev.pt in its place"):
        assert run.load_checkpoint()["step"] == 1
    damage(run.path / "checkpoints" / "last.prev.pt", "cut")
    with pytest.raises(RunFolderError, match=r"no usable checkpoint .*last.pt is damaged.*; last.prev.pt is damaged"):
        run.load_checkpoint()


def test_no_checkpoint_yet(run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=r"no checkpoint last.pt .* stopped before its first one"):
        run.load_checkpoint()


@pytest.mark.parametrize("renames", [0, 1])
def test_a_death_between_the_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    real, left = os.replace, [1 + renames]  # the first rename completes the new file itself

    def die(source: Any, target: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state(3))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path)["step"] == (3 if renames else 2)
    save_checkpoint(tmp_path, state(4))
    assert load_checkpoint(tmp_path)["step"] == 4


def test_a_pickle_that_runs_code_is_not_run(run: RunFolder) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(run.path / "bang"),)

    torch.save({"x": Bomb()}, run.path / "checkpoints" / "last.pt")
    with pytest.raises(RunFolderError, match="last.pt is damaged \\(UnpicklingError"):
        run.load_checkpoint()
    assert not (run.path / "bang").exists()


# ---- kill -9

CHILD = """
import sys, torch
from hzo_hil.records import RunFolder
run = RunFolder.open(sys.argv[1])
step = 0
if run.has_checkpoint():
    step = run.load_checkpoint()["step"]
    run.truncate_metrics(step)
while True:
    step += 1
    run.log({"step": step, "text": "x" * 3000})
    run.save_checkpoint({"step": step, "weights": torch.full((20000,), float(step))})
    run.write_device({"step": step})
    if step % 5 == 0:
        print(step, flush=True)
"""


def kill_while_writing(path: Path, wait_s: float) -> None:
    """Start a process that logs and saves without pause; kill it `wait_s` after it got going."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, env=environ)
    try:
        assert child.stdout is not None
        assert child.stdout.readline(), "the child died by itself"
        time.sleep(wait_s)
        assert child.poll() is None, "the child died by itself"
    finally:
        child.kill()
        child.communicate()


def test_kill_9_leaves_a_folder_to_resume_from(run: RunFolder) -> None:
    """No chance of a false alarm: what is asserted holds at every moment; the seed varies only which are tried."""
    moments = random.Random(20)
    reached = 0
    for _ in range(3):
        kill_while_writing(run.path, moments.uniform(0.0, 0.15))
        again = RunFolder.open(run.path)
        saved = again.load_checkpoint()
        assert torch.equal(saved["weights"], torch.full((20000,), float(saved["step"])))
        assert saved["step"] > reached
        steps = [row["step"] for row in again.metrics()]
        assert steps == list(range(1, len(steps) + 1))
        assert saved["step"] <= len(steps) <= saved["step"] + 2
        assert json.loads((run.path / "device.json").read_text(encoding="utf-8"))["step"] in range(
            saved["step"] - 2, saved["step"] + 1
        )
        assert (again.status, again.config) == ("running", CONFIG)
        reached = saved["step"]


# ---- a disk that fails


def test_a_path_through_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            RunFolderError, match=r"cannot make the folder \(.*A part of this path is a file.*--run-dir"
        ):
            RunFolder.create(path, CONFIG)
    assert issubclass(RunFolderError, HzoError)


def test_a_read_only_folder_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, errno.EACCES)
    with pytest.raises(RunFolderError, match=r"cannot write config.yaml \(Permission denied\).*read-only.*--run-dir"):
        RunFolder.create(tmp_path / "run", CONFIG)


def test_a_full_disk_loses_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_checkpoint(state(1))
    run.save_checkpoint(state(2))
    fail(monkeypatch, errno.ENOSPC)
    with pytest.raises(
        RunFolderError, match=r"cannot write last.pt \(No space left.*written before is complete: free some"
    ):
        run.save_checkpoint(state(3))
    with pytest.raises(RunFolderError, match="cannot write summary.json"):
        run.finish({"queries": 1})
    monkeypatch.undo()
    assert run.load_checkpoint()["step"] == 2
    assert load_checkpoint(run.path / "checkpoints", "last.prev")["step"] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk_loses_nothing(small_disk: Path) -> None:
    with RunFolder.create(small_disk / "run", CONFIG) as run:
        run.save_checkpoint(state(1))
        saved = 0
        with pytest.raises(RunFolderError, match="disk is full"):
            for step in range(10_000):
                run.log({"step": step, "text": "x" * 999})
                saved = step + 1
        with pytest.raises(RunFolderError, match="disk is full"):
            run.save_checkpoint({**state(2), "large": torch.zeros(100_000)})
        assert [row["step"] for row in run.metrics()] == list(range(saved))
        assert (run.path / "metrics.jsonl").read_bytes().endswith(b"\n")
        assert run.load_checkpoint()["step"] == 1
        assert RunFolder.open(run.path).config == CONFIG
        run.truncate_metrics(20)
        run.log({"step": 21})
        run.save_checkpoint(state(2))
        assert (run.metrics()[-1]["step"], run.load_checkpoint()["step"]) == (21, 2)


def test_a_half_written_row_is_taken_back(tmp_path: Path) -> None:
    class HalfDisk:
        """A file on which one write stores half of the bytes and the next fails."""

        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def write(self, data: Any) -> int:
            self.calls += 1
            if self.calls == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data[: len(data) // 2]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.log({"step": 1})
    metrics._file = HalfDisk(metrics._file)  # type: ignore[assignment]
    with pytest.raises(RunFolderError, match=r"cannot write metrics.jsonl \(No space left"):
        metrics.log({"step": 2})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_windows_readers_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = os.replace, [3]

    def busy(source: Any, target: Any) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise PermissionError(errno.EACCES, "used by another process")
        real(source, target)

    (tmp_path / "new").write_text("new", encoding="utf-8")
    monkeypatch.setattr(runfiles, "REPLACE_WAIT_S", 0.0)
    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(PermissionError):
        runfiles.replace(tmp_path / "new", tmp_path / "old")
    source, target = str(tmp_path / "new"), str(tmp_path / "old")
    monkeypatch.setattr(os, "name", "nt")
    runfiles.replace(source, target)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert (tmp_path / "old").read_text(encoding="utf-8") == "new"


# ---- environment, comparison


def test_the_command_line_is_kept_without_secrets() -> None:
    line = [
        "train",
        "a.yaml",
        "--key",
        "abc",
        "--api-token=x",
        "--set",
        "device.secret=s",
        "zmq+tcp://u:p@host:1",
        "k=v",
    ]
    assert environment_module.hide_secrets(line) == [
        *("train", "a.yaml", "--key", "***", "--api-token=***", "--set", "device.secret=***"),
        *("zmq+tcp://***@host:1", "k=v"),
    ]


def test_no_environment_variable_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HZO_TEST_SECRET", "correct-horse-battery")
    assert "correct-horse-battery" not in json.dumps(environment_module.environment())


def test_the_commit_is_kept(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "a.txt").write_text("1", encoding="utf-8")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "a.txt"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    clean = environment_module.git_commit(tmp_path)
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"])
    assert clean["changed"] is False
    (tmp_path / "a.txt").write_text("2", encoding="utf-8")
    assert environment_module.git_commit(tmp_path) == {**clean, "changed": True}


def test_no_git_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment_module.git_commit(tmp_path) is None


def test_the_hash_covers_what_and_not_where() -> None:
    other_order = {
        "where": {"threads": 8},
        "method": {"eps": 1e-5, "probes": "hadamard"},
        "seed": 3,
        "name": "onn digits",
    }
    assert what_hash(CONFIG, {"where"}) == what_hash(other_order, {"where"})
    assert what_hash(CONFIG) != what_hash(other_order)
    assert what_hash(CONFIG, {"where"}) != what_hash({**CONFIG, "seed": 4}, {"where"})
    assert what_hash({"a": float("inf")}) != what_hash({"a": None})
    assert what_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_the_hash_survives_the_yaml_file(run: RunFolder) -> None:
    assert what_hash(RunFolder.open(run.path).config) == what_hash(CONFIG)
    odd = {"tiny": 1e-300, "third": 1 / 3, "inf": float("inf"), "yes": "yes", "no": None, "n": "1e5", "tuple": (1, 2)}
    assert what_hash(yaml.safe_load(yaml.safe_dump(runfiles.plain(odd, finite=False)))) == what_hash(odd)


def test_differences_are_named_with_both_values() -> None:
    new = {**CONFIG, "seed": 3.0, "method": {"probes": "random", "repeats": [1, 2]}, "where": {"threads": 1}}
    assert differences(CONFIG, new, {"where"}) == [
        "method.eps: 1e-05 -> (absent)",
        'method.probes: "hadamard" -> "random"',
        "method.repeats: (absent) -> [1, 2]",
        "seed: 3 -> 3.0",
    ]
    assert differences(CONFIG, CONFIG) == []
    assert differences({"a": float("nan")}, {"a": float("nan")}) == []


# ---- the picture and TensorBoard


def trained(run: RunFolder, accuracy: bool = True, rows: int = 30) -> Path:
    for step in range(1, rows + 1):
        part = {"step": step, "epoch": step / 10, "queries": 1000 * step, "loss": 2 / step, "test_loss": 2.1 / step}
        run.log({**part, "train_accuracy": 1 - 1 / step, "test_accuracy": 0.9 - 0.8 / step} if accuracy else part)
    return run.path


def texts(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every text of each panel drawn for a run folder: labels, legend and notes."""
    figure_module = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    drawn: list[Any] = []
    real = figure_module.Figure.savefig

    def keep(figure: Any, *args: Any, **options: Any) -> None:
        drawn.append(figure)
        real(figure, *args, **options)

    monkeypatch.setattr(figure_module.Figure, "savefig", keep)
    assert draw_curves(path) == path / "curves.png"
    return [
        [axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in axes.get_legend().get_texts())]
        + [note.get_text() for note in axes.texts]
        for axes in drawn[0].axes
    ]


def test_the_picture_shows_loss_accuracy_and_the_references(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained(run)
    run.finish({"accuracy": {"in_loop": 0.87, "ideal": 0.97, "physics_aware": 0.84, "deployed": None}})
    loss, by_epoch, by_queries = texts(folder, monkeypatch)
    assert loss == ["training (epochs)", "loss", "train", "test"]
    assert by_epoch == ["training (epochs)", "accuracy (%)", "train", "test"]
    references = ["ideal twin\n97.0 %", "physics-aware\n84.0 %"]
    assert by_queries == ["device queries (count)", "accuracy (%)", "train", "test", *references]
    content = (folder / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_a_regression_is_drawn_as_loss_against_epochs_and_queries(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = texts(trained(run, accuracy=False, rows=200), monkeypatch)
    assert first == ["training (epochs)", "loss", "train (mean of 4)", "test (mean of 4)"]
    assert second[0] == "device queries (count)"


def test_labels_do_not_overlap() -> None:
    heights = _spread([0.95, 0.97, 0.94])
    ordered = sorted(heights)
    assert min(np.diff(ordered)) >= 0.1
    assert np.argsort(heights).tolist() == [2, 0, 1]
    assert _spread([0.9, 0.5]) == [0.9, 0.5]


def test_nothing_to_draw_yet(run: RunFolder) -> None:
    assert draw_curves(run.path) is None
    run.log({"step": 1, "epoch": 1, "loss": float("nan")})
    assert draw_curves(run.path) is None


def test_without_matplotlib_and_tensorboard_there_is_no_picture_and_no_error(run: RunFolder, run_python: Any) -> None:
    code = (
        "from hzo_hil.records import *\n"
        f"print(draw_curves({str(trained(run))!r}), TensorBoardLog.open({str(run.path)!r}))\n"
    )
    done = run_python(code, without=["matplotlib", "tensorboard"])
    assert (done.returncode, done.stdout.strip()) == (0, "None None"), done.stderr


def test_records_import_neither_torch_nor_matplotlib(run_python: Any) -> None:
    done = run_python("import hzo_hil.records", without=["torch", "matplotlib", "tensorboard", "yaml"])
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_the_numbers(run: RunFolder) -> None:
    event_accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")

    for first, steps in ((None, (1, 2, 3)), (3, (3,))):  # the second process resumed from step 2
        board = TensorBoardLog.open(run.path, from_step=first)
        assert board is not None
        for step in steps:
            board.log({"step": step, "loss": 0.5 * step + bool(first), "note": "text", "good": True})
        board.close()
    events = event_accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 2.5)]
