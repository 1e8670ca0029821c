"""`train.cosine_every`: the gradient of training beside that of a noise-free copy, in the run's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hzo_hil.config import parse_config
from hzo_hil.devices.errors import BadInput
from hzo_hil.records import RunFolder, without_clock
from hzo_hil.train import run


def rows(raw: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    raw = {**raw, "where": {**raw["where"], "run_dir": str(folder)}}
    run(parse_config(raw), quiet=True, say=lambda text: None)
    return RunFolder.open(folder).metrics()


def cosines(found: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in found if name in row}


def test_every_so_many_steps_from_the_first_on(noisy: Any, tmp_path: Path) -> None:
    found = cosines(rows(noisy({"train.cosine_every": 7}), tmp_path / "run"), "cosine/2")
    assert list(found) == [1, 8, 15]
    assert all(0 < c < 1 for c in found.values())


def test_looking_changes_nothing_else(noisy: Any, tmp_path: Path) -> None:
    """Noise, dropout, parameters, queries: rows are the same to the bit."""
    plain = [without_clock(row) for row in rows(noisy(), tmp_path / "plain")]
    looked = [without_clock(row) for row in rows(noisy({"train.cosine_every": 1}), tmp_path / "looked")]
    assert [{n: v for n, v in row.items() if not n.startswith("cosine/")} for row in looked] == plain


def test_without_noise_and_with_dropout_on_the_host_the_cosine_is_one(noisy: Any, tmp_path: Path) -> None:
    changes = {"devices.chip.preset": "ideal", "method.eps": 1e-3, "train.cosine_every": 3, "train.epochs": 1}
    found = cosines(rows(noisy(changes), tmp_path / "run"), "cosine/2")
    assert len(found) == 2 and min(found.values()) > 0.9999


def test_a_wrong_twin_turns_the_gradient_of_what_is_deployed(noisy: Any, tmp_path: Path) -> None:
    changes = {"devices.chip.preset": "ideal", "devices.chip.options.phase_bias": 0.5, "train.cosine_every": 1}
    deployed = cosines(rows(noisy({**changes, "method.credit": "deployed"}), tmp_path / "a"), "cosine/2")
    probed = cosines(rows(noisy({**changes, "method.leaf": "shift", "method.eps": 1e-3}), tmp_path / "b"), "cosine/2")
    assert min(probed.values()) > 0.999
    assert max(deployed.values()) < 0.9


def test_references_have_none(noisy: Any, tmp_path: Path) -> None:
    rows(noisy({"train.cosine_every": 5, "references": ["ideal"], "train.epochs": 1}), tmp_path / "run")


def test_a_device_without_a_copy_is_refused_before_anything_is_asked(noisy: Any, tmp_path: Path) -> None:
    closed = {"devices.chip.inner_boundaries": False, "method.leaf": "probing", "train.cosine_every": 1}
    with pytest.raises(BadInput, match="no noise-free copy of stage"):
        rows(noisy(closed), tmp_path / "run")
    assert not (tmp_path / "run").exists()
