"""Measure the parameters of a finished or interrupted run, on its device or another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hzo_hil.build import build_model, open_device, open_devices
from hzo_hil.config import parse_config
from hzo_hil.devices.errors import ConfigError
from hzo_hil.ledger import Ledger, recording
from hzo_hil.link import link_to
from hzo_hil.records import RunFolder
from hzo_hil.train import load_data
from hzo_hil.training import Training


def evaluate_run(run: Path, device: str | None, data_dir: Path | None, checkpoint: str = "last") -> dict[str, Any]:
    """Test loss and metric, queries and the identity of what answered."""
    with RunFolder.open(run) as folder:
        config = parse_config(folder.config, source=str(run / "config.yaml"))
        state = folder.load_checkpoint(checkpoint)
    if data_dir is not None:
        config = config.model_copy(update={"where": config.where.model_copy(update={"data_dir": data_dir})})
    devices = open_devices(config)
    if device is not None:
        if len(devices) > 1:
            raise ConfigError(f"{run} uses {len(devices)} devices: --device replaces the only one of a run")
        devices = {name: open_device(device, config.seed) for name in devices}
    ledger = Ledger()
    training = Training(config, build_model(config, devices).to(config.where.host), load_data(config), ledger)
    training.model.load_state_dict(state["model"])
    try:
        with recording(ledger):
            found = training.evaluate(training.model)
    finally:
        for used in devices.values():
            link_to(used).close()
    identities = {name: d.capabilities.identity for name, d in devices.items()}
    total = ledger.total
    return {
        **found,
        "step": state["step"],
        "device": identities,
        "queries": total.queries,
        "device_seconds": total.device_seconds,
    }
