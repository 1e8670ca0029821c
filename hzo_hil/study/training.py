"""Training as the thing studied: a run configuration in, what was reached and spent out.

Inside a study the run folder is `run/` beside its result; a run that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hzo_hil.config import Config, parse_config
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.study.place import run_folder

METRICS: dict[str, dict[str, Any]] = {
    "score": {"label": "test metric", "better": "higher"},
    "best": {"label": "best test metric", "better": "higher"},
    "queries": {"label": "device queries", "unit": "count", "better": "lower"},
    "stage_evaluations": {"label": "stage evaluations", "unit": "count", "better": "lower"},
    "calls": {"label": "calls", "unit": "count", "better": "lower"},
    "writes": {"label": "writes", "unit": "count", "better": "lower"},
    "device_seconds": {"label": "device time, as declared or measured", "unit": "s", "better": "lower"},
    "wall_seconds": {"label": "wall time", "unit": "s", "better": "lower"},
    "gradient_error_predicted": {"label": "gradient error, predicted", "better": "lower"},
    "gradient_noise_predicted": {"label": "noise of the gradient, predicted", "better": "lower"},
    "gradient_error_measured": {"label": "noise of the gradient, measured", "better": "lower"},
    "steps": {"label": "steps"},
}


def check(config: Mapping[str, Any], thorough: bool) -> dict[str, Any]:
    """The complete configuration, without a picture unless one is asked for. `thorough` also makes its chips."""
    where = {"picture": False, **(config.get("where") or {})}
    parsed = parse_config({**config, "where": where})
    for name, device in parsed.devices.items():
        if device.kind is not None:
            options = _options(name, device.kind, device.preset, device.options)
            if thorough:
                _make(name, device.kind, device.preset, options)
    return parsed.model_dump(mode="json")


def known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field that can be set, with the options of simulated chips that a configuration leaves out."""
    devices = {}
    for name, device in config["devices"].items():
        simulated = device.get("kind")
        more = _options(name, simulated, device["preset"], device["options"]) if simulated else device["options"]
        devices[name] = {**device, "options": more}
    return {**config, "devices": devices}


def _options(name: str, kind: str, preset: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from hzo_hil.simulators import chip

    try:
        return chip.options_of(kind, preset, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"devices.{name}: {error}") from None


def _make(name: str, kind: str, preset: str, options: Mapping[str, Any]) -> None:
    from hzo_hil.simulators import chip

    try:
        chip.build(kind, preset, 0, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"devices.{name}.options: {error}") from None


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Train as `config` says. Of a run that was done before only the summary is read."""
    folder = run_folder()
    parsed = parse_config(config)
    if folder is None:
        return _numbers(_trained(parsed, resume=False))
    place = folder / "run"
    parsed = parsed.model_copy(update={"where": parsed.where.model_copy(update={"run_dir": place})})
    summary = _finished(place)
    if summary is None and (place / "run.json").is_file():
        try:
            summary = _trained(parsed, resume=True)
        except BadInput as error:
            print(f"the interrupted run cannot be gone on with and is begun anew: {error}")
    if summary is None:
        if place.exists():
            place.rename(folder / f"run-aside-{time.time_ns()}")
        summary = _trained(parsed, resume=False)
    return _numbers(summary)


def _trained(config: Config, resume: bool) -> dict[str, Any]:
    from hzo_hil import train

    return train.run(config, resume=resume, quiet=True, say=print)


def _finished(place: Path) -> dict[str, Any] | None:
    """The summary of a training that was over before its process died."""
    try:
        about = json.loads((place / "run.json").read_bytes())
        summary = json.loads((place / "summary.json").read_bytes())
    except (OSError, ValueError):
        return None
    return summary if about.get("status") in ("finished", "stopped") else None


def _numbers(summary: Mapping[str, Any]) -> dict[str, float | None]:
    return {**dict.fromkeys(METRICS), **numbers_of(summary)}


def numbers_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """What the summary of a training holds of METRICS, and `score_NAME` of each reference beside it. What is missing or
    no number is left out: a report reads damaged folders too.
    """
    scores, total = (_table(summary.get(name)) for name in ("accuracy", "ledger"))
    total = _table(total.get("total"))
    own = "in_loop" if "in_loop" in scores else "deployed"  # what the run itself is
    found = {"score": summary.get("score", scores.get(own))}
    found |= {f"score_{name}": score for name, score in scores.items() if name != own}
    for name in ("best", "queries", "stage_evaluations", "device_seconds", "wall_seconds", "steps"):
        found[name] = summary.get(name)
    found |= {name: total.get(name) for name in ("calls", "writes")} | _gradient_errors(summary)
    return {name: value for name, value in found.items() if _is_number(value)}


def _gradient_errors(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of the layer whose noise was predicted to be the largest."""
    layers = [
        e for e in map(_table, _table(summary.get("gradient_error")).values()) if _is_number(e.get("predicted_noise"))
    ]
    if not layers:
        return {}
    worst = max(layers, key=lambda e: float(e["predicted_noise"]))
    return {
        "gradient_error_predicted": worst.get("predicted"),
        "gradient_noise_predicted": worst["predicted_noise"],
        "gradient_error_measured": worst.get("measured_noise"),
    }


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
