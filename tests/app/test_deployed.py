"""Training on the ideal twin that is written to the device afterwards, as a method of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hzo_hil.config import parse_config
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.evaluate import evaluate_run
from hzo_hil.preview import preview
from hzo_hil.records import RunFolder
from hzo_hil.train import run

TRAINING = ("forward", "probes", "leaf", "calibration")


def go(raw: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    raw = {**raw, "where": {**raw["where"], "run_dir": str(folder)}}
    return run(parse_config(raw), quiet=True, say=lambda text: None, **options)


def parameters(folder: Path, phase: str) -> dict[str, torch.Tensor]:
    state = RunFolder.open(folder).load_checkpoint(phase)["model"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def biased(noisy: Any) -> Any:
    """A chip that the twin does not know, without noise: an evaluation gives the same however often it is asked."""
    chip = {"devices.chip.preset": "ideal", "devices.chip.options.phase_bias": 0.3}
    return lambda changes=None: noisy({**chip, **(changes or {})})


def test_it_is_the_reference_of_the_same_name(biased: Any, tmp_path: Path) -> None:
    """The same steps lead to the same phases (folded into one turn by a write), and to the same score on the device."""
    own = go(biased({"method.credit": "deployed"}), tmp_path / "own")
    beside = go(biased({"references": ["ideal", "deployed"]}), tmp_path / "beside")
    one, two = parameters(tmp_path / "own", "last"), parameters(tmp_path / "beside", "ideal")
    assert all(torch.allclose(torch.exp(1j * one[n]), torch.exp(1j * v), atol=1e-3) for n, v in two.items())
    assert own["score"] == own["rows"]["deployed"]["score"] == beside["rows"]["deployed"]["score"]
    assert "in_loop" not in own["rows"]
    assert beside["score"] == beside["rows"]["in_loop"]["score"]


def test_training_asks_nothing_and_evaluation_is_counted(noisy: Any, tmp_path: Path) -> None:
    found = go(noisy({"method.credit": "deployed"}), tmp_path / "run")
    accounts = found["ledger"]["purposes"]
    assert not any(accounts[purpose]["queries"] for purpose in TRAINING)
    # 3 epochs of 40 test rows; each finds two meshes changed.
    assert found["queries"] == accounts["evaluation"]["queries"] == 3 * 40
    assert found["ledger"]["total"]["writes"] == 3 * 2
    curve = [row["test_accuracy"] for row in RunFolder.open(tmp_path / "run").metrics() if "test_accuracy" in row]
    assert len(curve) == 3


def test_a_plan_of_it_asks_nothing(noisy: Any) -> None:
    found = preview(parse_config(noisy({"method.credit": "deployed"})))
    assert found["step"]["queries"] == found["epoch"]["writes"] == found["queries_per_sample"] == 0


def test_killed_at_an_evaluation_and_resumed_it_is_the_same_run(
    noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = noisy({"method.credit": "deployed"})
    whole = go(raw, tmp_path / "whole")
    answer, calls = SimulatedDevice.run, [0]

    def dying(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return answer(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(SimulatedDevice, "run", dying)
        with pytest.raises(KeyboardInterrupt):
            go(raw, tmp_path / "cut")
    resumed = go(raw, tmp_path / "cut", resume=True)
    assert resumed["score"] == whole["score"]
    one, two = parameters(tmp_path / "cut", "last"), parameters(tmp_path / "whole", "last")
    assert all(torch.equal(one[name], value) for name, value in two.items())


def test_its_run_can_be_evaluated(biased: Any, tmp_path: Path) -> None:
    found = go(biased({"method.credit": "deployed"}), tmp_path / "run")
    assert evaluate_run(tmp_path / "run")["test_accuracy"] == found["score"]


def test_on_a_perfect_chip_it_learns_what_the_loop_learns(noisy: Any, tmp_path: Path) -> None:
    """Where the twin is right both follow the same gradient, but for truncation."""
    perfect = noisy({"devices.chip.preset": "ideal", "method.eps": 1e-3})
    one = go({**perfect, "method": {**perfect["method"], "credit": "deployed"}}, tmp_path / "one")
    two = go(perfect, tmp_path / "two")
    a, b = parameters(tmp_path / "one", "last"), parameters(tmp_path / "two", "last")
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 0.05
    assert one["score"] == pytest.approx(two["score"], abs=0.05)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"references": ["deployed"]}, "leave it out"),
        ({"method.twins": False}, "needs the twins"),
        ({"devices.chip.inner_boundaries": False}, "none is known of 'mesh1"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_asked(
    noisy: Any, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadInput, match=text):
        go(noisy({"method.credit": "deployed", **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_planner_has_nothing_to_plan(hzo: Any, write_config: Any, noisy: Any) -> None:
    raw = noisy()
    raw["method"] = {"credit": "deployed", "plan": "auto", "tolerance": 0.3}
    found = hzo("plan", write_config(raw))
    assert found.status == 2 and "credit: deployed asks for none" in found.err
