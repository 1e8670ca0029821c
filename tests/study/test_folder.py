"""The folder of a study: what is done is never done again, what is damaged is set aside, reported and run anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.study.conftest import Lab, values


def first_run(folder: Path) -> Path:
    return min(folder.glob("runs/*"))


def damage_result(run: Path) -> None:
    (run / "result.json").write_text('{"run": ', encoding="utf-8")


def another_runs_result(run: Path) -> None:
    other = max(run.parent.iterdir())
    shutil.copy(other / "result.json", run / "result.json")


def without_metrics(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"run": run.name, "status": "done"}), encoding="utf-8")


def lost_config(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "config.yaml").unlink()


def edited_config(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "config.yaml").write_text("seed: 99\n", encoding="utf-8")


def a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    "damage", [damage_result, another_runs_result, without_metrics, lost_config, edited_config, a_file]
)
def test_a_damaged_run_is_set_aside_reported_and_run_anew(lab: Lab, hzo, damage: Callable[[Path], None]) -> None:
    file = lab.study()
    assert hzo("study", file, "--workers", 1).status == 0
    folder = lab.path / "studies/study"
    before, run = values(folder), first_run(folder)
    damage(run)
    assert hzo("study", "--status", folder, "--json").json["corrupt"] == 1
    result = hzo("study", file, "--resume", "--workers", 1, "--json")
    assert result.status == 0, result.err
    assert f"run {run.name[:12]} was damaged" in result.err
    assert len(result.json["aside"]) == len(list((folder / "aside").iterdir())) == 1
    assert values(folder) == before
    assert sorted(lab.times_run.values()) == [1, 1, 2]


def test_an_empty_folder_of_a_run_is_no_damage(lab: Lab, hzo) -> None:
    """What a kill leaves between making the folder and writing the configuration."""
    file = lab.study()
    assert hzo("study", file, "--workers", 1).status == 0
    run = first_run(lab.path / "studies/study")
    shutil.rmtree(run)
    run.mkdir()
    (run / "config.yaml.tmp").touch()
    result = hzo("study", file, "--resume", "--workers", 1, "--json")
    assert (result.json["done"], result.json["aside"]) == (3, [])


def test_a_failed_run_is_recorded_stops_nothing_and_is_run_again_on_resuming(lab: Lab, hzo) -> None:
    from hzo_hil import load_study

    file = lab.study("moody")
    result = hzo("study", file, "--workers", 2, "--json")
    assert result.status == 1
    assert (result.json["done"], result.json["failed"]) == (2, 1)
    assert "failed:" in result.err and "ValueError: seed 1 is not liked" in result.err
    row = load_study("studies/study").set_index("seed").loc[1]
    assert (row["status"], row["error_type"], row["error"]) == ("failed", "ValueError", "seed 1 is not liked")
    assert "seed 1 is not liked" in hzo("study", "--status", "studies/study").out
    (lab.path / "lab.py").write_text("def moody(config): return {'y': 2.0}\n", encoding="utf-8")
    again = hzo("study", file, "--workers", 2, "--resume", "--json")
    assert (again.status, again.json["done"]) == (0, 3), again.err
    assert sorted(load_study("studies/study")["y"]) == [1.0, 1.0, 2.0]


def test_a_study_is_not_run_over_another(lab: Lab, hzo) -> None:
    file = lab.study()
    assert hzo("study", file, "--workers", 1).status == 0
    assert "--resume" in hzo("study", file).err
    other = hzo("study", lab.study("moody", name="other"), "--study-dir", "studies/study", "--resume")
    assert other.status == 2 and "holds a study of lab:parabola" in other.err
    (lab.path / "notes").mkdir()
    (lab.path / "notes" / "letter.txt").touch()
    refused = hzo("study", file, "--study-dir", "notes")
    assert refused.status == 2 and "not empty" in refused.err
    assert hzo("study", file, "--study-dir", lab.path / "lab.py").status == 2


def test_a_study_with_more_values_runs_only_the_new_ones(lab: Lab, hzo) -> None:
    assert hzo("study", lab.study(axes={"seed": [0, 1]}), "--workers", 1).status == 0
    assert hzo("study", lab.study(axes={"seed": [0, 1, 2, 3]}), "--workers", 1, "--resume").status == 0
    assert sorted(lab.times_run.values()) == [1, 1, 1, 1]
    assert len(values(lab.path / "studies/study")) == 4


def test_two_processes_do_not_run_one_study(lab: Lab, hzo) -> None:
    from hzo_hil.study.folder import StudyFolder

    file = lab.study()
    assert hzo("study", file, "--workers", 1).status == 0
    with StudyFolder.open(lab.path / "studies/study").locked():
        result = hzo("study", file, "--resume")
    assert result.status == 2 and "another process" in result.err


def test_a_folder_goes_on_from_itself(lab: Lab, hzo) -> None:
    assert hzo("study", lab.study(), "--workers", 1).status == 0
    (lab.path / "study.yaml").unlink()
    shutil.rmtree(first_run(lab.path / "studies/study"))
    assert hzo("study", "studies/study", "--resume", "--workers", 1, "--json").json["done"] == 3
