"""`hzo-hil device fit`: from files to files, with every mistake found before the device is touched."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.devicesections import DeviceSection
from hzo_hil.fit import writing
from hzo_hil.fit.design import DEFAULT_QUERIES, check_budget
from hzo_hil.fit.procedure import fit_device


@dataclass(frozen=True)
class Result:
    good: bool
    text: str
    report: dict[str, Any]


def fit_to_files(
    config: str,
    section: DeviceSection,
    opener: Callable[[], Device],
    *,
    out: Path | None,
    report: Path | None,
    force: bool,
    queries: int | None,
    seconds: float,
    only: Collection[str],
    wander: bool,
    seed: int,
) -> Result:
    """Fit `section` to the device that `opener` makes; write the configuration and the report. Raises BadInput."""
    if section.kind is None:
        raise ConfigError(
            f"{config} describes no simulated chip: fitting starts from one (kind, preset, options, seed)"
        )
    asked = DEFAULT_QUERIES if queries is None else queries
    check_budget(asked)
    writing.check_names(only)
    if not seconds >= 0:
        raise BadInput(f"--seconds is 0 (as fast as the device answers) or a time, not {seconds:g}")
    place = out if out is not None else Path(f"{Path(config).stem}_fitted.yaml")
    beside = report if report is not None else place.with_suffix(".json")
    if beside.absolute() == place.absolute():
        raise BadInput(f"{place} would hold both the configuration and the report: give another --report")
    for path in (place, beside):
        writing.check_free(path, force)
    with tqdm(bar_format="{desc}", leave=False, disable=None) as line:  # on a terminal only
        fit = fit_device(
            section, opener(), seed=seed, queries=asked, seconds=seconds,
            wander=wander or "laser_wander" in only, say=line.set_description_str,
        )  # fmt: skip
    findings = writing.chosen(fit, only)
    chip = section.seed if section.seed is not None else seed
    found = writing.as_json(config, fit, findings) | {"out": str(place), "report": str(beside)}
    writing.write_text(place, writing.as_yaml(section, chip, fit, findings))
    writing.write_text(beside, writing.report_text(found))
    text = f"{writing.table(fit, findings)}\n\nwritten: {place}, {beside}"
    return Result(fit.good, text, found)
