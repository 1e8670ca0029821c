"""Tuning: as many trials for each method, a part of the budget, another seed, and a study that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hzo_hil.devices.errors import ConfigError
from hzo_hil.study.planning import plan_study
from hzo_hil.study.studyfile import load_study_file
from hzo_hil.study.tuning import tuned_study

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'hzo-hil[baselines]')")

ROOT = Path(__file__).resolve().parents[2]
TARGET = """
import json, pathlib
METRICS = {"score": {"better": "lower"}}
def run(config):
    with open(config["log"], "a") as log:
        log.write(json.dumps(config) + "\\n")
    return {"score": (config["rate"] - config["best"]) ** 2}
"""


@pytest.fixture
def quadratic(module_file: Any, tmp_path: Path) -> Any:
    """A study of two methods whose best rates are known."""
    target = module_file("tuned_target", TARGET)

    def make(**changes: Any) -> Path:
        raw = {
            "name": "quadratic",
            "target": f"{target}:run",
            "config": {
                "rate": 0.5,
                "best": 0.0,
                "seed": 0,
                "budget": {"max_queries": 1000},
                "log": str(tmp_path / "log"),
            },
            "axes": {
                "method": {"role": "method", "values": {"a": {"best": 0.2}, "b": {"best": 0.8}, "c": {"best": 0.5}}},
                "seed": [0, 1],
            },
            "tune": {
                "trials": 25,
                "spaces": {"a": {"rate": {"low": 0.0, "high": 1.0}}, "b": {"rate": {"low": 0.0, "high": 1.0}}},
            },
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return path

    return make


def test_every_method_gets_as_many_trials_at_a_part_of_the_budget(quadratic: Any, tmp_path: Path) -> None:
    found, rows = tuned_study(load_study_file(quadratic()), say=lambda text: None)
    asked = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert [sum(c["best"] == best for c in asked) for best in (0.2, 0.8)] == [25, 25]
    assert {c["seed"] for c in asked} == {1000} and {c["budget"]["max_queries"] for c in asked} == {200}
    rates = {row["method"]: row["settings"]["rate"] for row in rows}
    assert abs(rates["a"] - 0.2) < 0.1 and abs(rates["b"] - 0.8) < 0.1
    assert found.axes["method"].values["a"] == {"best": 0.2, "rate": rates["a"]}
    assert found.axes["method"].values["c"] == {"best": 0.5}
    again, _ = tuned_study(load_study_file(quadratic()), say=lambda text: None, workers=2)
    assert again == found


def test_the_tuned_study_is_one_that_runs(quadratic: Any, tmp_path: Path, hzo: Any) -> None:
    out = tmp_path / "tuned.yaml"
    done = hzo("tune", quadratic(), "--trials", "3", "--out", out, "--json")
    assert done.status == 0 and [row["trials"] for row in done.json["methods"]] == [3, 3]
    assert len(plan_study(load_study_file(out)).runs) == 6
    again = hzo("tune", quadratic(), "--out", out)
    assert again.status == 2 and "--force" in again.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tune": None}, "tune has 1 mistake"),
        ({"tune": {"spaces": {"d": {"rate": {"values": [1]}}}}}, "names d, and axis 'method' has a, b, c"),
        ({"tune": {"spaces": {"a": {"rat": {"values": [1]}}}}}, "tune.spaces.a: .*did you mean 'rate'"),
        ({"tune": {"spaces": {"a": {"rate": {"low": 1, "high": 0}}}}}, "must be below high"),
        ({"tune": {"seed": 1, "spaces": {"a": {"rate": {"values": [1]}}}}}, "is a seed of the study"),
        ({"tune": {"metric": "speed", "spaces": {"a": {"rate": {"values": [1]}}}}}, "which is better is not known"),
        ({"config": {"rate": 1, "best": 0, "seed": 0, "log": ""}}, "the study has none"),
    ],
)
def test_what_does_not_fit_the_study_is_refused_before_a_trial(
    quadratic: Any, tmp_path: Path, changes: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tuned_study(load_study_file(quadratic(**changes)), say=lambda text: None)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("name", ["compare_digits", "compare_mnist", "compare_onn"])
def test_the_comparisons_of_the_project_can_be_planned(name: str) -> None:
    section = load_study_file(ROOT / "configs" / f"{name}.yaml")
    runs = plan_study(section).runs
    methods = section.axes["method"].values
    assert len(runs) == 5 * len(methods) and set(section.axes["method"].tiers) == set(methods)
    assert set(section.tune["spaces"]) <= set(methods)
    assert {run.config["budget"]["max_queries"] for run in runs if "budget" in run.config} != {None}
