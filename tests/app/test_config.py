"""Configurations: what is accepted, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil.config import Config, load_config, parse_config, schema
from hzo_hil.devices.errors import ConfigError
from hzo_hil.yamlfile import read_yaml, with_overrides


def refusal(raw: Any, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, overrides, "my.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.epochs=3", "trian: no such field; did you mean 'train'?"),
        ("train.epohcs=3", "train.epohcs: no such field; did you mean 'epochs'?"),
        ("train.optimizer.lerning=3", "train.optimizer.lerning: no such field; known: name, lr, options"),
        ("devices.chip.knd=onn", "devices.chip.knd: no such field; did you mean 'kind'?"),
        ("network.0.opaqe=chip", "network.0.opaqe: no such field; did you mean 'opaque'?"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1 (given: 0)"),
        ("train.optimizer.lr=.inf", "train.optimizer.lr: Input should be a finite number"),
        ("budget.max_queries=0", "budget.max_queries: Input should be greater than 0 (given: 0)"),
        ("budget.max_device_seconds=0", "budget.max_device_seconds: Input should be greater than 0"),
        ("method.eps=0", "greater than 0"),
        ("method.credit=magic", "method.credit: Input should be 'hzo', 'twin', 'deployed'"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("name=a b", "name: String should match pattern"),
        ("name=null", "name: Input should be a valid string"),
        ("data=5", "data: "),
        ("network=[]", "network: List should have at least 1 item"),
        ("network=[{opaque: chap}]", "network uses device 'chap', which devices does not define; did you mean 'chip'?"),
        ("network=[{host: 'torch.nn:ReLU'}]", "the network has no opaque layer: nothing to train on a device"),
        ("network=[{opaque: chip, host: 'torch.nn:ReLU'}]", "a layer has exactly one of opaque, host, skip"),
        ("network=[{opaque: chip, arguments: {a: 1}}]", "arguments are for host and zoo layers"),
        ("devices.chip.driver=lab:make", "exactly one of kind, driver, url, members, replay (given: kind, driver)"),
        ("devices.chip.power=0", "devices.chip.power: Input should be greater than 0 (given: 0)"),
        ("devices.chip.power_drift_std=-1", "devices.chip.power_drift_std: Input should be greater than or equal to 0"),
        ("devices.chip.engine=gpu", "devices.chip: unknown engine 'gpu': choose native, torch, cuda or cuda:N"),
        ("references=[perfect]", "references.0: Input should be 'deployed', 'ideal' or 'physics_aware'"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(tiny: Any, override: str, words: str) -> None:
    text = refusal(tiny(), override)
    assert text.startswith("my.yaml has ")
    assert words in text


def test_light_and_engine_are_those_of_simulated_chips(tiny: Any) -> None:
    url = {"url": "zmq+tcp://bench:5555", "power": 2.0, "laser_wander": 0.1, "engine": "torch", "query_s": 1.0}
    assert "devices.chip: laser_wander, power, engine: for simulated chips (kind) only" in refusal(
        tiny({"devices.chip": url})
    )


@pytest.mark.parametrize("field", ["laser_wander", "power_drift_std"])
def test_drift_without_device_time_is_refused(tiny: Any, field: str) -> None:
    still = {"devices.chip.query_s": 0, f"devices.chip.{field}": 0.1}
    words = f"devices.chip: {field}: power follows the time of the device's work, and a device whose query_s and"
    assert words in refusal(tiny(still))
    assert parse_config(tiny({**still, "devices.chip.settling_s": 0.1})).devices["chip"].settling_s == 0.1


def test_a_device_needs_one_source(tiny: Any) -> None:
    raw = tiny()
    del raw["devices"]["chip"]["kind"]
    assert "devices.chip: give exactly one of kind, driver, url, members, replay (given: none)" in refusal(raw)


def test_references_need_twins(tiny: Any) -> None:
    raw = tiny({"references": ["ideal"], "method.twins": False})
    assert "references need the twins of the stages, and method.twins is false" in refusal(raw)


def test_every_mistake_is_named_at_once(tiny: Any) -> None:
    text = refusal(tiny({"sed": 1, "train.epochs": -1}))
    assert text.startswith("my.yaml has 2 mistakes:")
    assert "sed: no such field; did you mean 'seed'?" in text
    assert "train.epochs" in text


def test_a_missing_section_is_named(tiny: Any) -> None:
    raw = tiny()
    del raw["data"]
    assert "data: this field is needed" in refusal(raw)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs", "--set 'epochs' is not of the form a.b=value"),
        ("=3", "is not of the form a.b=value"),
        ("train..lr=3", "is not of the form a.b=value"),
        ("name.x=1", "name holds a value, not fields"),
        ("network.7.opaque=chip", "'7' is not a place in a list of 1"),
        ("network.first.opaque=chip", "'first' is not a place in a list of 1"),
        ("train.epochs={", "the value is not valid YAML"),
    ],
)
def test_a_nonsensical_override_is_refused(tiny: Any, override: str, words: str) -> None:
    text = refusal(tiny(), override)
    assert words in text
    assert repr(override) in text


def test_overrides_reach_fields_lists_and_sections_that_are_absent(tiny: Any) -> None:
    given = ["train.optimizer.lr=1e-3", "budget.max_queries=7", "network.0.name=first", "method.eps={0: 0.1}"]
    config = parse_config(tiny(), given)
    assert config.train.optimizer.lr == 1e-3
    assert config.budget.max_queries == 7
    assert config.network[0].name == "first"
    assert config.method.eps == {0: 0.1}


def test_overrides_leave_the_mapping_they_came_from_alone(tiny: Any) -> None:
    raw = tiny()
    with_overrides(raw, ["train.epochs=9"])
    assert raw == tiny()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_an_override(number: float) -> None:
    """However a language prints a float: 1e-3 is a number here, a text in YAML 1.1."""
    assert with_overrides({}, [f"x={number!r}"])["x"] == number


def test_files_that_are_no_configurations_are_refused(tmp_path: Path) -> None:
    def words(content: bytes) -> str:
        path = tmp_path / "c.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_yaml(path)
        assert "c.yaml" in str(caught.value)
        return str(caught.value)

    assert "is not valid YAML" in words(b"a: [1, 2")
    assert "is not valid YAML" in words(b"a: !!python/object:os.system {}")
    assert "'a' is given twice" in words(b"a: 1\nb: 2\na: 3\n")
    assert "holds no fields" in words(b"")
    assert "holds no fields" in words(b"just a text")
    assert "cannot read configuration" in words(b"\xff\xfe\x00x")
    assert "cannot read configuration" in words(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ConfigError, match="cannot read configuration .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot read configuration"):
        load_config(tmp_path)


def test_what_leaves_out_where_and_budget(tiny: Any) -> None:
    one = parse_config(tiny())
    two = parse_config(tiny({"where.threads": 2, "where.host": "cuda", "budget.max_queries": 5}))
    assert one.what() == two.what()
    assert one.what() != parse_config(tiny({"seed": 4})).what()


def test_a_resolved_configuration_is_a_configuration(tiny: Any) -> None:
    config = parse_config(tiny({"method.eps": {0: 0.1}, "where.run_dir": "runs/x"}))
    assert parse_config(config.model_dump(mode="json")) == config


def test_the_schema_names_every_section() -> None:
    found = schema()
    assert set(found["properties"]) == set(Config.model_fields)
    assert found["additionalProperties"] is False
    assert found["$defs"]["BudgetSection"]["properties"]["max_queries"]["description"]
