"""Every run of a study is checked before the first; what pairs runs is the same for all that share a seed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from hzo_hil.compare import what_hash
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.study.planning import Study, described_axes, plan_study
from hzo_hil.study.studyfile import load_study_file
from tests.study.conftest import TINY, Lab

ONN: dict[str, Any] = {
    **TINY,
    "data": {"name": "digits", "limit_train": 32, "limit_test": 32},
    "devices": {"chip": {"kind": "onn", "preset": "calibrated_chip", "options": {"layers": 2, "ports": 8}}},
    "network": [
        {"host": "torch.nn:Linear", "arguments": {"in_features": 64, "out_features": 8}},
        {"opaque": "chip"},
        {"host": "torch.nn:Linear", "arguments": {"in_features": 8, "out_features": 10}},
    ],
    "train": {"epochs": 1, "batch_size": 16},
}
PHASE = "devices.chip.options.phase_bias"
NOISES = {"field": PHASE, "values": [0.0, 0.1], "role": "noise"}
TREES = {"values": {"chain": {"method.tree": "chain"}, "bisect": {"method.tree": "bisect"}}}


def planned(lab: Lab, axes: dict[str, Any], *overrides: str, allow_many: bool = False, **fields: Any) -> Study:
    raw = {"name": "study", "config": copy.deepcopy(ONN), "axes": axes, **fields}
    return plan_study(load_study_file(lab.write(raw), overrides), allow_many=allow_many)


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("devices.chip.options.phase_bas", PHASE),
        ("phase_bias", PHASE),
        ("methd.tree", "method.tree"),
        ("train.epoch", "train.epochs"),
        ("devices.chop.options.phase_bias", PHASE),
        ("train.optimizer.rl", "train.optimizer.lr"),
    ],
)
def test_an_axis_that_names_no_field_is_told_the_nearest(lab: Lab, field: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"axis 'noise': the configuration has no field '{field}'.*'{nearest}'"):
        planned(lab, {"noise": {"field": field, "values": [0.1]}})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.epochs", "many", "valid integer"),
        (PHASE, -0.1, "devices.chip.options"),
        ("method.credit", "magic", "method.credit"),
    ],
)
def test_a_value_that_cannot_be_is_found_before_anything_runs(lab: Lab, field: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match="noise=") as error:
        planned(lab, {"noise": {"field": field, "values": [value]}})
    assert words in str(error.value)


def test_more_runs_than_the_limit_need_a_yes(lab: Lab) -> None:
    axes = {"seed": list(range(40)), "noise": {**NOISES, "values": [0.001 * n for n in range(30)]}}
    with pytest.raises(BadInput, match=r"1,200 runs \(40 seed x 30 noise\).*limit of 1,000.*--yes"):
        planned(lab, axes)
    assert len(planned(lab, axes, allow_many=True).runs) == 1200
    assert len(planned(lab, axes, constraints=["seed < 3"]).runs) == 90


def test_a_size_that_is_a_mistake_is_not_counted_one_by_one(lab: Lab) -> None:
    fields = ["train.epochs", "train.batch_size", "seed", "data.limit_train", "data.limit_test", "method.repeats"]
    with pytest.raises(BadInput, match=r"1,000,000,000,000,000,000 runs"):
        planned(lab, {f: list(range(1, 1001)) for f in fields})


def test_no_point_that_meets_every_constraint(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="has no run"):
        planned(lab, {"seed": [1, 2]}, constraints=["seed > 5"])


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"a": {"field": "seed", "values": [1]}, "b": {"field": "seed", "values": [2]}}, "both set seed"),
        ({"a": {"field": "method", "values": [{}]}, "b": {"field": "method.tree", "values": ["chain"]}}, "both set"),
        ({"a": {"field": "where.threads", "values": [1]}}, "where a run happens"),
        ({"a": {"field": "seed", "values": []}}, "values is empty"),
        ({"a": {"field": "seed"}}, "give values, or both low and high"),
        ({"a": {"field": PHASE, "low": 0.1, "high": 0.0}}, "must be below high"),
        ({"a": {"field": PHASE, "low": 0.0, "high": 0.1, "scale": "log"}}, "low above 0"),
        ({"a": {"field": PHASE, "low": 0.0, "high": 0.1}}, "a grid needs values"),
        ({"status": {"field": "seed", "values": [1]}}, "axis 'status'"),
        ({"a b": {"field": "seed", "values": [1]}}, "axis 'a b'"),
        ({}, "axes"),
    ],
)
def test_axes_that_cannot_be(lab: Lab, axes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        planned(lab, axes)
    assert words in str(error.value)


def test_the_hash_is_of_the_whole_configuration_and_of_nothing_else(lab: Lab) -> None:
    axes = {"noise": NOISES, "tree": TREES, "seed": [0, 1]}
    study = planned(lab, axes)
    assert [p.run for p in study.runs] == [what_hash(p.config, ["where"]) for p in study.runs]
    assert len({p.run for p in study.runs}) == 8
    otherwise = planned(lab, dict(reversed(axes.items())), "executor.threads=2", "where.tensorboard=true")
    assert {p.run for p in otherwise.runs} == {p.run for p in study.runs}
    assert {p.run for p in planned(lab, axes, "train.epochs=3").runs}.isdisjoint(p.run for p in study.runs)


def test_a_hash_is_the_same_on_every_machine(lab: Lab) -> None:
    """Its definition is part of the folder's format: a change would run every study anew."""
    run = plan_study(load_study_file(lab.study(config={"log": "log"}, axes={"seed": [7]}))).runs[0].run
    assert run == "9884f225edf6f6f380f2516614cac016d46ef5e2fe0f009976a4bd8a6ab43c5c"


def test_points_with_the_same_configuration_are_one_run(lab: Lab) -> None:
    same = {"values": {"named": {"method.tree": "chain"}, "again": {"method.tree": "chain"}}}
    assert len(planned(lab, {"method": same}).runs) == 1


def test_a_study_resolved_gives_the_same_runs(lab: Lab, tmp_path: Path) -> None:
    from hzo_hil.study.folder import StudyFolder

    study = planned(lab, {"noise": NOISES, "tree": TREES, "seed": [0, 1]}, "train.epochs=2")
    folder = StudyFolder.take(tmp_path / "out", study, resume=False)
    folder.describe(study)
    again = plan_study(load_study_file(tmp_path / "out" / "study.yaml"))
    assert [(p.run, p.axes) for p in again.runs] == [(p.run, p.axes) for p in study.runs]


def test_a_base_is_read_beside_the_study_file(lab: Lab) -> None:
    (lab.path / "folder").mkdir()
    (lab.path / "folder" / "base.yaml").write_text(json.dumps(ONN), encoding="utf-8")
    raw = {"name": "study", "base": "folder/base.yaml", "set": {"train.epochs": 2}, "axes": {"seed": [0, 1]}}
    study = plan_study(load_study_file(lab.write(raw)))
    assert [p.config["train"]["epochs"] for p in study.runs] == [2, 2]


def test_overrides_meet_the_study_or_else_its_configuration(lab: Lab) -> None:
    study = planned(lab, {"seed": [0, 1]}, "name=other", "train.epochs=5", "executor.threads=2")
    assert (study.section.name, study.section.executor.threads) == ("other", 2)
    assert study.runs[0].config["train"]["epochs"] == 5
    with pytest.raises(ConfigError, match=r"did you mean 'train.epochs'"):
        planned(lab, {"seed": [0]}, "train.epoch=5")


def test_what_axes_say_of_themselves(lab: Lab) -> None:
    noise, tree, seed = described_axes(planned(lab, {"noise": {**NOISES, "unit": "rad"}, "tree": TREES, "seed": [0]}))
    assert noise == {
        "name": "noise", "fields": [PHASE], "label": "noise", "unit": "rad", "role": "noise", "values": [0.0, 0.1]
    }  # fmt: skip
    assert (tree["role"], tree["values"]) == ("method", ["chain", "bisect"])
    assert tree["settings"]["chain"] == {"method.tree": "chain"}
    assert seed["role"] == "seed"


def test_axes_of_a_real_device_are_labelled_so(lab: Lab) -> None:
    raw = {**ONN, "devices": {"chip": {"driver": "lab:chip", "options": {"current": 1.0}}}}
    axes = {
        "current": {"field": "devices.chip.options.current", "values": [1.0, 2.0]},
        "seed": {"values": [0], "note": "added on the host"},
    }
    study = plan_study(load_study_file(lab.write({"name": "real", "config": raw, "axes": axes})))
    notes = [axis["note"] for axis in described_axes(study)]
    assert notes == ["a setting of a real device", "added on the host"]


@pytest.mark.slow
def test_runs_of_one_seed_share_chip_start_and_order_of_data(lab: Lab) -> None:
    """Common random numbers: over methods the first loss is the same, over noises the draws of the chip are."""
    import torch

    from hzo_hil.build import build_model, open_devices
    from hzo_hil.config import parse_config
    from hzo_hil.training import Training

    found: dict[int, list[Any]] = {0: [], 1: []}
    orders: dict[int, set[str]] = {0: set(), 1: set()}
    from hzo_hil.ledger import Ledger
    from hzo_hil.train import load_data

    for p in planned(lab, {"noise": NOISES, "tree": TREES, "seed": [0, 1]}).runs:
        config = parse_config(p.config)
        devices = open_devices(config)
        model = build_model(config, devices)
        found[config.seed].append(torch.cat([w.detach().flatten() for w in model.parameters()]))
        training = Training(config, model, load_data(config), Ledger())
        orders[config.seed].add(str([list(b) for b in training._batches()]))
    for seed, starts in found.items():
        assert len(starts) == 4
        assert all(torch.equal(starts[0], other) for other in starts)
        assert len(orders[seed]) == 1
    assert not torch.equal(found[0][0], found[1][0])
    assert orders[0] != orders[1]
