"""Table 1's trainings: stopped and started again, a part counts what it spent in all; every part is a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cifar10
import pytest
from _result import Result

from tests.app.test_resume import Killed, die_at


def smoke(folder: Path) -> Result:
    return Result("cifar10", cifar10.FULL | cifar10.SMOKE, True, folder, False, ["a"], argparse.Namespace(threads=1))


def test_a_training_that_was_killed_goes_on_and_counts_both_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = smoke(tmp_path)
    found: list[dict[str, Any]] = []
    for place in ("whole", "cut"):
        config = cifar10.configured(result, "c", 3, 0, tmp_path / place)
        if place == "cut":
            with monkeypatch.context() as patched:
                die_at(patched, 50, Killed)
                with pytest.raises(Killed):
                    cifar10.trained(config)
        found.append(cifar10.trained(config))
    whole, cut = found
    assert [r["test_accuracy"] for r in cut["course"]] == [r["test_accuracy"] for r in whole["course"]]
    assert len(cut["course"]) == 3 and cut["queries"] == whole["queries"]
    assert cut["in_all"]["ledger"] == whole["in_all"]["ledger"]
    # A part that is asked for once more, of a run that is finished: read, not trained again.
    assert cifar10.trained(config)["in_all"]["ledger"] == cut["in_all"]["ledger"]


@pytest.mark.parametrize("part", cifar10.TRAININGS)
def test_every_part_is_a_configuration_with_a_network_that_fits_its_device(part: str, tmp_path: Path) -> None:
    from hzo_hil.build import build_model, opaques, open_devices

    full = Result("cifar10", cifar10.FULL, False, tmp_path, False, ["a"], argparse.Namespace(threads=None))
    config = cifar10.configured(full, part, 20, 1, tmp_path)
    layers = opaques(build_model(config, open_devices(config)))
    assert len(layers) == (6 if part.endswith("plain") or part[0] == "c" else 19)
    assert config.seed == 1 and config.train.epochs == 20 and config.data.name == "cifar10"
    credit = {"backprop": "deployed", "feedback": "feedback", "align": "align"}
    wanted = next((c for word, c in credit.items() if word in part), "hzo")
    assert config.method.credit == wanted
