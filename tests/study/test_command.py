"""The command: what it refuses, what it says, and training as the thing studied."""

from __future__ import annotations

import json

import pytest
import yaml

from hzo_hil.study.training import METRICS
from tests.study.conftest import TINY, Lab, values


def test_a_dry_run_checks_and_runs_nothing(lab: Lab, hzo) -> None:
    result = hzo("study", lab.study(), "--dry-run", "--json")
    assert result.json == {"name": "study", "runs": 3, "target": "lab:parabola"}
    assert not (lab.path / "studies").exists()


def test_a_target_that_gives_no_numbers_fails_in_words(lab: Lab, hzo) -> None:
    result = hzo("study", lab.study("words"), "--workers", 1)
    assert result.status == 1
    assert "'y' is a str, not a number" in result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "lab:missing"}, "has no 'missing'"),
        ({"target": "nowhere:f"}, "no module 'nowhere'"),
        ({"target": "lab"}, "module:"),
        ({"target": "lab:METRICS"}, "not a function"),
        ({"axes": {"pause": {"field": "pause", "values": [1]}}}, "did you mean 'pause_s'"),
        ({"base": "x.yaml"}, "give base (a file) or config"),
        ({"colour": "red"}, "no such field"),
        ({"executor": {"scheduler": "tcp://x:1", "dask": True}}, "give one of scheduler, dask, slurm"),
        ({"design": "random"}, "runs is the number of points"),
        ({"limit": 2}, "3 runs (3 seed)"),
    ],
)
def test_bad_input_is_said_before_anything_runs(lab: Lab, hzo, change: dict[str, object], words: str) -> None:
    raw = yaml.safe_load(lab.study().read_text(encoding="utf-8")) | change
    result = hzo("study", lab.write(raw))
    assert result.status == 2
    assert words in result.err
    assert not (lab.path / "studies").exists()


def test_a_base_that_is_not_there(lab: Lab, hzo) -> None:
    result = hzo("study", lab.write({"name": "study", "base": "lost.yaml", "axes": {"seed": [0]}}))
    assert result.status == 2 and "lost.yaml" in result.err


def test_status_of_no_study(lab: Lab, hzo) -> None:
    result = hzo("study", "--status", lab.path)
    assert result.status == 2 and "is not a study folder" in result.err


def test_missing_libraries_are_named_before_any_run(lab: Lab, run_python) -> None:
    file = lab.study()
    code = f"from hzo_hil import cli; print(cli.run(['study', {str(file)!r}]))"
    done = run_python(code, without=["pandas"])
    assert done.stdout.strip() == "2"
    assert "pip install 'hzo-hil[study]'" in done.stderr


@pytest.mark.slow
def test_a_study_of_trainings(lab: Lab, hzo) -> None:
    """Each number is that of the same run alone, and its folder is one that `train` and TensorBoard know."""
    axes = {
        "noise": {"field": "devices.chip.options.read_noise_std", "values": [0.0, 0.1], "role": "noise"},
        "method": {"values": {"chain": {"method.tree": "chain"}, "direct": {"method.tree": "direct"}}},
        "seed": [0, 1],
    }
    file = lab.write({"name": "tinies", "config": {**TINY, "where": {"tensorboard": True}}, "axes": axes})
    result = hzo("study", file, "--workers", 2, "--json")
    assert result.status == 0, result.err
    folder = lab.path / "studies" / "tinies"
    rows = values(folder)
    assert len(rows) == 8 and set(METRICS) - {"wall_seconds"} <= set(rows[0])
    run = folder / "runs" / rows[-1]["run"]
    alone = hzo("train", run / "config.yaml", "--run-dir", lab.path / "alone", "--quiet", "--json").json
    assert alone["accuracy"]["in_loop"] == rows[-1]["score"]
    assert alone["queries"] == rows[-1]["queries"]
    assert list((run / "run" / "tensorboard").iterdir())
    assert not (run / "run" / "curves.png").exists(), "a picture of each run is not asked for"


def test_a_training_that_was_over_is_not_done_again(lab: Lab, hzo) -> None:
    """The process may die between the summary of the training and the result of the run."""
    file = lab.write({"name": "one", "config": TINY, "axes": {"seed": [0]}})
    assert hzo("study", file, "--workers", 1).status == 0
    (run,) = (lab.path / "studies/one/runs").iterdir()
    before = values(lab.path / "studies/one")
    metrics = (run / "run/metrics.jsonl").stat().st_mtime_ns
    (run / "result.json").unlink()
    assert hzo("study", file, "--workers", 1, "--resume").status == 0
    assert (run / "run/metrics.jsonl").stat().st_mtime_ns == metrics
    assert values(lab.path / "studies/one") == before


def test_a_half_run_that_cannot_be_gone_on_with_is_begun_anew(lab: Lab, hzo) -> None:
    file = lab.write({"name": "one", "config": TINY, "axes": {"seed": [0]}})
    assert hzo("study", file, "--workers", 1).status == 0
    before = values(lab.path / "studies/one")
    (run,) = (lab.path / "studies/one/runs").iterdir()
    (run / "result.json").unlink()
    (run / "run/summary.json").unlink()
    for checkpoint in (run / "run/checkpoints").iterdir():
        checkpoint.write_bytes(b"torn")
    assert hzo("study", file, "--workers", 1, "--resume").status == 0
    assert values(lab.path / "studies/one") == before
    assert len(list(run.glob("run-aside-*"))) == 1


def test_importing_the_package_loads_none_of_it(run_python) -> None:
    code = "import hzo_hil, json, sys; print(json.dumps([m for m in sys.modules if m.split('.')[0] in %r]))"
    names = ["pandas", "pyarrow", "dask", "distributed", "xarray", "h5py", "filelock"]
    for module in ("hzo_hil", "hzo_hil.cli"):
        done = run_python(code.replace("import hzo_hil", f"import {module}") % (names,))
        assert json.loads(done.stdout) == [], done.stdout
