"""A network of the zoo as a layer of a configuration: trained, stopped and resumed to the bit by the trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hzo_hil.build import build_model, opaques, open_devices, twin_model
from hzo_hil.config import parse_config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.records import RunFolder
from hzo_hil.train import run
from hzo_hil.zoo import FlatNorm
from tests.app.test_resume import Killed, die_at, go, same, same_outcome

CONVS = [[4, 3, 1, 1], [4, 3, 2, 1]]
PLAIN: dict[str, Any] = {
    "name": "zoo",
    "seed": 4,
    "data": {
        "name": "tests.app.pictures:noise", "options": {"size": 8}, "standardise": True,
        "augment": {"flip": True, "crop": 1},
    },
    "devices": {
        "chip": {
            "kind": "conv_emulator",
            "options": {"image": [3, 8, 8], "convs": CONVS, "activation": "none", "read_noise_std": 0.02},
        }
    },
    "network": [
        {"zoo": "plain_cnn", "device": "chip", "arguments": {"width": 4, "depth": 2, "classes": 3, "size": 8}}
    ],
    "method": {"eps": 0.5},
    "train": {
        "epochs": 3, "batch_size": 8, "checkpoint_every": 2,
        "optimizer": {
            "name": "SGD", "lr": 0.1, "options": {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        },
        "schedule": {"name": "one_cycle"},
    },
    "where": {"picture": False, "threads": 1},
}  # fmt: skip
RESNET = [[16, 3, 1, 1]] * 7 + [[32, 3, 2, 1]] + [[32, 3, 1, 1]] * 5 + [[64, 3, 2, 1]] + [[64, 3, 1, 1]] * 5


def resnet() -> dict[str, Any]:
    raw = copy.deepcopy(PLAIN)
    raw["devices"]["chip"] |= {
        "dtype": "float64", "options": {"image": [3, 8, 8], "convs": RESNET, "activation": "none"},
    }  # fmt: skip
    raw["network"] = [{"zoo": "resnet20", "device": "chip", "arguments": {"size": 8, "classes": 3}, "name": "net"}]
    return raw


def test_gradients_of_every_parameter_are_those_of_backpropagation() -> None:
    """Norms, head and convolutions of ResNet-20, 59 tensors; float64 and without noise, so to rounding."""
    config = parse_config(resnet())
    model = build_model(config, open_devices(config)).double()
    assert [o.name for o in opaques(model)][:3] == ["net.stem", "net.block1.conv1", "net.block1.conv2"]
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for module in (model, twin_model(model)):
        model.zero_grad()
        torch.nn.functional.cross_entropy(module(x), torch.tensor([0, 2, 1])).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == 59
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_run_moves_norms_on_the_host_and_decays_them(tmp_path: Path) -> None:
    summary = go(PLAIN, tmp_path / "run")
    state = RunFolder.open(tmp_path / "run").load_checkpoint()
    norms = {n: v for n, v in state["model"].items() if ".norm." in n}
    assert len(norms) == 2 * 5 and all(bool((v != 0).any()) for v in norms.values())
    assert {g["weight_decay"] for g in state["optimizer"]["param_groups"]} == {5e-4}
    assert summary["ledger"]["purposes"]["probes"]["queries"] > 0
    assert state["schedule"]["total_steps"] == summary["steps"] == 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "run"
    go(PLAIN, folder)
    return folder


@pytest.mark.parametrize("call", [2, 11, 17, 31])
def test_killed_at_any_call_it_goes_on_with_the_same_images_and_statistics(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patched:
        die_at(patched, call, Killed)
        with pytest.raises(Killed):
            go(PLAIN, tmp_path / "run")
    go(PLAIN, tmp_path / "run", resume=True)
    same_outcome(whole, tmp_path / "run")


@pytest.mark.parametrize("call", [18, 19, 20, 21, 22, 23])
def test_a_step_that_ctrl_c_cut_leaves_no_trace_in_the_norms(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Between the first convolution of a forward pass and its last, norms have already seen the batch."""
    with monkeypatch.context() as patched:
        die_at(patched, call, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            go(PLAIN, tmp_path / "run")
    go(PLAIN, tmp_path / "run", resume=True)
    a, b = (RunFolder.open(f).load_checkpoint() for f in (whole, tmp_path / "run"))
    for name in ("model", "optimizer", "schedule", "evaluation"):
        same(a[name], b[name], name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 12}, r"device 'chip', which has another stage 1, .*from \[3, 8, 8\].* than .*\[3, 12, 12\]"),
        ({"depth": 3}, "has 2 stages with a boundary between, and the network has 3 convolutions.*kind: conv_emulator"),
        ({"width": 5}, r"image: \[3, 8, 8\], convs: \[\[5, 3, 1, 1\], \[5, 3, 2, 1\]\]"),
        ({"heads": 2}, "zoo layer 'plain_cnn' could not be made with .*heads"),
    ],
)
def test_a_device_that_does_not_fit_is_answered_with_one_that_does(changes: dict[str, Any], words: str) -> None:
    raw = copy.deepcopy(PLAIN)
    raw["network"][0]["arguments"] |= changes
    config = parse_config(raw)
    with pytest.raises(ConfigError, match=words):
        build_model(config, open_devices(config))


def test_images_of_another_size_are_refused_before_any_query(tmp_path: Path) -> None:
    raw = copy.deepcopy(PLAIN)
    raw["data"]["options"] = {"size": 6}
    with pytest.raises(ConfigError, match=r"takes images \[3, 8, 8\] and gets \[3, 6, 6\]"):
        go(raw, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"zoo": "resnet20"}, "zoo and device go together"),
        ({"host": "torch.nn:Flatten", "device": "chip"}, "zoo and device go together"),
        (
            {"zoo": "plain_cnn", "device": "chop"},
            "uses device 'chop', which devices does not define; did you mean 'chip'",
        ),
    ],
)
def test_half_a_zoo_layer_is_refused(layer: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({**PLAIN, "network": [*PLAIN["network"], layer]})


def test_an_unknown_network_is_answered_with_those_there_are() -> None:
    config = parse_config({**PLAIN, "network": [{"zoo": "resnet18", "device": "chip"}]})
    with pytest.raises(ConfigError, match="no network 'resnet18'; did you mean 'resnet20'"):
        build_model(config, open_devices(config))


@pytest.mark.parametrize("credit", ["feedback", "align", "deployed"])
def test_other_credits_train_it_too(tmp_path: Path, credit: str) -> None:
    raw = {**PLAIN, "method": {"credit": credit}, "where": {**PLAIN["where"], "run_dir": str(tmp_path / "run")}}
    summary = run(parse_config(raw), quiet=True, say=lambda text: None)
    assert summary["steps"] == 9 and summary["ledger"]["purposes"]["probes"]["queries"] == 0


def test_norms_of_flat_images_are_torchs() -> None:
    flat, norm = torch.randn(4, 3 * 6), FlatNorm(3)
    assert torch.allclose(norm(flat), torch.nn.BatchNorm2d(3)(flat.reshape(4, 3, 2, 3)).flatten(1), atol=1e-6)
