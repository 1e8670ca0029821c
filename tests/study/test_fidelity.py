"""Gradient fidelity as a study's target: numbers that are known, counted as the ledger counts, mistakes in words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hzo_hil import cli
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.study import fidelity
from hzo_hil.study.target import Target, check_field

BASE: dict[str, Any] = {
    "name": "fidelity",
    "data": {"name": "iris", "limit_train": 40},
    "devices": {
        "chip": {
            "kind": "onn",
            "options": {"layers": 3, "ports": 6, "activation": "tanh", "gain": 1.5},
            "query_s": 1e-6,
        }
    },
    "network": [
        {"host": "torch.nn:Linear", "arguments": {"in_features": 4, "out_features": 6}},
        {"opaque": "chip", "name": "onn"},
        {"host": "torch.nn:Linear", "arguments": {"in_features": 6, "out_features": 3}},
    ],
    "method": {"tree": "bisect", "eps": 0.05},
    "fidelity": {"rows": 6, "repeats": 2},
    "where": {"threads": 1},
}
NOISE = {"devices.chip.options.noise_std": 0.02}


def configured(changes: dict[str, Any]) -> dict[str, Any]:
    raw = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split(".")
        at = raw
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = value
    return raw


def found(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return fidelity.run(fidelity.check(configured(changes or {}), True))


@pytest.mark.parametrize("tree", ["bisect", "chain"])
def test_in_float64_without_noise_only_truncation_is_left(tree: str) -> None:
    """It falls with the square of the step, and is gone at a small one."""
    wide, narrow = (
        found({"devices.chip.dtype": "float64", "method.tree": tree, "method.eps": eps}) for eps in (1e-2, 1e-4)
    )
    assert narrow["gradient_error"] < 1e-7 and narrow["cosine"] > 1 - 1e-12
    assert 5e3 < wide["gradient_error"] / narrow["gradient_error"] < 2e4
    # A leaf needs no probe behind the last boundary.
    assert wide["gradient_error_last"] < 1e-12 < wide["gradient_error_first"]


def test_what_it_counts_is_what_a_gradient_asks() -> None:
    """6 ports, 6 rows, no linear segment but single meshes: taken from the plan of the same configuration."""
    from hzo_hil.config import parse_config
    from hzo_hil.preview import preview

    raw = configured({"train.batch_size": 6})
    del raw["fidelity"]
    step = preview(parse_config(raw))["step"]
    numbers = found()
    assert numbers["queries"] == step["queries"]
    assert numbers["stage_evaluations"] == step["stage_evaluations"]
    assert numbers["device_seconds"] == pytest.approx(step["device_seconds"])
    assert numbers["calibration_queries"] > 0 == found({"fidelity.predict": False})["calibration_queries"]


def test_noise_costs_accuracy_and_repeats_win_some_of_it_back() -> None:
    """64 shots leave an eighth of the error. A factor of 3 fails by chance less than once in a million times: each
    figure is a root mean square over 8 estimates of some hundred values.
    """
    one, many = (found({**NOISE, "fidelity.repeats": 8, "method.repeats": n}) for n in (1, 64))
    assert one["gradient_error"] > 3 * many["gradient_error"] > 0
    assert one["cosine"] < many["cosine"] < 1


def test_estimates_have_noise_of_their_own() -> None:
    """With shared Jacobians, too: the mean of cosines of one estimate is not that of eight."""
    one, eight = (found({**NOISE, "method.tree": "chain", "fidelity.repeats": n}) for n in (1, 8))
    assert one["cosine"] != eight["cosine"]
    assert one["queries"] == eight["queries"]


@pytest.mark.parametrize("method", [{"tree": "bisect"}, {"tree": "chain", "probes": "hadamard"}])
def test_the_prediction_is_of_the_size_of_what_is_measured(method: dict[str, Any]) -> None:
    numbers = found({**NOISE, "method": {"eps": 0.1, **method}, "fidelity.repeats": 8})
    assert 1 / 3 < numbers["gradient_error_predicted"] / numbers["gradient_error"] < 3


def test_the_planner_predicts_its_own_plan() -> None:
    numbers = found({**NOISE, "method": {"plan": "auto", "tolerance": 0.3}, "fidelity.repeats": 8})
    assert numbers["gradient_error_predicted"] <= 0.3
    assert numbers["gradient_error"] < 0.6


def test_a_wrong_twin_turns_what_is_deployed_most_and_is_not_predicted() -> None:
    biased = {"devices.chip.options.phase_bias": 0.3}
    probed = found({**biased, "method": {"tree": "chain", "leaf": "shift", "eps": 1e-3}})
    aware = found({**biased, "method": {"credit": "twin"}})
    deployed = found({**biased, "method": {"credit": "deployed"}})
    assert probed["cosine"] > 0.999 > 0.95 > aware["cosine"] > deployed["cosine"]
    assert deployed["queries"] == 0 and aware["queries"] == 6
    assert deployed["gradient_error_predicted"] is None and aware["gradient_error_predicted"] is None


def test_random_directions_have_no_prediction() -> None:
    assert found({"method.probes": "rademacher:4"})["gradient_error_predicted"] is None


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert found(NOISE) == found(NOISE)
    assert found(NOISE) != found({**NOISE, "seed": 1})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fidelity.rows": 0}, "fidelity.rows"),
        ({"fidelity.row": 3}, "fidelity.row: no such field; did you mean 'rows'"),
        ({"devices.chip.options.phase_bais": 1}, "unknown options"),
        ({"method.tree": "chain", "method.credit": "backprop"}, "method.credit"),
    ],
)
def test_mistakes_are_named_before_anything_runs(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fidelity.check(configured(changes), True)


def test_a_device_without_a_copy_is_refused_in_words() -> None:
    with pytest.raises(BadInput, match="no differentiable copy of a Crossbar"):
        found({"devices.chip": {"kind": "crossbar", "options": {"widths": [6, 6]}}})


def test_a_study_of_it_gives_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = configured({"fidelity.repeats": 1})
    file = tmp_path / "study.yaml"
    axes = {
        "noise": {"field": "devices.chip.options.noise_std", "values": [0.0, 0.05], "role": "noise"},
        "rows": {"field": "fidelity.rows", "values": [4]},
    }
    study = {"name": "s", "target": "hzo_hil.study.fidelity:run", "config": base, "axes": axes}
    file.write_text(yaml.safe_dump({**study, "executor": {"workers": 1}}), encoding="utf-8")
    assert cli.run(["study", str(file), "--study-dir", str(tmp_path / "s"), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])
    from hzo_hil import load_study

    table = load_study(tmp_path / "s").sort_values("noise")
    assert list(table["status"]) == ["done", "done"]
    quiet, noisy = table["gradient_error"]
    assert 0 < quiet < 0.1 * noisy
    assert table.attrs["study"]["metrics"][0]["name"] == "cosine"


def test_the_study_knows_its_fields() -> None:
    target = Target("hzo_hil.study.fidelity:run")
    complete = target.check(configured({}), False)
    check_field("fidelity.repeats", target.known(complete))
    check_field("devices.chip.options.shot_phase_std", target.known(complete))
    with pytest.raises(ConfigError, match="did you mean 'fidelity.repeats'"):
        check_field("fidelity.repeat", target.known(complete))
