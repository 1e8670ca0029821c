"""A run from a configuration: what it reports, keeps and counts, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hzo_hil.config import parse_config
from hzo_hil.devices.errors import BadInput, BadReply, Saturated, TooManyBadSteps
from hzo_hil.evaluate import evaluate_run
from hzo_hil.preview import preview
from hzo_hil.records import RunFolder, RunFolderError
from hzo_hil.train import run
from hzo_hil.training import Training

LAB = """
import numpy as np
import torch
from hzo_hil.devices.api import Reply
from hzo_hil.devices.fake import FakeDevice, Script

def make(widths=(4, 6, 3), **script):
    return FakeDevice.mlp(widths, script=Script(**script), identity="bench")

def silent(widths=(4, 6, 3)):
    device = FakeDevice.mlp(widths, identity="bench")
    device.run = lambda segment, inputs, **_: None
    return device

def failing(after):
    device = FakeDevice.mlp((4, 6, 3), identity="bench")
    answer, left = device.run, [after]
    def run(segment, inputs, **options):
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("the vendor's library crashed")
        return answer(segment, inputs, **options)
    device.run = run
    return device

def data(rows, bad=False):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (rows, 4))
    if bad:
        x[2, 1] = np.nan
    y = np.stack([x[:, 0] * x[:, 1], x[:, 2], x[:, 3]], 1)
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y}

def loss(outputs, targets):
    return ((outputs - targets) ** 4).mean()

def worst(outputs, targets):
    return (outputs - targets).abs().max()

def falling(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets) * (float("nan") if outputs.requires_grad else 1)

class Halve(torch.nn.Module):
    def forward(self, x):
        return x / 2
"""


@pytest.fixture
def lab(module_file: Any) -> str:
    return str(module_file("lab_of_train", LAB))


def trained(
    raw: dict[str, Any], tmp_path: Path, name: str = "run", **options: Any
) -> tuple[dict[str, Any], RunFolder, str]:
    """Summary, folder and what was said."""
    said: list[str] = []
    raw = {**raw, "where": {**raw.get("where", {}), "run_dir": str(tmp_path / name)}}
    summary = run(parse_config(raw), say=said.append, quiet=True, **options)
    return summary, RunFolder.open(tmp_path / name), "\n".join(said)


# --- what comes out --------------------------------------------------------------------------------------------


def test_training_learns_and_leaves_a_whole_folder(tiny: Any, tmp_path: Path) -> None:
    raw = tiny({"train.epochs": 8, "data.limit_train": None, "train.optimizer.lr": 0.1, "where.picture": True})
    summary, folder, said = trained(raw, tmp_path)
    assert summary["accuracy"]["in_loop"] >= 0.9
    assert summary["stopped"] is None and summary["bad_steps"] == 0
    assert folder.status == "finished" and said == ""
    names = {p.name for p in folder.path.iterdir()}
    expected = {
        "run.json",
        "config.yaml",
        "environment.json",
        "device.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
    }
    assert names - {".lock"} == expected | {"checkpoints"}  # a lock that was let go may leave its file
    assert {p.name for p in (folder.path / "checkpoints").iterdir()} >= {"last.pt", "best.pt"}
    rows = folder.metrics()
    epochs = [row for row in rows if "test_accuracy" in row]
    assert [row["epoch"] for row in epochs] == list(range(1, 9))
    assert summary["best"] == max(row["test_accuracy"] for row in epochs)
    assert summary["accuracy"]["in_loop"] == epochs[-1]["test_accuracy"]
    assert len(rows) == 8 * 12 + 8 and summary["steps"] == 96


def test_the_same_configuration_gives_the_same_run_and_another_seed_another(noisy: Any, tmp_path: Path) -> None:
    short = {"train.epochs": 1}
    (one, a, _), (two, b, _) = (trained(noisy(short), tmp_path, name) for name in "ab")
    _, c, _ = trained(noisy({**short, "seed": 6}), tmp_path, "c")
    loss = [[row["loss"] for row in folder.metrics()] for folder in (a, b, c)]
    assert loss[0] == loss[1] != loss[2]
    assert one["ledger"] == two["ledger"]


def test_the_best_checkpoint_is_that_of_the_best_epoch(noisy: Any, tmp_path: Path) -> None:
    """Not that of the steps after it, though checkpoints are made between epochs."""
    raw = noisy({"train.epochs": 5, "train.checkpoint_every": 3, "train.optimizer.lr": 0.3})
    summary, folder, _ = trained(raw, tmp_path)
    scores = [row["test_accuracy"] for row in folder.metrics() if "test_accuracy" in row]
    best = folder.load_checkpoint("best")
    assert summary["best"] == max(scores) == best["best"]
    assert best["step"] == 6 * (1 + scores.index(max(scores)))
    # The same parameters, measured again: read-out noise may turn a sample or two of 40.
    assert evaluate_run(folder.path, checkpoint="best")["test_accuracy"] == pytest.approx(max(scores), abs=0.1)


def test_of_an_error_the_lowest_is_best(lab: str, tiny: Any, tmp_path: Path) -> None:
    raw = tiny({"data": {"name": f"{lab}:data", "options": {"rows": 30}}, "train.loss": "mse", "train.metric": "mse"})
    raw["train"]["epochs"] = 4
    summary, folder, _ = trained(raw, tmp_path)
    scores = [row["test_mse"] for row in folder.metrics() if "test_mse" in row]
    assert summary["best"] == min(scores) and summary["accuracy"]["in_loop"] == scores[-1]
    assert scores[-1] < scores[0]


def test_data_loss_metric_and_host_layers_of_ones_own(lab: str, tiny: Any, tmp_path: Path) -> None:
    raw = tiny(
        {
            "data": {"name": f"{lab}:data", "options": {"rows": 20}},
            "network": [{"host": f"{lab}:Halve"}, {"opaque": "chip"}],
            "train.loss": f"{lab}:loss",
            "train.metric": f"{lab}:worst",
            "train.best": "lowest",
        }
    )
    summary, folder, _ = trained(raw, tmp_path)
    scores = [row[f"test_{lab}:worst"] for row in folder.metrics() if f"test_{lab}:worst" in row]
    assert summary["best"] == min(scores)


def test_data_from_an_npz_file(tiny: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(size=(30, 2, 2)), rng.integers(0, 3, 30)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    raw = tiny({"data": {"name": "npz", "path": str(tmp_path / "own.npz"), "flatten": True}, "train.epochs": 1})
    summary, _, _ = trained(raw, tmp_path)
    assert summary["steps"] == 3


def test_references_are_reported_beside_it(noisy: Any, tmp_path: Path) -> None:
    """Without noise the ideal twin is the device: all four ways then see the same gradients, up to the probes' step."""
    raw = noisy({"references": ["deployed", "ideal", "physics_aware"], "network": [{"host": "torch.nn:Flatten"}]})
    raw["network"] = [n for n in noisy()["network"] if "Dropout" not in str(n)]
    raw["devices"]["chip"] |= {"preset": "ideal", "dtype": "float64"}
    raw["method"] = {"tree": "chain", "eps": 1e-4}
    summary, folder, _ = trained(raw, tmp_path)
    rows = summary["rows"]
    assert set(summary["accuracy"]) == {"in_loop", "deployed", "ideal", "physics_aware"}
    assert (
        rows["ideal"]["score"]
        == rows["deployed"]["score"]
        == rows["physics_aware"]["score"]
        == rows["in_loop"]["score"]
    )
    assert rows["ideal"]["queries"] == 0 and rows["deployed"]["queries"] == 40
    assert rows["physics_aware"]["queries"] == 3 * 48 + 3 * 40
    assert summary["queries"] == rows["in_loop"]["queries"] > rows["physics_aware"]["queries"]
    assert all(folder.has_checkpoint(name) for name in ("last", "best", "ideal", "physics_aware"))


# --- plan = ledger ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method.tree": "bisect", "method.probes": "coordinate"},
        {"method.tree": "direct", "method.probes": "rademacher:3", "method.repeats": 2},
        {"method.differences": "forward", "train.batch_size": 10},
        {"method.differences": "richardson", "devices.chip.max_batch": 7, "train.batch_size": 9},
        {"method.shared": True},
        {"method.shared": True, "method.differences": "forward", "method.repeats": 2, "devices.chip.taps": False},
        {"method.credit": "twin"},
        {"method.leaf": "probing", "method.leaf_probes": "rademacher:2", "train.batch_size": 24},
        {"devices.chip.inner_boundaries": False, "method.leaf_probes": "sphere:2", "train.batch_size": 16},
    ],
    ids=str,
)
def test_the_plan_is_what_is_spent(noisy: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Queries, evaluations, calls, writes, bytes and device seconds, of the first epoch and of every purpose."""
    extra = {"train.epochs": 1, "devices.chip.latency_s": 0.003, "devices.chip.query_s": 1e-5}
    extra |= {"train.schedule.name": "constant", "train.optimizer.lr": 0.2}  # so that every step changes every stage
    tree = None if "devices.chip.inner_boundaries" in changes else "chain"
    raw = noisy({"method.tree": tree, **extra, **changes})
    found = preview(parse_config(raw))
    summary, _, _ = trained(raw, tmp_path)
    spent = [summary["ledger"]["purposes"][p] for p in ("forward", "probes", "leaf")]
    for name in ("queries", "stage_evaluations", "calls", "writes", "bytes"):
        assert sum(p[name] for p in spent) == found["epoch"][name], name
    assert sum(p["device_seconds"] for p in spent) == pytest.approx(found["epoch"]["device_seconds"], rel=1e-9)
    assert found["epoch"]["queries"] > 0 and found["predicted_error"] is None
    steps = math.ceil(48 / raw["train"]["batch_size"])
    if 48 % raw["train"]["batch_size"] == 0:
        assert found["epoch"]["queries"] == steps * found["step"]["queries"]
    probes = summary["ledger"]["purposes"]["probes"]
    assert probes["queries"] == 48 * found["queries_per_sample"] + steps * found["queries_per_batch"]
    apart, together = found["stage_evaluations_per_sample"], found["stage_evaluations_per_batch"]
    assert probes["stage_evaluations"] == 48 * apart + steps * together


def test_the_plan_of_averaged_jacobians_leaves_out_the_first_measurement(averaged: Any, tmp_path: Path) -> None:
    """A whole one, 16 queries, where an ordinary pass asks 3 of 8 pairs; no alarm follows."""
    raw = averaged({"train.epochs": 1})
    found = preview(parse_config(raw))
    summary, _, _ = trained(raw, tmp_path)
    assert found["queries_per_batch"] == 6
    assert summary["ledger"]["purposes"]["probes"]["queries"] == 6 * found["queries_per_batch"] + 16 - 6
    assert "jacobian_renewed" not in summary["ledger"]["events"]


# --- budgets ---------------------------------------------------------------------------------------------------


def test_a_spent_budget_ends_the_run_cleanly_and_a_higher_one_goes_on(noisy: Any, tmp_path: Path) -> None:
    whole, reference, _ = trained(noisy(), tmp_path, "whole")
    half = whole["queries"] // 2
    raw = noisy({"budget.max_queries": half})
    summary, folder, said = trained(raw, tmp_path)
    assert folder.status == "stopped" and f"the budget of {half:,} queries is spent" in summary["stopped"]
    assert "Raise max_queries and resume" in said
    evaluation = summary["ledger"]["purposes"]["evaluation"]["queries"]
    assert summary["queries"] - evaluation <= half
    assert 0 < summary["steps"] < whole["steps"]
    assert summary["accuracy"]["in_loop"] is not None
    # Steps done twice spend twice, and nothing else differs.
    summary, folder, _ = trained(noisy({"budget.max_queries": 10 * half}), tmp_path, resume=True)
    assert folder.status == "finished" and summary["stopped"] is None
    assert summary["queries"] >= whole["queries"]
    one, two = reference.load_checkpoint(), folder.load_checkpoint()
    assert all(torch.equal(one["model"][k], two["model"][k]) for k in one["model"] if k.endswith(("weight", "phases")))
    assert [r.get("loss") for r in reference.metrics()] == [r.get("loss") for r in folder.metrics()]


def test_a_budget_of_device_seconds(noisy: Any, tmp_path: Path) -> None:
    summary, folder, _ = trained(noisy({"budget.max_device_seconds": 0.1}), tmp_path)
    assert "the budget of 0.1 device seconds is spent" in summary["stopped"]
    assert folder.status == "stopped" and folder.has_checkpoint("last")


# --- devices that misbehave ------------------------------------------------------------------------------------


def misbehaving(tiny: Any, driver: str, **options: Any) -> dict[str, Any]:
    return tiny({"devices": {"chip": {"driver": driver, "options": options}}, "method": {"leaf": "delta:tanh"}})


def test_a_device_that_answers_only_nan_ends_the_run_with_a_checkpoint(lab: str, tiny: Any, tmp_path: Path) -> None:
    raw = misbehaving(tiny, f"{lab}:make", always_nan=True)
    raw["train"]["max_bad_steps"] = 3
    with pytest.raises(TooManyBadSteps, match="3 steps in a row were lost.*'bench' answered with NaN or infinity"):
        trained(raw, tmp_path)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status == "stopped"
    assert folder.load_checkpoint()["step"] == 2
    assert [("bad_step" in row) for row in folder.metrics()] == [True, True]


def test_lost_steps_are_counted_and_touch_no_parameter(lab: str, tiny: Any, tmp_path: Path) -> None:
    raw = misbehaving(tiny, f"{lab}:make", nan=list(range(4)))  # the first call and its three repeats
    summary, folder, _ = trained(raw, tmp_path)
    assert summary["bad_steps"] == 1 and summary["ledger"]["events"]["bad_steps"] == 1
    assert "bad_step" in folder.metrics()[0] and folder.status == "finished"


def test_an_evaluation_that_is_lost_is_asked_again(lab: str, tiny: Any, tmp_path: Path) -> None:
    calls = json.loads(json.dumps(trained(misbehaving(tiny, f"{lab}:make"), tmp_path, "good")[0]))["ledger"]
    first = sum(calls["purposes"][p]["calls"] for p in ("forward", "probes", "leaf")) // 2
    summary, folder, _ = trained(misbehaving(tiny, f"{lab}:make", nan=list(range(first, first + 4))), tmp_path)
    assert folder.status == "finished"
    assert summary["ledger"]["events"]["bad_steps"] == 1 and summary["bad_steps"] == 0


def test_a_wrong_shape_is_named_and_nothing_is_lost(lab: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(BadReply, match=r"answered float32 \[\d+, \d\] to .*; expected float32"):
        trained(misbehaving(tiny, f"{lab}:make", wrong_shape_at=[9]), tmp_path)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status == "failed"
    assert folder.load_checkpoint()["step"] == len(folder.metrics()) > 0


def test_a_device_that_returns_nothing(lab: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(BadReply, match="device 'bench' answered NoneType to 10 inputs"):
        trained(misbehaving(tiny, f"{lab}:silent"), tmp_path)
    assert RunFolder.open(tmp_path / "run").status == "failed"


def test_after_a_drivers_own_error_training_can_go_on(lab: str, tiny: Any, tmp_path: Path) -> None:
    raw = misbehaving(tiny, f"{lab}:failing", after=12)
    with pytest.raises(ValueError, match="the vendor's library crashed"):
        trained(raw, tmp_path)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status == "failed" and folder.load_checkpoint()["step"] > 0
    before = folder.load_checkpoint()["step"]
    with pytest.raises(ValueError, match="crashed"):  # the driver counts its calls anew, and so gets further
        trained(raw, tmp_path, resume=True)
    assert RunFolder.open(tmp_path / "run").load_checkpoint()["step"] > before


def test_a_saturated_read_out_ends_the_run(tiny: Any, tmp_path: Path) -> None:
    options = {"widths": [4, 6, 3], "out_bits": 6, "out_bound": 0.001, "activation": "none"}
    raw = tiny({"devices.chip.options": options, "train.max_saturated": 0.1})
    with pytest.raises(Saturated, match="sit at the end of the read-out's range, more than max_saturated=0.1 allows"):
        trained(raw, tmp_path)
    assert RunFolder.open(tmp_path / "run").status == "stopped"


def test_a_loss_that_is_not_finite_is_refused(lab: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the loss is nan at step 1: training diverged. Lower train.optimizer.lr"):
        trained(tiny({"train.loss": f"{lab}:falling"}), tmp_path)


def test_nan_in_the_data_is_refused_with_its_place(lab: str, tiny: Any, tmp_path: Path) -> None:
    raw = tiny({"data": {"name": f"{lab}:data", "options": {"rows": 9, "bad": True}}, "train.loss": "mse"})
    with pytest.raises(BadInput, match=r"1 values of x_train are not finite in float32, the first at \[2, 1\]"):
        trained(raw, tmp_path)
    assert not (tmp_path / "run").exists()


def test_targets_without_a_metric_for_them_are_refused(lab: str, tiny: Any, tmp_path: Path) -> None:
    raw = tiny({"data": {"name": f"{lab}:data", "options": {"rows": 9}}})
    with pytest.raises(BadInput, match="train.metric 'accuracy' counts labels, and data .* has regression targets"):
        trained(raw, tmp_path)


# --- disks -----------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_not_written_over_and_force_moves_it_aside(tiny: Any, tmp_path: Path) -> None:
    trained(tiny(), tmp_path)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="holds a run already"):
        trained(tiny(), tmp_path)
    trained(tiny({"seed": 9}), tmp_path, force=True)
    assert (tmp_path / "run" / "earlier-1" / "metrics.jsonl").read_bytes() == before


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from hzo_hil import metricsfile

    trained(noisy(), tmp_path, "whole")
    write, left = metricsfile._write_all, [14]

    def full(file: Any, line: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, line)

    monkeypatch.setattr(metricsfile, "_write_all", full)
    with pytest.raises(
        RunFolderError, match="cannot write metrics.jsonl .*The disk is full.*free some space and resume"
    ):
        trained(noisy(), tmp_path)
    monkeypatch.setattr(metricsfile, "_write_all", write)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.load_checkpoint()["step"] == 12
    trained(noisy(), tmp_path, resume=True)
    losses = [[r.get("loss") for r in RunFolder.open(tmp_path / n).metrics()] for n in ("whole", "run")]
    assert losses[0] == losses[1]


def test_a_run_folder_on_a_file_is_refused(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="Choose another"):
        trained(tiny(), tmp_path)
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


# --- optional packages -----------------------------------------------------------------------------------------


def test_without_matplotlib_training_works_and_says_once_that_no_picture_was_drawn(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    _, folder, said = trained(tiny({"where.picture": True}), tmp_path)
    assert said == (
        "no picture of the learning curves was drawn: matplotlib is not installed (pip install 'hzo-hil[plots]')"
    )
    assert folder.status == "finished" and not (folder.path / "curves.png").exists()


def test_without_tensorboard_training_works_and_says_so(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    _, folder, said = trained(tiny({"where.tensorboard": True}), tmp_path)
    assert said == "TensorBoard is not installed: its events are not written (pip install 'hzo-hil[tensorboard]')"
    assert folder.status == "finished"


def test_with_tensorboard_its_events_are_written(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    _, folder, _ = trained(tiny({"where.tensorboard": True}), tmp_path)
    assert list((folder.path / "tensorboard").iterdir())


def test_a_row_may_not_be_saved_before_it_was_reported(tiny: Any) -> None:
    """Or a run that is interrupted there would lack it for ever."""
    from hzo_hil.build import build_model, open_devices
    from hzo_hil.ledger import Ledger
    from hzo_hil.train import load_data

    config = parse_config(tiny())
    training = Training(config, build_model(config, open_devices(config)), load_data(config), Ledger())
    seen: list[bool] = []
    saved: list[bool] = []
    training.run(lambda row: seen.append(training.can_be_saved), lambda: saved.append(training.can_be_saved))
    assert not any(seen) and all(saved) and len(saved) == 2


def test_what_a_device_says_of_itself_is_kept_with_the_run(tiny: Any, tmp_path: Path) -> None:
    raw = tiny({"train.epochs": 1, "devices.chip.health": {"canary": 100, "reference": 200}})
    run(parse_config(raw, [f"where.run_dir={tmp_path / 'run'}"]), quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"monitor/health_drift", "monitor/health_gain", "monitor/health_dark"} <= set(rows[-1])
    assert rows[-1]["monitor/health_gain"] == pytest.approx(1.0)
