"""The table of a study: one row a planned run, kept as Parquet, exported without loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hzo_hil import BadInput, load_study
from tests.study.conftest import Lab

AXES = {
    "x": {"field": "options.x", "values": [0.5, 1.5], "label": "phase noise", "unit": "rad", "role": "noise"},
    "way": {"values": {"a": {"pause_s": 0.0}, "b": {"pause_s": 0.001}}},
    "seed": [0, 1],
}


@pytest.fixture
def folder(lab: Lab, hzo) -> Path:
    assert hzo("study", lab.study(axes=AXES), "--workers", 1, "--quiet").status == 0
    return lab.path / "studies" / "study"


def test_a_row_for_each_run_with_its_levels_and_numbers(folder: Path) -> None:
    frame = load_study(folder)
    assert list(frame.columns) == [
        "run", "status", "error", "error_type", "seconds", "attempt", "x", "way", "seed", "y", "pid"
    ]  # fmt: skip
    assert len(frame) == 8
    assert np.allclose(frame["y"], frame["seed"] - frame["x"] ** 2)
    assert set(frame["way"]) == {"a", "b"}
    about = frame.attrs["study"]
    assert about == json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert about["metrics"] == [{"name": "y", "label": "answer", "unit": "V", "better": "higher"}]


def test_the_parquet_file_is_the_table(folder: Path) -> None:
    import pandas as pd

    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), load_study(folder), check_dtype=False)


@pytest.mark.parametrize("ending", ["h5", "nc"])
def test_an_export_read_back_is_the_table(folder: Path, hzo, ending: str) -> None:
    import xarray

    result = hzo("study", folder, "--export", f"out.{ending}", "--json")
    assert result.status == 0, result.err
    frame = load_study(folder)
    with xarray.open_dataset(result.json["written"], engine="h5netcdf") as found:
        assert np.array_equal(found["y"], frame["y"])
        assert list(found["way"].values) == list(frame["way"])
        assert found["x"].attrs == {"long_name": "phase noise", "units": "rad", "role": "noise"}
        assert json.loads(found.attrs["study"])["hash"] == frame.attrs["study"]["hash"]


def test_hdf5_is_read_by_plain_hdf5(folder: Path, hzo) -> None:
    import h5py

    assert hzo("study", folder, "--export", "out.h5").status == 0
    with h5py.File("out.h5") as file:
        assert np.array_equal(file["y"][:], load_study(folder)["y"])


def test_an_export_of_another_ending_is_refused(folder: Path, hzo) -> None:
    result = hzo("study", folder, "--export", "out.mat")
    assert result.status == 2
    assert ".h5, .hdf5, .nc, .csv" in result.err


def test_lists_and_mixed_levels_are_text(lab: Lab, hzo) -> None:
    axes = {
        "tree": {"field": "options.x", "values": [1, 2]},
        "log2": {"field": "always", "values": [True, "auto", [1, 2]]},
    }
    assert hzo("study", lab.study(axes=axes), "--workers", 1).status == 0
    assert sorted(set(load_study("studies/study")["log2"])) == ['"auto"', "[1, 2]", "true"]


def test_numbers_that_clash_with_a_column_have_a_name_of_their_own(lab: Lab, hzo) -> None:
    (lab.path / "own.py").write_text("def f(config): return {'seed': 7, 'error': 0.5}\n", encoding="utf-8")
    file = lab.study()
    file.write_text(file.read_text().replace("lab:parabola", "own:f"), encoding="utf-8")
    assert hzo("study", file, "--workers", 1).status == 0
    frame = load_study("studies/study")
    assert list(frame["metric_seed"]) == [7, 7, 7]
    assert list(frame["metric_error"]) == [0.5, 0.5, 0.5]
    assert list(frame["seed"]) == [0, 1, 2]


def test_what_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a study folder: it has no study.json"):
        load_study(tmp_path)
    with pytest.raises(BadInput, match="it is not there"):
        load_study(tmp_path / "nothing")
