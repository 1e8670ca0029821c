"""`method.plan: auto` in a run, `hzo-hil plan` and `hzo-hil device calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hzo_hil.config import parse_config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.records import RunFolder
from hzo_hil.train import run
from tests.app.test_resume import Killed, die_at, go, same_outcome

PLANNED = {"method.tree": None, "method.probes": "coordinate", "method.eps": None, "method.plan": "auto"}


@pytest.fixture
def planned(noisy: Any) -> Any:
    return lambda **goal: noisy({**PLANNED, **{f"method.{n}": v for n, v in (goal or {"tolerance": 0.5}).items()}})


def test_a_run_plans_at_its_start_and_says_how_it_went(planned: Any, tmp_path: Path) -> None:
    said: list[str] = []
    config = parse_config({**planned(), "where": {"run_dir": str(tmp_path / "run"), "picture": False}})
    summary = run(config, quiet=True, say=said.append)
    asked = _calibrating(tmp_path / "run")
    assert any(f"calibrated with {asked:,} queries; planned" in text for text in said), said
    assert summary["ledger"]["purposes"]["calibration"]["queries"] > asked
    error = summary["gradient_error"]["2"]
    assert 0 < error["predicted_noise"] <= error["predicted"] <= 0.5
    # After 18 steps of training the device is where it was: what noise does to a gradient is still what was predicted.
    assert error["predicted_noise"] / 3 < error["measured_noise"] < 3 * error["predicted_noise"]
    kept = json.loads((tmp_path / "run" / "calibration.json").read_text(encoding="utf-8"))
    assert kept["2"]["queries"] > 0 and len(kept["2"]["stages"]) == 3


def test_a_budget_that_ends_with_training_leaves_the_run_finished(planned: Any, tmp_path: Path) -> None:
    once = planned(tolerance=0.5, replan=False)
    whole = go(once, tmp_path / "whole")
    asked = whole["ledger"]["purposes"]
    spent = sum(asked[p]["queries"] for p in ("forward", "probes", "leaf")) + _calibrating(tmp_path / "whole")
    summary = go({**once, "budget": {"max_queries": spent}}, tmp_path / "run")
    assert summary["stopped"] is None and summary["steps"] == whole["steps"]
    assert summary["gradient_error"]["2"]["measured_noise"] is None
    assert summary["accuracy"] == whole["accuracy"]


def _calibrating(folder: Path) -> int:
    """Queries of the calibration of a run that was planned once, its forward passes included."""
    (kept,) = json.loads((folder / "calibration.json").read_text(encoding="utf-8")).values()
    return int(kept["queries"] + 2 * kept["rows"])


@pytest.mark.parametrize("call", [3, 12, 40, 70])
def test_killed_while_it_calibrates_or_later_and_resumed_it_is_the_same_run(
    planned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    go(planned(), tmp_path / "whole")
    with monkeypatch.context() as patched:
        die_at(patched, call, Killed)
        with pytest.raises(Killed):
            go(planned(), tmp_path / "run")
    go(planned(), tmp_path / "run", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "run")


def test_a_run_folder_without_a_goal_has_no_calibration(noisy: Any, tmp_path: Path) -> None:
    summary = go(noisy(), tmp_path / "run")
    assert "gradient_error" not in summary and not (tmp_path / "run" / "calibration.json").exists()
    assert RunFolder.open(tmp_path / "run").load_checkpoint("last")["model"] is not None


def test_plan_calibrates_and_shows_the_named_trees_beside(hzo: Any, planned: Any, write_config: Any) -> None:
    config = write_config(planned(queries_per_step=3000))
    found = hzo("plan", config, "--json").json
    (layer,) = found["layers"]
    assert found["predicted_error"] == layer["predicted_error"] == layer["predicted"]["error"] > 0
    assert found["step"]["queries"] <= 3000 and layer["calibration"]["queries"] > 0
    assert set(layer["beside"]) == {"bisect", "chain", "direct"}
    told = hzo("plan", config).out
    assert "calibrated with" in told and "(asked now)" in told and "probes a step, queries" in told
    assert "bisect" in told and "cut  source  probes" in told


def test_device_calibrate_prints_intervals_or_json(hzo: Any, write_config: Any) -> None:
    chip = write_config(
        {"kind": "emulator", "options": {"widths": [6, 6, 6], "read_noise_std": 0.02}, "query_s": 1e-6}, "chip.yaml"
    )
    told = hzo("device", "calibrate", chip)
    assert told.status == 0 and "read noise" in told.out and ".." in told.out and "drift" in told.out
    found = hzo("device", "calibrate", chip, "--json").json
    assert found["account"]["queries"] >= found["queries"] > 0
    assert len(found["stages"]) == 2 and found["warnings"] == []
    noise = found["stages"][0]["noise"]
    assert noise["low"] < noise["value"] < noise["high"]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"plan": "auto"}, "plan: auto needs exactly one of tolerance, queries_per_step, seconds_per_step"),
        ({"plan": "auto", "tolerance": 0.1, "queries_per_step": 9}, "needs exactly one"),
        ({"tolerance": 0.1}, "tolerance: a goal for the planner; add plan: auto"),
        ({"plan": "auto", "tolerance": 0}, "method.tolerance: Input should be greater than 0"),
        ({"plan": "auto", "queries_per_step": -3}, "method.queries_per_step: Input should be greater than 0"),
        ({"plan": "auto", "tolerance": 0.1, "tree": "chain", "repeats": 2}, "auto chooses tree, repeats itself"),
        ({"plan": "auto", "tolerance": 0.1, "average": 0.5}, "auto chooses average itself"),
        ({"average": 0.0}, "greater than 0"),
        ({"plan": "auto", "tolerance": 0.1, "credit": "twin"}, "credit: twin asks for none"),
        ({"plan": "automatic", "tolerance": 0.1}, "method.plan: Input should be 'auto'"),
    ],
)
def test_mistakes_are_named(tiny: Any, method: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config({**tiny(), "method": method})


def test_a_goal_out_of_reach_ends_with_status_2_and_says_why(hzo: Any, planned: Any, write_config: Any) -> None:
    found = hzo("plan", write_config(planned(tolerance=1e-6)))
    assert found.status == 2
    assert "no plan within the device's limits reaches a tolerance of 1e-06" in found.err
    assert "What limits it" in found.err
