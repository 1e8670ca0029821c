"""From configuration to devices, networks and objectives; and what is refused before any device time is spent."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hzo_hil.build import build_model, opaques, open_devices, twin_model
from hzo_hil.config import parse_config
from hzo_hil.devices.errors import BadInput, CapabilityError, ConfigError
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.objectives import make_optimizer, make_schedule
from hzo_hil.opening import installed_drivers, open_device
from hzo_hil.precheck import check_fit
from hzo_hil.train import load_data, run

LAB = """
import numpy as np
import torch
from hzo_hil.devices.fake import FakeDevice

def make(widths=(4, 6, 3), **options):
    return FakeDevice.mlp(widths, **options)

def broken(**options):
    raise OSError("no instrument at address 7")

def nothing():
    return object()

class Scale(torch.nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(float(by)))
    def forward(self, x):
        return x * self.by

def not_a_module():
    return 3

def to_number(x):
    return 3
"""


@pytest.fixture
def lab(module_file: Any) -> str:
    return str(module_file("lab_of_build", LAB))


def made(raw: Any) -> torch.nn.Sequential:
    config = parse_config(raw)
    return build_model(config, open_devices(config))


def refusal(raw: Any) -> str:
    """What the whole run says, as a bad input, before its folder is made."""
    with pytest.raises(BadInput) as caught:
        run(parse_config(raw))
    return str(caught.value)


# --- devices ---------------------------------------------------------------------------------------------------


def test_a_driver_by_module_and_callable(tiny: Any, lab: str) -> None:
    device = open_device({"driver": f"{lab}:make", "options": {"widths": [4, 5, 3], "identity": "bench-2"}})
    assert device.capabilities.identity == "bench-2"
    assert device.capabilities.width(1) == 5


def test_a_device_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chip.yaml"
    file.write_text("kind: emulator\npreset: aihwkit\noptions: {widths: [4, 3]}\n", encoding="utf-8")
    assert open_device(file, seed=4).capabilities.identity == "emulator-aihwkit-4"
    assert open_device(str(file)).capabilities.width(1) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "onnn"}, "device of kind 'onnn': unknown kind of chip 'onnn': known are onn"),
        ({"kind": "onn", "preset": "nice"}, "unknown preset 'nice' for kind 'onn': known are ideal"),
        ({"kind": "onn", "options": {"port": 3}}, "unknown options for kind 'onn': port; known are"),
        ({"kind": "onn", "options": {"ports": -3}}, "ports must be an integer of at least 1, not -3"),
        ({"driver": "nothing_here:make"}, "no module 'nothing_here'"),
        ({"driver": "nobody"}, "no driver 'nobody' in the entry-point group hzo_hil.devices"),
        ({"driver": "LAB:missing"}, "has no 'missing'"),
        ({"driver": "LAB:nothing"}, "gave a object, which is no device: it needs capabilities, open, run"),
        ({"driver": "LAB:broken", "options": {"a": 1}}, "could not be made with {'a': 1}: OSError: no instrument"),
        ({"driver": "LAB:make", "options": {"colour": 1}}, "could not be made with"),
    ],
)
def test_a_device_that_cannot_be_made_is_explained(lab: str, fields: dict[str, Any], words: str) -> None:
    fields = {k: v.replace("LAB", lab) if isinstance(v, str) else v for k, v in fields.items()}
    with pytest.raises(ConfigError) as caught:
        open_device(fields)
    assert words in str(caught.value)


def test_light_drift_and_engine_reach_a_simulated_chip() -> None:
    fields = {
        "kind": "emulator", "options": {"widths": [4, 3]}, "query_s": 1e-3, "power": 0.5, "laser_wander": 0.1,
        "wander_period_s": 2.0, "power_drift_std": 0.05, "power_drift_tau_s": 3.0, "drift_step_s": 0.2,
        "engine": "torch",
    }  # fmt: skip
    found = open_device(fields, seed=9).snapshot()
    assert found["light"] == {
        "power": 0.5, "laser": {"amplitude": 0.1, "period_s": 2.0}, "drift_std": 0.05, "drift_tau_s": 3.0, "seed": 9,
    }  # fmt: skip
    assert (found["engine"], found["drift_step_s"]) == ("torch", 0.2)
    with pytest.raises(CapabilityError, match="engine 'cuda:99': torch sees"):
        open_device({**fields, "engine": "cuda:99"})


def test_a_device_address_without_a_transport_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'carrier-pigeon://roof' is no address of a device: .* one of zmq\+tcp"):
        open_device("carrier-pigeon://roof")


def test_entry_points_are_found_and_broken_ones_are_listed_with_their_error(
    lab: str, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        metadata.EntryPoint("bench", f"{lab}:make", "hzo_hil.devices"),
        metadata.EntryPoint("attic", "not_installed_lab:make", "hzo_hil.devices"),
    ]
    monkeypatch.setattr("hzo_hil.opening.metadata.entry_points", lambda group: entries)
    assert isinstance(open_device({"driver": "bench"}), FakeDevice)
    rows = {row["name"]: row["detail"] for row in installed_drivers()}
    assert rows["bench"] == f"{lab}:make"
    assert rows["attic"].startswith("broken: ModuleNotFoundError: No module named 'not_installed_lab'")
    assert "presets: ideal, aihwkit" in rows["emulator"]
    with pytest.raises(ConfigError, match="'attic' .* cannot be loaded: ModuleNotFoundError"):
        open_device({"driver": "attic"})
    with pytest.raises(ConfigError, match=r"no driver 'roof' .*\(attic, bench\)"):
        open_device({"driver": "roof"})


# --- networks --------------------------------------------------------------------------------------------------


def test_opaque_host_and_skip_layers_in_their_order(tiny: Any, lab: str) -> None:
    raw = tiny(
        {
            "network": [
                {"host": f"{lab}:Scale", "arguments": {"by": 2}},
                {"opaque": "chip", "name": "first"},
                {"skip": [{"host": "torch.nn:Tanh"}]},
            ]
        }
    )
    model = made(raw)
    assert [type(m).__name__ for m in model] == ["Scale", "Opaque", "Residual"]
    assert opaques(model)[0].name == "first"


def test_a_list_of_stages_takes_them_in_any_order_with_codecs_and_rules(tiny: Any) -> None:
    stages = [
        {"device": "chip", "stage": 0, "codec_in": {"gain": 2.0, "offset": 0.5}},
        {"device": "chip", "stage": 1, "leaf": "delta"},
    ]
    raw = tiny({"devices.chip.options": {"widths": [4, 4, 4]}, "network": [{"opaque": stages}]})
    module = opaques(made(raw))[0]
    assert module.network.stages[0].codec_in.gain == 2.0
    assert type(module.rules[1]).__name__ == "DeltaRule"
    # An ideal twin computes in device units: where a codec lies between, it is seen through it.
    assert type(module.network.stages[0].twin).__name__ == "CodedTwin"
    assert type(module.network.stages[1].twin).__name__ == "Twin"


def test_initial_values_follow_the_seed_and_leave_torch_alone(tiny: Any) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = [{"host": "torch.nn:Linear", "arguments": {"in_features": 4, "out_features": 4}}, {"opaque": "chip"}]
    one, two = (made(tiny({"network": network})) for _ in range(2))
    other = made(tiny({"network": network, "seed": 4}))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, two.state_dict()[name])
            assert name.endswith("bias") or not torch.equal(value, other.state_dict()[name])


def test_a_twin_model_shares_its_parameters_and_equals_an_exact_device(tiny: Any) -> None:
    model = made(tiny({"network": [{"opaque": "chip"}, {"skip": [{"host": "torch.nn:Tanh"}]}]}))
    twin = twin_model(model)
    x = torch.rand(5, 4)
    with torch.no_grad():
        np.testing.assert_allclose(twin(x), model(x), atol=1e-6)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.tree": [2]}, "[2]"),
        ({"method.tree": "bushy"}, "bushy"),
        ({"method.probes": "crystal"}, "crystal"),
        ({"method.differences": "sideways"}, "sideways"),
        ({"method.leaf": "autumn"}, "unknown leaf rule 'autumn': choose auto, autograd, delta"),
        ({"method.leaf": "delta:softmax"}, "unknown derivative 'softmax'"),
        ({"method.eps": {5: 0.1}}, "eps names boundaries [5]"),
        ({"devices.chip.options": {"widths": [4, 6, 3], "in_bits": 4, "in_bound": 1.0}, "method.eps": 1e-3}, "step"),
        ({"devices.chip.options": {"widths": [5, 3]}}, "takes [..., 5], and gets [4] per sample from data 'iris'"),
        ({"devices.chip.options": {"widths": [4, 2]}}, "the data has a label 2, the network 2 outputs"),
        ({"network": [{"opaque": [{"device": "chip", "stage": 7}]}]}, "has 2 stages: there is no segment (7, 8]"),
        (
            {"network": [{"opaque": [{"device": "chip", "stage": 1}, {"device": "chip"}]}]},
            "gives 3 activations, stage 2",
        ),
        (
            {"devices.chip.inner_boundaries": False, "network": [{"opaque": [{"device": "chip"}]}]},
            "needs boundary 1 of device 'emulator-ideal-3', which the device cannot read",
        ),
        (
            {"devices.chip.inner_boundaries": False, "network": [{"opaque": [{"device": "chip", "stage": 1}]}]},
            "needs boundary 1 of device 'emulator-ideal-3', which the device cannot drive",
        ),
        ({"network": [{"host": "LAB:not_a_module"}, {"opaque": "chip"}]}, "gave a int, not a torch.nn.Module"),
        ({"network": [{"host": "LAB:Scale"}, {"opaque": "chip"}]}, "could not be made with {}"),
        ({"network": [{"host": "torch.nn:Lineer"}, {"opaque": "chip"}]}, "has no 'Lineer'. Did you mean Linear"),
        (
            {
                "network": [
                    {"host": "torch.nn:Linear", "arguments": {"in_features": 9, "out_features": 4}},
                    {"opaque": "chip"},
                ]
            },
            "does not take data of shape [4] per sample",
        ),
        ({"network": [{"skip": [{"opaque": "chip"}]}]}, "a skip's layers take [4] per sample and give [3]"),
        (
            {"network": [{"opaque": "chip"}, {"host": "hzo_hil.layers:Readout", "arguments": {"classes": 9}}]},
            "Readout of 9",
        ),
        ({"train.loss": "hinge"}, "unknown loss 'hinge': choose cross_entropy, mse, or give module:function"),
        ({"train.metric": "luck"}, "unknown metric 'luck': choose accuracy, mse, or give module:function"),
        ({"train.loss": "mse"}, "train.loss 'mse' needs outputs and targets of one shape"),
        ({"train.loss": "LAB:to_number"}, "train.loss 'LAB:to_number' does not take"),
        ({"train.optimizer.name": "Adamm"}, "torch.optim has no optimizer 'Adamm'; did you mean 'Adam'?"),
        ({"train.optimizer.options": {"momentun": 1}}, "optimizer 'Adam': "),
        ({"train.schedule": {"name": "one_cycle", "options": {"pct_start": 7}}}, "schedule 'one_cycle': "),
        (
            {"train.schedule": {"name": "one_cycle", "options": {"pct_start": 0.125}}},
            "over 8 steps has no step left for one of its phases (of one_cycle: pct_start times the steps is 1)",
        ),
        ({"where.host": "abacus"}, "where.host 'abacus' cannot be used"),
        ({"data.name": "irises"}, "no data set 'irises'"),
        ({"data.name": "npz"}, "needs path"),
        ({"data.options": {"colour": 1}}, "has no option colour"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    tiny: Any, lab: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    import json

    changes = json.loads(json.dumps(changes).replace("LAB", lab))
    if "method.eps" in changes and isinstance(changes["method.eps"], dict):
        changes["method.eps"] = {int(k): v for k, v in changes["method.eps"].items()}
    text = refusal(tiny({**changes, "where.run_dir": str(tmp_path / "run")}))
    assert words.replace("LAB", lab) in text
    assert not (tmp_path / "run").exists()


# --- objectives ------------------------------------------------------------------------------------------------


def test_checking_the_fit_changes_no_statistics_and_no_stream(tiny: Any) -> None:
    raw = tiny({"network": [{"host": "torch.nn:BatchNorm1d", "arguments": {"num_features": 4}}, {"opaque": "chip"}]})
    config = parse_config(raw)
    model = build_model(config, open_devices(config))
    before, stream = {k: v.clone() for k, v in model[0].state_dict().items()}, torch.get_rng_state()
    check_fit(config, model, load_data(config))
    assert all(torch.equal(v, before[k]) for k, v in model[0].state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training


@pytest.mark.parametrize("name", ["constant", "one_cycle", "cosine"])
def test_schedules_begin_and_end_where_they_say(tiny: Any, name: str) -> None:
    config = parse_config(tiny({"train.schedule.name": name, "train.optimizer.lr": 0.1}))
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.1)
    assert (rates[-1] == pytest.approx(0.1)) == (name == "constant")


def test_an_optimizer_of_ones_own(tiny: Any) -> None:
    config = parse_config(
        tiny({"train.optimizer": {"name": "torch.optim:SGD", "lr": 0.5, "options": {"momentum": 0.9}}})
    )
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
