"""Gains of stages in the metrics of a run, a warning where they leave 1/3..3, and resuming within an epoch."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from hzo_hil import livemetrics
from hzo_hil.records import RunFolder
from tests.app.test_resume import Killed, die_at, go, same_outcome


def epochs(folder: Path) -> list[dict[str, Any]]:
    return [row for row in RunFolder.open(folder).metrics() if "test_loss" in row]


def test_every_epoch_has_the_gains_of_its_stages_and_of_all(noisy: Any, tmp_path: Path) -> None:
    go(noisy(), tmp_path / "run")
    found = epochs(tmp_path / "run")
    assert len(found) == 3
    for row in found:
        each = [row[f"gain/2/{k}"] for k in (1, 2, 3)]
        assert all(0 < gain < 100 for gain in each)
        assert row["gain/2/all"] == pytest.approx(math.prod(each))


def test_stopped_within_an_epoch_the_sums_go_on(noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(noisy(), tmp_path / "whole")
    for error, call in ((Killed, 58), (KeyboardInterrupt, 61)):
        folder = tmp_path / error.__name__
        with monkeypatch.context() as patched:
            die_at(patched, call, error)
            with pytest.raises(error):
                go(noisy(), folder)
        go(noisy(), folder, resume=True)
        named = [
            [{n: v for n, v in row.items() if "gain/" in n} for row in epochs(f)] for f in (tmp_path / "whole", folder)
        ]
        assert named[0] == named[1] and named[0][-1]
    same_outcome(tmp_path / "whole", tmp_path / "Killed")


def test_beyond_the_bounds_is_said_once(noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bounds, times in (((1e-9, 1e9), 0), ((1e-9, 1e-8), 1)):
        monkeypatch.setattr(livemetrics, "GAIN_LOW", bounds[0])
        monkeypatch.setattr(livemetrics, "GAIN_HIGH", bounds[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            go(noisy(), tmp_path / str(times))
        said = [str(w.message) for w in caught if "mean-square gain" in str(w.message)]
        assert len(said) == times
        assert all("2: the mean-square gain of 3 of 3 stages" in text for text in said)
