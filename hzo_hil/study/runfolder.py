"""The folder of one run of a study, and what its files say has become of it.

    config.yaml     the run's configuration
    run/            what the thing studied leaves (training: its run folder)
    events.jsonl    started, done, failed, interrupted, lost: when, by whom, which attempt
    output.txt      what the run printed, where it printed anything
    result.json     the outcome, written whole and last

A result that stands is never written again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from hzo_hil.compare import what_hash
from hzo_hil.devices.errors import HzoError
from hzo_hil.metricsfile import MetricsFile
from hzo_hil.runfiles import explained, plain, write_bytes, write_json
from hzo_hil.study.planning import NOT_HASHED
from hzo_hil.yamlfile import read_yaml


class State(Enum):
    MISSING = "missing"
    """Nothing was done yet."""
    BEGUN = "begun"
    """Its process died or was stopped; it can be begun again, or gone on with."""
    DONE = "done"
    FAILED = "failed"
    CORRUPT = "corrupt"
    """It holds something that cannot be what a run left."""


def read_result(folder: Path) -> dict[str, Any] | None:
    """The outcome; None where there is none yet. Raises ValueError where it cannot be read."""
    try:
        content = (folder / "result.json").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(str(error)) from error
    result = json.loads(content)
    if not isinstance(result, dict) or result.get("run") != folder.name:
        raise ValueError("it is not the result of this run")
    if result.get("status") not in ("done", "failed") or not isinstance(result.get("metrics"), dict):
        raise ValueError("it has no status and metrics")
    return result


def state_of(folder: Path) -> tuple[State, str]:
    """What has become of a run, and why it is corrupt where it is."""
    if not folder.is_dir():
        return (State.CORRUPT, "it is a file") if folder.exists() else (State.MISSING, "")
    try:
        result = read_result(folder)
    except ValueError as error:
        return State.CORRUPT, f"result.json is damaged: {error}"
    if result is not None:
        return State(result["status"]), ""
    present = [entry.name for entry in folder.iterdir() if not entry.name.endswith(".tmp")]
    if not present:
        return State.MISSING, ""
    try:
        config = read_yaml(folder / "config.yaml")
    except HzoError as error:
        return State.CORRUPT, str(error)
    if what_hash(config, NOT_HASHED) != folder.name:
        return State.CORRUPT, "config.yaml is not the configuration that the folder is named by"
    return State.BEGUN, ""


def begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Make the folder with its configuration; a failed attempt's result makes way."""
    with explained(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        if not (folder / "config.yaml").is_file():
            write_bytes(folder / "config.yaml", as_yaml(config).encode("utf-8"))


def as_yaml(value: Any) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(plain(value, finite=False), Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


def tell(folder: Path, event: str, **more: Any) -> None:
    """Append to the run's events."""
    with MetricsFile(folder / "events.jsonl") as file:
        file.log({"event": event, "time": time.time(), **more})


def settle(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write the outcome unless one stands already; whichever stands."""
    try:
        before = read_result(folder)
    except ValueError:
        before = None
    if before is not None and before["status"] == "done":
        return before
    write_json(folder / "result.json", result)
    return dict(result)
