"""Every shipped configuration loads, and what needs no data of its own trains for an epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hzo_hil.build import build_model, opaques, open_devices
from hzo_hil.config import load_config
from hzo_hil.devices.server import Server
from hzo_hil.opening import open_device
from hzo_hil.preview import preview
from hzo_hil.train import run
from hzo_hil.yamlfile import read_yaml

ROOT = Path(__file__).resolve().parents[2]
# The board of iris_firmware is emulated in tests/firmware, which trains it.
FILES = sorted(p for p in (ROOT / "configs").glob("*.yaml") if p.stem != "iris_firmware")
STUDIES = [p for p in FILES if "axes" in read_yaml(p)]
CONFIGS = [p for p in FILES if p not in STUDIES]
DEVICES = sorted((ROOT / "configs" / "devices").glob("*.yaml"))
ON_DISK = {"mnist", "cifar10", "vowels"}


def test_there_are_configurations() -> None:
    names = {path.stem for path in CONFIGS}
    assert {"onn_digits", "emulator_digits", "vowels", "mnist", "regression"} <= names
    assert {path.stem for path in DEVICES} >= {"onn_32"}


@pytest.fixture
def reachable() -> Iterator[Callable[[Path], list[str]]]:
    """Overrides with which a configuration finds its device: one behind a wire is served here, on a port of its own."""
    stop = threading.Event()
    threads = []

    def overrides(path: Path) -> list[str]:
        if path.stem != "onn_digits_zmq":
            return []
        server = Server(open_device(ROOT / "configs" / "devices" / "onn_32.yaml"), "tcp://127.0.0.1:0")
        threads.append(threading.Thread(target=server.serve, args=(stop,)))
        threads[-1].start()
        return [f"devices.chip.url=zmq+{server.url}"]

    yield overrides
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_loads_under_its_own_name_and_builds_its_network(
    path: Path, monkeypatch: pytest.MonkeyPatch, reachable: Callable[[Path], list[str]]
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(path, reachable(path))
    assert config.name == path.stem
    devices = open_devices(config)
    assert opaques(build_model(config, devices))
    for device in devices.values():
        device.close()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_trains_for_an_epoch_as_planned(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: Callable[[Path], list[str]]
) -> None:
    monkeypatch.chdir(ROOT)
    small = ["train.epochs=1", "data.limit_train=24", "data.limit_test=64", "where.picture=false", "references=[]"]
    if path.stem == "raw_digits":  # measuring one mesh of four node by node is enough here
        small += ["devices.chip.options.layers=1"]
    config = load_config(path, [*small, f"where.run_dir={tmp_path / 'run'}", *reachable(path)])
    if config.data.name in ON_DISK:
        pytest.skip("its data do not come with the package")
    planned = preview(config)
    summary = run(config, quiet=True)
    spent = [summary["ledger"]["purposes"][p]["queries"] for p in ("forward", "probes", "leaf")]
    assert sum(spent) == planned["epoch"]["queries"]
    assert summary["steps"] == -(-24 // config.train.batch_size)


@pytest.mark.parametrize("path", DEVICES, ids=lambda p: p.stem)
def test_a_device_opens(path: Path) -> None:
    assert open_device(path).health().ok


def test_the_device_file_is_another_specimen_of_the_main_jobs_chip() -> None:
    """So that `eval RUN --device configs/devices/onn_32.yaml` shows what a change of chips costs."""
    config = load_config(ROOT / "configs" / "onn_digits.yaml")
    own = open_devices(config)["chip"].capabilities
    other = open_device(ROOT / "configs" / "devices" / "onn_32.yaml").capabilities
    assert own.stages == other.stages and own.boundaries == other.boundaries
    assert own.identity != other.identity


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_plans_every_run_under_its_own_name(path: Path, hzo: Callable[..., Any]) -> None:
    found = hzo("study", path, "--dry-run")
    assert found.status == 0 and f"{path.stem}: " in found.out
    if path.stem == "noise_study":
        assert "480 runs" in found.out  # 30 settings of the noise, four methods, four seeds
