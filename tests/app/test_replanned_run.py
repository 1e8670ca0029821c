"""`method.replan` in a run: looks between epochs, what they cost and say, and that resuming repeats them to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hzo_hil import replanning
from hzo_hil.calibrate.again import QUERIES
from hzo_hil.config import parse_config
from hzo_hil.records import RunFolder
from hzo_hil.train import run
from tests.app.conftest import changed
from tests.app.test_auto import PLANNED
from tests.app.test_resume import DRIFTING, Killed, die_at, go, same, same_outcome

ROWS, STAGES = 8, 3  # the batch is smaller than what a look would take


@pytest.fixture
def planned(noisy: Any) -> Any:
    return lambda **method: noisy({**PLANNED, "method.tolerance": 0.5, **{f"method.{n}": v for n, v in method.items()}})


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look plans anew."""
    monkeypatch.setattr(replanning, "MARGIN", 0.0)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in RunFolder.open(folder).metrics() if "replanned" in row]


def asked(summary: dict[str, Any]) -> int:
    return int(summary["ledger"]["purposes"]["calibration"]["queries"])


def test_a_look_follows_every_epoch_but_the_last_and_is_counted(planned: Any, tmp_path: Path) -> None:
    looked, once = go(planned(), tmp_path / "looked"), go(planned(replan=False), tmp_path / "once")
    found = rows(tmp_path / "looked")
    assert [row["epoch"] for row in found] == [1, 2] and rows(tmp_path / "once") == []
    assert all(row["replanned"] == 0 and 0 < row["predicted_error/2"] < 0.5 for row in found)
    assert asked(looked) - asked(once) == 2 * (2 * ROWS + QUERIES * STAGES)
    # Looking changes nothing of what is trained.
    assert looked["accuracy"] == once["accuracy"]


def test_planned_anew_it_says_why_and_keeps_the_new_calibration(planned: Any, tmp_path: Path, always: None) -> None:
    said: list[str] = []
    config = parse_config({**planned(), "where": {"run_dir": str(tmp_path / "run"), "picture": False}})
    summary = run(config, quiet=True, say=said.append)
    assert summary["ledger"]["events"]["replanned"] == 2
    assert [row["replanned"] for row in rows(tmp_path / "run")] == [1, 1]
    assert sum("planned anew after epoch" in text for text in said) == 2
    (kept,) = json.loads((tmp_path / "run" / "calibration.json").read_text(encoding="utf-8")).values()
    state = RunFolder.open(tmp_path / "run").load_checkpoint("last")["model"]["2._extra_state"]
    assert kept == json.loads(state["calibration"]) and state["calibrated"] == 3


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def of(raw: dict[str, Any]) -> Path:
        if "run" not in made:
            made["run"] = tmp_path_factory.mktemp("whole") / "run"
            go(raw, made["run"])
        return made["run"]

    return of


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
@pytest.mark.parametrize("call", [32, 35, 38, 44, 46, 74])
def test_stopped_around_a_look_and_resumed_it_is_the_same_run(
    planned: Any, uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: None, call: int,
    error: type[BaseException],
) -> None:  # fmt: skip
    """On a chip that drifts: its clock, too, goes on from where the look began. Looks are calls 34..44 and 70..80."""
    raw = changed(planned(), DRIFTING)
    whole = uninterrupted(raw)
    with monkeypatch.context() as patched:
        die_at(patched, call, error)
        with pytest.raises(error):
            go(raw, tmp_path / "run")
    go(raw, tmp_path / "run", resume=True)
    one, two = (RunFolder.open(f).load_checkpoint() for f in (whole, tmp_path / "run"))
    for name in ("model", "optimizer", "clocks", "evaluation", "best", "sums"):
        same(one[name], two[name], name)
    if error is Killed:
        same_outcome(whole, tmp_path / "run")
