"""Measure the parameters of a finished or interrupted run, on its device or another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hzo_hil.build import build_model, open_devices
from hzo_hil.config import Config, OptimizerSection, ScheduleSection, parse_config
from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import ConfigError
from hzo_hil.ledger import Ledger, recording
from hzo_hil.link import link_to
from hzo_hil.methodsections import MethodSection
from hzo_hil.opening import open_device
from hzo_hil.precheck import check_fit
from hzo_hil.records import RunFolder
from hzo_hil.train import load_data, on_host
from hzo_hil.training import Training


def evaluate_run(
    run: Path, device: str | None = None, overrides: Iterable[str] = (), data_dir: Path | None = None,
    checkpoint: str = "last",
) -> dict[str, Any]:  # fmt: skip
    """Test loss and metric, queries and the identity of what answered. `overrides` may change where, not what."""
    folder = RunFolder.open(run)
    state = folder.load_checkpoint(checkpoint)
    # How it was trained is of no concern: the device need not be one that could be trained that way.
    config = _config(folder, overrides)
    method = MethodSection(local_losses=config.method.local_losses)  # of the method, it alone shapes the model
    train = config.train.model_copy(update={"optimizer": OptimizerSection(), "schedule": ScheduleSection()})
    config = config.model_copy(update={"method": method, "train": train})
    if data_dir is not None:
        config = config.model_copy(update={"where": config.where.model_copy(update={"data_dir": data_dir})})
    data = load_data(config)
    devices = _devices(config, run, device)
    ledger = Ledger()
    try:
        model = on_host(build_model(config, devices), config)
        check_fit(config, model, data)
        training = Training(config, model, data, ledger)
        _take_parameters(training, state, devices)
        with recording(ledger):
            found = training.evaluate(training.model)
    finally:
        for used in devices.values():
            link_to(used).close()
    total = ledger.total
    return {
        **found,
        "step": state["step"],
        "device": {name: d.capabilities.identity for name, d in devices.items()},
        "queries": total.queries,
        "device_seconds": total.device_seconds,
        "run_dir": str(run),
    }


def _config(folder: RunFolder, overrides: Iterable[str]) -> Config:
    source = str(folder.path / "config.yaml")
    before = parse_config(folder.config, source=source)
    after = parse_config(folder.config, overrides, source)
    if before.what() != after.what():
        raise ConfigError(f"eval measures the run as it was: of {source} only the section where may be overridden")
    return after


def _devices(config: Config, run: Path, device: str | None) -> dict[str, Device]:
    if device is None:
        return open_devices(config)
    if len(config.devices) > 1:
        raise ConfigError(f"{run} uses {len(config.devices)} devices: --device replaces the only one of a run")
    return {name: open_device(device, config.seed) for name in config.devices}


def _take_parameters(training: Training, state: Mapping[str, Any], devices: Mapping[str, Device]) -> None:
    try:
        training.model.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:
        names = ", ".join(d.capabilities.identity for d in devices.values())
        raise ConfigError(f"the run's parameters do not fit {names}: {error}") from error
