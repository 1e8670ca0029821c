"""Every credit behind the one trainer: counted as forecast, budgeted, resumed to the bit, refused in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hzo_hil.config import parse_config
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.evaluate import evaluate_run
from hzo_hil.preview import preview
from hzo_hil.records import RunFolder
from tests.app.test_resume import Killed, die_at, go, same_outcome

SPSA = {
    "method.credit": "loss",
    "train.optimizer": {"name": "SPSA", "lr": 0.05, "options": {"eps": 0.1}},
    "train.schedule.name": "constant",
}
METHODS: dict[str, dict[str, Any]] = {
    "feedback": {"method.credit": "feedback"},
    "direct_feedback": {"method.credit": "direct_feedback"},
    "align": {"method.credit": "align"},
    "difference": {"method.credit": "difference"},
    "activity": {"method.credit": "activity", "method.probes": "gaussian:1"},
    "local": {
        "method.credit": "activity",
        "method.probes": "gaussian:1",
        "method.local_losses": {"boundaries": [2], "outputs": 10},
    },
    "untold": {"method.credit": "feedback", "method.twins": False, "method.leaf": "shift", "train.batch_size": 24},
    "loss": SPSA,
}


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_of_every_method_is_what_is_spent(noisy: Any, tmp_path: Path, method: str) -> None:
    extra = {"train.epochs": 1, "devices.chip.latency_s": 0.003, "devices.chip.query_s": 1e-5}
    extra |= {"train.schedule.name": "constant", "train.optimizer.lr": 0.2}  # so that every step changes every stage
    raw = noisy({**extra, **METHODS[method]})
    found = preview(parse_config(raw))
    summary = go(raw, tmp_path / "run")
    spent = [summary["ledger"]["purposes"][p] for p in ("forward", "probes", "leaf")]
    for name in ("queries", "stage_evaluations", "calls", "writes", "bytes"):
        assert sum(p[name] for p in spent) == found["epoch"][name], name
    assert sum(p["device_seconds"] for p in spent) == pytest.approx(found["epoch"]["device_seconds"], rel=1e-9)
    assert 48 * found["queries_per_sample"] == summary["ledger"]["purposes"]["probes"]["queries"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_killed_and_resumed_is_the_same_run(
    noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    raw = noisy({**METHODS[method], "train.epochs": 2})
    go(raw, tmp_path / "whole")
    with monkeypatch.context() as patched:
        die_at(patched, 9, Killed)
        with pytest.raises(Killed):
            go(raw, tmp_path / "run")
    go(raw, tmp_path / "run", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "run")


def test_a_step_of_losses_that_was_interrupted_is_done_again_with_the_same_draws(
    noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the two losses of a step: the checkpoint then written is of the step's beginning."""
    raw = noisy({**SPSA, "train.epochs": 2})
    go(raw, tmp_path / "whole")
    with monkeypatch.context() as patched:
        die_at(patched, 4, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            go(raw, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").load_checkpoint("last")["step"] == 1
    go(raw, tmp_path / "run", resume=True)
    one, two = (RunFolder.open(tmp_path / n).load_checkpoint("last")["model"] for n in ("whole", "run"))
    assert all(torch.equal(one[k], two[k]) for k in one if isinstance(one[k], torch.Tensor))


def test_losses_alone_train_host_layers_and_the_chip(noisy: Any, tmp_path: Path) -> None:
    summary = go(noisy({**SPSA, "train.epochs": 6}), tmp_path / "run")
    rows = [r for r in RunFolder.open(tmp_path / "run").metrics() if "test_loss" in r]
    assert rows[-1]["loss"] < rows[0]["loss"]
    purposes = summary["ledger"]["purposes"]
    assert purposes["forward"]["queries"] == purposes["leaf"]["queries"] == 0
    assert purposes["probes"]["queries"] == 6 * 48 * 2  # two losses a step, one query a sample with taps or without
    assert evaluate_run(tmp_path / "run")["test_accuracy"] >= 0


def test_a_budget_stops_losses_as_it_stops_probes(noisy: Any, tmp_path: Path) -> None:
    summary = go(noisy({**SPSA, "budget.max_queries": 100}), tmp_path / "run")
    assert summary["steps"] == 6 and "the budget of 100 queries is spent" in summary["stopped"]
    assert RunFolder.open(tmp_path / "run").status == "stopped"


def test_block_wise_heads_learn_and_leave_the_model_as_it_was(noisy: Any, tmp_path: Path) -> None:
    summary = go(noisy({**METHODS["local"], "train.epochs": 1}), tmp_path / "run")
    state = RunFolder.open(tmp_path / "run").load_checkpoint("last")["model"]
    assert any("heads.0.weight" in name for name in state) and summary["accuracy"]["in_loop"] is not None
    assert evaluate_run(tmp_path / "run")["step"] == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget.max_queries": 15}, "budget.max_queries is 15 and one training step of 8 samples needs"),
        ({**SPSA, "budget.max_queries": 15}, "one training step of 8 samples needs 16"),
        ({"devices.chip.query_s": 1.0, "budget.max_device_seconds": 0.5}, "budget.max_device_seconds is 0.5 and one"),
        ({"method.credit": "loss"}, "'Adam' and method.credit 'loss' do not go together"),
        ({"train.optimizer.name": "SPSA"}, "'SPSA' and method.credit 'hzo' do not go together"),
        ({**SPSA, "train.optimizer.name": "SPSB"}, "hzo_hil.optim has no optimizer 'SPSB'; did you mean 'SPSA'?"),
        ({**SPSA, "train.optimizer.options": {"directions": 0}}, "optimizer 'SPSA': "),
        ({**SPSA, "references": ["ideal"]}, "references are trained by gradients"),
        ({**SPSA, "train.cosine_every": 5}, "train.cosine_every looks at what is trained by gradients"),
        ({**SPSA, "train.optimizer.name": "Descent"}, "hzo_hil.optim has no optimizer 'Descent'"),
        ({"method.credit": "activity"}, "use probes gaussian:1"),
        ({"method.credit": "align", "method.twins": False, "method.leaf": "shift"}, "tier 'twin'"),
        ({"method.credit": "feedback", "devices.chip.inner_boundaries": False}, "is of tier 'taps'"),
        ({"method.local_losses": {"boundaries": [9], "outputs": 10}}, "give inner boundaries in ascending order"),
        (
            {"method.local_losses": {"boundaries": [2], "outputs": 7}},
            "local_losses.outputs is 7, and the network has 10",
        ),
        ({"method.credit": "twin", "method.plan": "auto", "method.tolerance": 0.3}, "credit: twin asks for none"),
    ],
)
def test_what_cannot_be_is_refused_before_device_time(
    noisy: Any, write_config: Any, hzo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, words: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(SimulatedDevice, "run", lambda *a, **k: asked.append(a))
    raw = noisy(changes)
    if "method.plan" in changes:
        raw["method"] = {k: v for k, v in raw["method"].items() if k in ("credit", "plan", "tolerance")}
    found = hzo("train", write_config(raw), "--run-dir", tmp_path / "run")
    assert found.status == 2 and not asked
    assert re.search(words, found.err), found.err
