"""`record`: ledger, budget and run folder for a training loop of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hzo_hil
from hzo_hil.devices.errors import BadInput, BudgetSpent
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.records import RunFolder, RunFolderError
from hzo_hil.updates.delta import DeltaRule

X = torch.linspace(-1, 1, 40).reshape(10, 4)


def model_and_optimizer() -> tuple[hzo_hil.Opaque, torch.optim.Optimizer]:
    device = FakeDevice.mlp([4, 5, 2], "tanh")
    model = hzo_hil.Opaque([hzo_hil.Stage(device, k, leaf=DeltaRule("tanh")) for k in range(2)], eps=1e-2)
    return model, torch.optim.SGD(model.parameters(), lr=0.05)


def step(model: Any, optimizer: Any) -> float:
    loss = model(X).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def test_what_is_spent_inside_is_counted_and_what_is_outside_is_not(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    step(model, optimizer)
    with hzo_hil.record(tmp_path / "run", config={"lr": 0.05}) as run:
        for n in range(1, 4):
            run.log(n, loss=step(model, optimizer))
        run.results["note"] = "three steps"
    step(model, optimizer)
    one_step = 10 * (2 + 2 * 5)  # a forward stage by stage, and a pair of probes for each of 5 activations
    assert run.ledger.total.queries == 3 * one_step
    assert model.ledger.total.queries == 5 * one_step
    folder = RunFolder.open(run.path)
    assert folder.status == "finished" and folder.config == {"name": "run", "lr": 0.05}
    assert [row["queries"] for row in folder.metrics()] == [one_step, 2 * one_step, 3 * one_step]
    assert summary(run.path)["ledger"]["total"]["queries"] == 3 * one_step
    assert summary(run.path)["note"] == "three steps" and summary(run.path)["stopped"] is None


def test_a_budget_ends_the_block_not_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = model_and_optimizer()
    with hzo_hil.record(tmp_path / "run", max_queries=250) as run:
        run.keep(model=model, optimizer=optimizer)
        for n in range(1, 100):
            run.log(n, loss=step(model, optimizer))
    assert run.stopped is not None and "the budget of 250 queries is spent" in run.stopped
    assert "stopped: the budget" in capsys.readouterr().err
    assert run.ledger.total.queries <= 250
    folder = RunFolder.open(run.path)
    assert folder.status == "stopped" and folder.load_checkpoint()["step"] == 2


def test_a_stopped_loop_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, optimizer = model_and_optimizer()
    losses = [step(whole, optimizer) for _ in range(6)]
    model, optimizer = model_and_optimizer()
    with hzo_hil.record(tmp_path / "run", max_queries=450) as run:
        run.keep(model=model, optimizer=optimizer)
        for n in range(6):
            run.log(n + 1, loss=step(model, optimizer))
    model, optimizer = model_and_optimizer()
    with hzo_hil.record(tmp_path / "run", resume=True, max_queries=10_000) as run:
        run.keep(model=model, optimizer=optimizer)
        first = run.restore()
        assert first == 3 and run.ledger.total.queries >= 360
        for n in range(first, 6):
            run.log(n + 1, loss=step(model, optimizer))
    assert [row["loss"] for row in RunFolder.open(run.path).metrics()] == losses
    assert RunFolder.open(run.path).status == "finished"


def test_a_drifting_chip_goes_on_at_the_same_device_time(tmp_path: Path) -> None:
    def made() -> tuple[hzo_hil.Opaque, torch.optim.Optimizer]:
        fields = {"widths": [4, 5, 2]}
        light = {"power_drift_std": 0.2, "power_drift_tau_s": 0.5, "query_s": 1e-4, "settling_s": 0.01}
        model = hzo_hil.Opaque(hzo_hil.open_device({"kind": "emulator", "options": fields, **light}), eps=1e-2)
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    whole, optimizer = made()
    losses = [step(whole, optimizer) for _ in range(5)]
    for part in (range(3), range(3, 5)):
        model, optimizer = made()
        with hzo_hil.record(tmp_path / "run", resume=part.start > 0) as run:
            run.keep(model=model, optimizer=optimizer)
            assert part.start == 0 or run.restore() == 3
            for n in part:
                run.log(n + 1, loss=step(model, optimizer))
            run.checkpoint()
    assert [row["loss"] for row in RunFolder.open(run.path).metrics()] == losses


def test_an_error_inside_leaves_a_folder_that_says_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hzo_hil.record(tmp_path / "run") as run:
        run.log(1, loss=0.5)
        _ = 1 / 0
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status == "failed" and len(folder.metrics()) == 1
    assert summary(run.path)["ledger"]["total"]["queries"] == 0


def test_ctrl_c_inside_leaves_a_folder_that_says_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hzo_hil.record(tmp_path / "run"):
        raise KeyboardInterrupt
    assert RunFolder.open(tmp_path / "run").status == "stopped"


def test_sessions_nest_and_both_count(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    with hzo_hil.record(tmp_path / "outer") as outer:
        step(model, optimizer)
        with hzo_hil.record(tmp_path / "inner") as inner:
            step(model, optimizer)
        step(model, optimizer)
    assert (outer.ledger.total.queries, inner.ledger.total.queries) == (360, 120)


def test_a_budget_around_another_session_ends_both(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    after = []
    with hzo_hil.record(tmp_path / "outer", max_queries=150) as outer:
        with hzo_hil.record(tmp_path / "inner") as inner:
            for _ in range(5):
                step(model, optimizer)
        after.append("the outer block went on")
    assert not after
    assert inner.stopped == outer.stopped is not None
    assert {RunFolder.open(tmp_path / name).status for name in ("outer", "inner")} == {"stopped"}


def test_a_budget_of_an_inner_session_ends_that_alone(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    with hzo_hil.record(tmp_path / "outer", max_queries=10_000) as outer:
        with hzo_hil.record(tmp_path / "inner", max_queries=150) as inner:
            for _ in range(5):
                step(model, optimizer)
        step(model, optimizer)
    assert inner.stopped is not None and outer.stopped is None
    assert RunFolder.open(tmp_path / "outer").status == "finished"


def test_after_the_block_the_budget_is_gone(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    with hzo_hil.record(tmp_path / "run", max_queries=1):
        step(model, optimizer)
    step(model, optimizer)


@pytest.mark.parametrize("budget", [{"max_queries": 0}, {"max_device_seconds": 0}, {"max_queries": -3}])
def test_a_budget_of_nothing_is_refused_before_a_folder_is_made(tmp_path: Path, budget: dict[str, Any]) -> None:
    with (
        pytest.raises(BadInput, match=r"a budget must be above zero \(leave it out for no limit\)"),
        hzo_hil.record(tmp_path / "run", **budget),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_mistakes_of_resuming(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="resume=True needs run_dir"), hzo_hil.record(resume=True):
        pass
    with pytest.raises(RunFolderError, match="is not a run folder"), hzo_hil.record(tmp_path / "none", resume=True):
        pass
    with hzo_hil.record(tmp_path / "run"):
        pass
    with pytest.raises(RunFolderError, match="holds a run already"), hzo_hil.record(tmp_path / "run"):
        pass


def test_a_budget_error_reaches_a_loop_that_asks_for_it(tmp_path: Path) -> None:
    """Inside the block it is an ordinary exception."""
    model, optimizer = model_and_optimizer()
    with hzo_hil.record(tmp_path / "run", max_queries=50) as run, pytest.raises(BudgetSpent):
        step(model, optimizer)
    assert run.stopped is None
