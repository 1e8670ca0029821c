"""Every loss-only optimiser from a configuration: counted as forecast, budgeted, resumed to the bit, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hzo_hil import optim
from hzo_hil.config import parse_config
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.optim import LossOnly
from hzo_hil.preview import preview
from hzo_hil.records import RunFolder
from hzo_hil.yamlfile import read_yaml
from tests.app.conftest import changed
from tests.app.test_resume import Killed, die_at, go, same, same_outcome

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "data": {"name": "digits", "limit_train": 20, "limit_test": 20},
    "devices.core.options.widths": [64, 3, 4, 10],
    "method": {"credit": "loss", "leaf": "delta:tanh", "twins": False},
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.checkpoint_every": 1,
    "train.schedule.name": "constant",
    "where": {"picture": False, "threads": 1},
}
EPS = {"eps": 0.05}
# By class, or class/variant: lr, the class's own options, and what else the configuration needs.
METHODS: dict[str, tuple[float, dict[str, Any], dict[str, Any]]] = {
    "SPSA": (0.02, EPS, {}),
    "RGE": (0.02, {**EPS, "directions": 3}, {}),
    "FLOPS": (0.02, {"directions": 3}, {}),
    "CGE": (0.1, EPS, {}),
    "CGE/central": (0.1, {**EPS, "central": True}, {}),
    "DeepZero": (0.1, {**EPS, "fractions": 0.9}, {}),
    "DeepZero/pruned": (0.1, {**EPS, "sparsity": 0.9, "pruning_queries": 4}, {}),
    "DeepZero/signed": (0.1, {**EPS, "sparsity": 0.5, "pruning_queries": 4, "ranking": "signed", "mask_steps": 2}, {}),
    "MeZO": (0.02, EPS, {}),
    "MeZO/one_cycle": (0.02, EPS, {"train.schedule.name": "one_cycle"}),
    "HiZOO": (0.02, {**EPS, "smooth": 1e-3}, {}),
    "SubZero": (0.02, {**EPS, "rank": 2, "refresh": 3}, {}),
    "QuZO": (0.02, EPS, {}),
    "QuZO/grid": (0.02, {"grid": 1 / 64}, {}),
    "MGD": (0.02, {**EPS, "period": 8}, {}),
    "MGD/walsh": (0.02, {**EPS, "code": "walsh", "momentum": 0.5, "cost_noise": 0.01}, {}),
    "LPP": (0.02, {**EPS, "refresh": 2}, {"method.twins": True}),
    "SparseCoordinateDescent": (0.1, {"coordinates": 6}, {}),
    "SparseCoordinateDescent/kept": (0.1, {"coordinates": 6, "opposite": False, "active": 0.5}, {}),
    "ZOSAH": (0.5, {**EPS, "planes": 3}, {}),
    "Nevergrad": (0.1, {"asks": 3}, {}),
    "Nevergrad/CMA": (0.1, {"asks": 3, "method": "CMA"}, {}),
    "PatternSearch": (0.1, {"asks": 3}, {}),
    "Evolution": (0.1, {"population": 6}, {}),
    "Evolution/CMAES": (0.1, {"population": 6, "method": "CMAES"}, {}),
}
LIBRARIES = {"Nevergrad": "nevergrad", "PatternSearch": "nevergrad", "Evolution": "evotorch"}


def raw(method: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """`configs/emulator_digits.yaml`, made small: three steps an epoch, of 8, 8 and 4 samples."""
    name = method.partition("/")[0]
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name], reason="not installed (pip install 'hzo-hil[baselines]')")
    lr, options, more = METHODS[method]
    chosen = {"train.optimizer": {"name": name, "lr": lr, "options": options}}
    return changed(read_yaml(ROOT / "configs" / "emulator_digits.yaml"), {**SMALL, **chosen, **more, **(changes or {})})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of a method."""
    made: dict[str, Path] = {}

    def of(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp("whole") / "run"
            go(raw(method), made[method])
        return made[method]

    return of


def test_every_class_is_in_the_table() -> None:
    made = (getattr(optim, name) for name in optim.__all__)
    classes = {m.__name__ for m in made if isinstance(m, type) and issubclass(m, LossOnly)}
    assert {method.partition("/")[0] for method in METHODS} == classes - {"LossOnly", "Descent"}


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_is_what_is_spent(whole: Callable[[str], Path], method: str) -> None:
    """Queries, evaluations and calls; writes are a bound, and so is all that is asked where the plan says so."""
    found = preview(parse_config(raw(method)))
    purposes = json.loads((whole(method) / "summary.json").read_text(encoding="utf-8"))["ledger"]["purposes"]
    assert purposes["forward"]["queries"] == purposes["leaf"]["queries"] == 0
    for name in ("queries", "stage_evaluations", "calls"):
        assert purposes["calibration"][name] == found["before"][name], name
        spent, planned = purposes["probes"][name], 2 * found["epoch"][name]
        assert (planned / 2 < spent <= planned) if found["at_most"] else spent == planned, name
    assert 0 < purposes["probes"]["writes"] <= 2 * found["epoch"]["writes"]
    assert purposes["calibration"]["writes"] <= found["before"]["writes"]
    assert found["at_most"] == (method == "SparseCoordinateDescent")
    assert bool(found["before"]["queries"]) == ("sparsity" in METHODS[method][1])
    assert found["tier"] == ("twin" if method == "LPP" else "loss")


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_it_is_the_same_run(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """In the midst of the third step, whose predecessors and preparation are in the checkpoint."""
    config = raw(method)
    found = preview(parse_config(config))
    steps = 2.5 if not found["at_most"] else 2.0
    folder = whole(method)
    with monkeypatch.context() as patched:
        die_at(patched, round(found["before"]["calls"] + steps * found["step"]["calls"]), Killed)
        with pytest.raises(Killed):
            go(config, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").load_checkpoint("last")["step"] in (1, 2)
    go(config, tmp_path / "run", resume=True)
    same_outcome(folder, tmp_path / "run")


def test_pruning_that_was_interrupted_is_done_again_with_the_same_draws(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = raw("DeepZero/pruned")
    with monkeypatch.context() as patched:
        die_at(patched, 5, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run")
    kept = RunFolder.open(tmp_path / "run").load_checkpoint("last")
    assert kept["step"] == 0 and kept["optimizer"]["state"]["fractions"] is None
    go(config, tmp_path / "run", resume=True)
    one, two = (RunFolder.open(p).load_checkpoint("last") for p in (whole("DeepZero/pruned"), tmp_path / "run"))
    same(one["model"], two["model"], "model")
    assert one["optimizer"]["state"]["fractions"] == two["optimizer"]["state"]["fractions"]


def test_pruning_leaves_what_sparsity_says_and_the_masks_of_an_epoch(tmp_path: Path) -> None:
    go(raw("DeepZero/pruned", {"train.optimizer.options.weight_decay": 0.0, "train.epochs": 1}), tmp_path / "run")
    state = RunFolder.open(tmp_path / "run").load_checkpoint("last")["optimizer"]["state"]
    sizes = [64 * 3, 3, 3 * 4, 4, 4 * 10, 10]  # weights and biases, which are not pruned
    left = 261 - sum(round(f * n) for f, n in zip(state["fractions"], sizes, strict=True))
    assert sum(sizes) == 261 and left == 261 - round(0.9 * (64 * 3 + 3 * 4 + 4 * 10))
    assert int((state["momentum"] != 0).sum()) <= left  # one mask for all three steps, and some slopes are 0
    assert state["queries"] == 10 + 3 * (1 + left)


def test_a_lost_step_is_over_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer in the midst of a step of an evolution strategy, whose search then begins anew."""
    from hzo_hil.devices.errors import BadStep

    config = raw("Evolution")
    with monkeypatch.context() as patched:
        die_at(patched, 9, BadStep)
        summary = go(config, tmp_path / "run")
    assert summary["steps"] == 6 and summary["bad_steps"] == 1


def test_a_whole_budget_ends_every_run_that_counts_coordinates(tmp_path: Path) -> None:
    summary = go(raw("DeepZero/pruned", {"budget.max_queries": 700}), tmp_path / "run")
    assert "the budget of 700 queries is spent" in summary["stopped"]
    spent = summary["ledger"]["purposes"]
    assert spent["calibration"]["queries"] + spent["probes"]["queries"] <= 700


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("CGE", {"budget.max_queries": 1000}, "one training step of 8 samples needs 2,096"),
        ("DeepZero/pruned", {"budget.max_queries": 200}, "8 samples, with what precedes the first, needs 416"),
        ("DeepZero", {"train.optimizer.options.sparsity": 0.9}, "give the one or the other"),
        ("DeepZero", {"train.optimizer.options.fractions": 1.5}, "the fraction of parameter 0 is 1.5"),
        ("DeepZero", {"train.optimizer.options.fractions": [0.5]}, "trains 6 parameters and got 1 fractions"),
        ("DeepZero", {"train.optimizer.options": {"sparsity": 0.9, "ranking": "best"}}, "unknown ranking 'best'"),
        ("LPP", {"method.credit": "hzo", "method.twins": True}, "'LPP' and method.credit 'hzo' do not go together"),
        ("LPP", {"method.twins": False}, "tier 'twin'"),
        ("LPP", {"devices.core.options.widths": [64, 65, 4, 10]}, "4,225 parameters, more than 4,096"),
        ("SPSA", {"train.optimizer.name": "FeatureReuse"}, "hzo_hil.optim has no optimizer 'FeatureReuse'"),
        ("SPSA", {"train.optimizer.name": "layer_fractions"}, "has no optimizer 'layer_fractions'"),
        ("DeepZero", {"train.optimizer.options": {"replicas": 2}}, "options replicas: no text says what that is"),
        ("LPP", {"train.optimizer.options": {"jacobian": "mine"}}, "options jacobian: no text says what that is"),
        ("Evolution", {"train.optimizer.options.method": "CEM"}, "options of CEM: missing a required argument"),
        ("Evolution", {"train.optimizer.options.options": {"spread": 1}}, "unexpected keyword argument 'spread'"),
        ("Evolution", {"train.schedule.name": "one_cycle"}, "Evolution takes it once"),
        ("Evolution", {"train.optimizer.options.method": "XES"}, "unknown method 'XES'"),
        ("ZOSAH", {"train.optimizer.options.planes": 200}, "200 planes need 400 parameters"),
    ],
)
def test_what_cannot_be_is_refused_before_device_time(
    write_config: Any, hzo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, changes: Any, words: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(SimulatedDevice, "run", lambda *a, **k: asked.append(a))
    found = hzo("train", write_config(raw(method, changes)), "--run-dir", tmp_path / "run")
    assert found.status == 2 and not asked
    assert words in found.err, found.err


@pytest.mark.parametrize("method", ["SPSA", "CGE", "LPP"])
def test_it_trains_on_a_noiseless_chip(tmp_path: Path, method: str) -> None:
    """Untuned, and only that losses fall: the first epoch's against the last's."""
    quiet = {"devices.core.preset": "ideal", "train.epochs": 12, "data.limit_train": 8, "train.optimizer.lr": 0.1}
    if method == "LPP":
        quiet["train.optimizer.options.directions"] = 10
    go(raw(method, quiet), tmp_path / "run")
    rows = [r["loss"] for r in RunFolder.open(tmp_path / "run").metrics() if "test_loss" in r]
    assert rows[-1] < rows[0] and torch.isfinite(torch.tensor(rows)).all()
