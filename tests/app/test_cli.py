"""The command line: what it prints where, its exit statuses, and what it says to a mistake."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import hzo_hil
from hzo_hil import cli

LAB = """
from hzo_hil.devices.fake import FakeDevice, Script

def blind():
    return FakeDevice.mlp((4, 6, 3), script=Script(always_nan=True))

def surprising(outputs, targets):
    if surprising.calls:
        raise RuntimeError("something nobody thought of")
    surprising.calls += 1
    return outputs.sum()
surprising.calls = 0
"""


@pytest.fixture
def config(tiny: Any, write_config: Any) -> Path:
    return Path(write_config(tiny()))


# --- train -----------------------------------------------------------------------------------------------------


def test_train_json_is_one_object_on_the_last_line_and_nothing_else_on_standard_output(
    hzo: Any, tiny: Any, write_config: Any, tmp_path: Path
) -> None:
    config = write_config(tiny({"references": ["deployed", "ideal", "physics_aware"]}))
    found = hzo("train", config, "--run-dir", tmp_path / "run", "--json")
    assert found.status == 0
    assert len(found.out.splitlines()) == 1
    summary = found.json
    wanted = {"accuracy", "queries", "stage_evaluations", "device_seconds", "wall_seconds", "seed", "run_dir"}
    assert wanted <= summary.keys()
    assert set(summary["accuracy"]) == {"in_loop", "deployed", "ideal", "physics_aware"}
    assert all(0 <= a <= 1 for a in summary["accuracy"].values())
    assert summary["seed"] == 3 and summary["run_dir"] == str(tmp_path / "run")
    assert summary["queries"] > 0 and summary["device_seconds"] > 0
    lines = [line.split(",")[0] for line in found.err.splitlines()]
    assert re.fullmatch(r"device chip: simulated by (C kernels \(\w+\)|numpy \(.*\))", lines[0])
    assert lines[1:3] == [
        "in_loop: epoch 1/2",
        "in_loop: epoch 2/2",
    ]


def test_train_prints_a_table(hzo: Any, config: Path, tmp_path: Path) -> None:
    found = hzo("train", config, "--run-dir", tmp_path / "run", "--quiet", "--set", "references=[ideal]")
    lines = found.out.splitlines()
    assert lines[0].split() == ["test", "accuracy", "queries", "device", "s", "wall", "s"]
    assert lines[1].startswith("(b) trained in the loop") and lines[2].startswith("(c) ideal twin")
    assert lines[3] == f"run folder: {tmp_path / 'run'}"
    assert found.err == ""


def test_a_run_without_a_folder_goes_under_runs(
    hzo: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = hzo("train", config, "--json").json
    assert Path(summary["run_dir"]).parts[0] == "runs"
    assert Path(summary["run_dir"]).name.startswith("tiny-")


def test_a_spent_budget_is_a_success_and_is_said(hzo: Any, config: Path, tmp_path: Path) -> None:
    found = hzo("train", config, "--run-dir", tmp_path / "run", "--set", "budget.max_queries=200", "--json")
    assert found.status == 0
    assert "the budget of 200 queries is spent" in found.json["stopped"] and "stopped: the budget" in found.err
    table = hzo("train", config, "--run-dir", tmp_path / "run", "--resume", "--set", "budget.max_queries=201")
    assert table.status == 0 and "stopped early: the budget of 201 queries" in table.out
    whole = hzo("train", config, "--run-dir", tmp_path / "run", "--resume", "--json")
    assert whole.status == 0 and whole.json["stopped"] is None and "resumed at step 1 of 8" in whole.err


def test_the_last_words_of_a_stopped_run_are_how_to_go_on(
    hzo: Any, tiny: Any, write_config: Any, module_file: Any, tmp_path: Path
) -> None:
    lab = module_file("lab_of_cli", LAB)
    config = write_config(tiny({"devices": {"chip": {"driver": f"{lab}:blind"}}, "train.max_bad_steps": 2}))
    found = hzo("train", config, "--run-dir", tmp_path / "the run", "--json")
    assert found.status == 1 and found.out == ""
    assert "failed: 2 steps in a row were lost" in found.err
    place = tmp_path / "the run"
    assert f'go on with: hzo-hil train "{place / "config.yaml"}" --resume --run-dir "{place}"' in found.err


@pytest.mark.parametrize("moment", ["__init__", "go"])
def test_ctrl_c_is_130(hzo: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hzo_hil.train.Run.{moment}", interrupt)
    found = hzo("train", config, "--run-dir", tmp_path / "run")
    assert found.status == 130
    assert "interrupted" in found.err


def test_what_nobody_thought_of_shows_itself(tiny: Any, write_config: Any, module_file: Any, tmp_path: Path) -> None:
    """Not hidden behind a message: a traceback, which Python ends with status 1. The folder says failed."""
    lab = module_file("lab_of_cli", LAB)
    config = write_config(tiny({"train.loss": f"{lab}:surprising"}))
    with pytest.raises(RuntimeError, match="something nobody thought of"):
        cli.run(["train", str(config), "--run-dir", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["status"] == "failed"


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "CONFIG", "--set", "train.epohcs=3"], "train.epohcs: no such field; did you mean 'epochs'?"),
        (["train", "CONFIG", "--set", "nonsense"], "--set 'nonsense' is not of the form a.b=value"),
        (["train", "CONFIG", "--set", "budget.max_queries=0"], "budget.max_queries: Input should be greater than 0"),
        (["train", "CONFIG", "--set", "devices.chip.preset=nicest"], "unknown preset 'nicest'"),
        (["train", "CONFIG", "--set", "data.name=mnist"], "data set 'mnist' does not come with the package"),
        (["train", "CONFIG", "--set", "data.name=npz", "--set", "data.path=no.npz"], "no.npz"),
        (["train", "CONFIG", "--resume", "--run-dir", "NOWHERE"], "is not a run folder: it is not there"),
        (["train", "NOWHERE"], "cannot read configuration"),
        (["train"], "Missing argument 'CONFIG'"),
        (["trian"], "No such command 'trian'"),
        (["train", "CONFIG", "--jsn"], "No such option"),
        (["plan", "NOWHERE"], "cannot read configuration"),
        (["plan", "CONFIG", "--set", "method.tree=bushy"], "bushy"),
        (["eval", "NOWHERE"], "is not a run folder"),
    ],
)
def test_a_mistake_is_2_with_a_message_and_no_traceback(
    hzo: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HZO_DATA", raising=False)
    places = {"CONFIG": str(config), "NOWHERE": str(tmp_path / "nowhere")}
    found = hzo(*(places.get(a, a) for a in arguments))
    assert found.status == 2
    assert words in found.err and found.out == ""
    assert not (tmp_path / "runs").exists()


def test_corrupt_data_is_refused(hzo: Any, config: Path, tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(b"PK\x03\x04 this is not an archive")
    found = hzo("train", config, "--set", "data.name=npz", "--set", f"data.path={tmp_path / 'own.npz'}")
    assert found.status == 2 and "own.npz" in found.err
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"abc")
    found = hzo("train", config, "--set", "data.name=mnist", "--data-dir", tmp_path)
    assert found.status == 2 and "is not the expected file: 3 bytes" in found.err


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_place_for_the_run(hzo: Any, config: Path, tmp_path: Path) -> None:
    place = tmp_path / "locked"
    place.mkdir(mode=0o555)
    found = hzo("train", config, "--run-dir", place / "run")
    assert found.status == 2 and "The folder is read-only for this user. Choose another one with --run-dir" in found.err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that takes no files")
def test_a_place_that_takes_no_folder(hzo: Any, config: Path) -> None:
    found = hzo("train", config, "--run-dir", "/proc/hzo-run")
    assert found.status == 2 and "run folder /proc/hzo-run: cannot make the folder" in found.err


# --- eval ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(hzo: Any, config: Path, tmp_path: Path) -> Path:
    assert hzo("train", config, "--run-dir", tmp_path / "run", "--quiet").status == 0
    return tmp_path / "run"


def test_eval_measures_what_training_measured(hzo: Any, run_folder: Path) -> None:
    """The emulator is exact here; on a noisy chip the two differ by its noise."""
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    found = hzo("eval", run_folder, "--json").json
    assert found["test_accuracy"] == summary["accuracy"]["in_loop"]
    assert found["queries"] == 30 and found["step"] == 8
    assert found["device"] == {"chip": "emulator-ideal-3"}
    assert f"test_accuracy  {found['test_accuracy']}" in hzo("eval", run_folder, "--checkpoint", "best").out


@pytest.mark.filterwarnings("ignore:.*was trained on:UserWarning")
def test_eval_on_another_device(hzo: Any, run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        "kind: emulator\npreset: aihwkit\noptions: {widths: [4, 6, 3]}\nidentity: bench-9\n", encoding="utf-8"
    )
    found = hzo("eval", run_folder, "--device", other, "--json").json
    assert found["device"] == {"chip": "bench-9"}
    other.write_text("kind: emulator\noptions: {widths: [4, 5, 3]}\n", encoding="utf-8")
    found = hzo("eval", run_folder, "--device", other)
    assert found.status == 2 and "the run's parameters do not fit emulator-ideal-3" in found.err
    found = hzo("eval", run_folder, "--device", "smoke://signals")
    assert found.status == 2 and "is no address of a device" in found.err
    found = hzo("eval", run_folder, "--device", tmp_path / "absent.yaml")
    assert found.status == 2 and "cannot read configuration" in found.err


def test_eval_takes_another_where_and_no_other_what(hzo: Any, run_folder: Path) -> None:
    assert hzo("eval", run_folder, "--set", "where.threads=1").status == 0
    found = hzo("eval", run_folder, "--set", "data.limit_test=3")
    assert found.status == 2 and "only the section where may be overridden" in found.err


# --- the others --------------------------------------------------------------------------------------------------


def test_plan_json_and_table(hzo: Any, config: Path) -> None:
    found = hzo("plan", config, "--json")
    assert found.status == 0 and len(found.out.splitlines()) == 1
    plan = found.json
    assert plan["tree"] == "bisect" and plan["predicted_error"] is None
    assert plan["queries_per_sample"] == plan["stage_evaluations_per_sample"] == 12  # 2 x 6 probes of one boundary
    assert plan["step"]["queries"] == 10 * (1 + 12) and plan["epoch"]["queries"] == 40 * (1 + 12)
    assert plan["step"]["device_seconds"] == pytest.approx(2 * 0.001 + 10 * (2 + 12) * 1e-6)
    table = hzo("plan", config).out
    assert "queries per sample            12" in table and "not known before calibration" in table


def test_plan_asks_no_device(hzo: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a device was asked")

    for name in ("open", "run", "write"):
        monkeypatch.setattr(f"hzo_hil.devices.simulated.SimulatedDevice.{name}", refuse)
    assert hzo("plan", config).status == 0


def test_device_list_and_schema(hzo: Any) -> None:
    rows = {row["name"]: row for row in hzo("device", "list", "--json").json}
    assert rows["onn"]["detail"] == (
        "presets: ideal, calibrated_chip, l2ight_chip, splitter_chip, torchonn_chip, photodetector_chip"
    )
    assert "emulator" in hzo("device", "list").out
    assert json.loads(hzo("schema").out)["properties"]["seed"]["minimum"] == 0


def test_help_names_every_command_and_option(hzo: Any) -> None:
    top = hzo("--help")
    assert top.status == 0 and all(f"\n  {name} " in top.out for name in ("train", "eval", "plan", "device", "schema"))
    text = hzo("train", "-h").out
    options = ("--set", "--run-dir", "--resume", "--other-device", "--force", "--data-dir", "--quiet", "--json")
    assert all(option in text for option in options)
    assert "--device" in hzo("eval", "-h").out and "Usage" in hzo("plan", "-h").out


def test_help_loads_no_torch(run_python: Any) -> None:
    done = run_python("from hzo_hil import cli; cli.main(['train', '--help'])", without=("torch", "yaml", "scipy"))
    assert done.returncode == 0 and "Usage" in done.stdout


def test_the_version_is_the_packages(hzo: Any) -> None:
    found = hzo("--version")
    assert found.status == 0 and hzo_hil.__version__ in found.out


def test_progress_on_a_terminal_is_a_bar(
    hzo: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With loss, score and queries per second; tqdm adds the time that is left."""
    import sys

    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)
    found = hzo("train", config, "--run-dir", tmp_path / "run", "--json")
    last = found.err.split("\r")[-1]
    assert "in_loop: 100%" in last and "8/8" in last
    assert "loss=" in last and "queries/s=" in last and "test accuracy=" in last and "step/s" in last
    assert found.json["steps"] == 8
