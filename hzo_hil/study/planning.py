"""From a study file to its runs: every configuration complete and checked before the first one runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hzo_hil.compare import what_hash
from hzo_hil.devices.errors import BadInput, ConfigError
from hzo_hil.runfiles import plain
from hzo_hil.study.addresses import addresses
from hzo_hil.study.design import Point, points, size
from hzo_hil.study.studyfile import (
    StudySection,
    check_apart,
    fields_of,
    levels_of,
    role_of,
    settings_of,
)
from hzo_hil.study.target import Target, check_field, target_of
from hzo_hil.yamlfile import with_values

NOT_HASHED = ("where",)
"""The section of a configuration that says where it runs; the same run elsewhere is the same run."""

COUNTED = 200_000


@dataclass(frozen=True)
class Planned:
    """One run. `run` is the hash of its configuration, `axes` its level of each axis."""

    run: str
    axes: Point
    config: dict[str, Any]


@dataclass
class Study:
    """A study with all its runs. `section.config` is complete: what its target made of it."""

    section: StudySection
    target: Target
    runs: list[Planned] = field(default_factory=list)


def plan_study(section: StudySection, *, allow_many: bool = False) -> Study:
    """Every run of the study, each once. Raises ConfigError for fields and values that cannot be, with the axis' name,
    and BadInput for more runs than `limit` unless `allow_many`."""
    target = target_of(section.target)
    _check_size(section, allow_many)
    check_apart(section.axes)
    base = _base(section, target)
    study = Study(section.model_copy(update={"config": base, "set": {}}), target)
    _check_fields(section, target, base)
    seen: set[tuple[str, str]] = set()
    found: dict[str, Planned] = {}
    for point in points(section.design, section.axes, section.constraints):
        new = {(name, repr(level)) for name, level in point.items()} - seen
        config = _config_at(section, target, base, point, thorough=bool(new) and len(seen) < section.limit)
        seen |= new
        run = what_hash(config, NOT_HASHED)
        found.setdefault(run, Planned(run, point, config))
    if not found:
        raise ConfigError("the study has no run: no point of its axes meets every constraint")
    study.runs = list(found.values())
    return study


def _check_size(section: StudySection, allow_many: bool) -> None:
    number = size(section.design, section.axes)
    said = f"{number:,} runs"
    if section.constraints and section.limit < number:
        if number <= COUNTED:
            number = sum(1 for _ in points(section.design, section.axes, section.constraints))
            said = f"{number:,} runs"
        else:
            said += " before constraints"
    if number > section.limit and not allow_many:
        each = " x ".join(f"{len(levels_of(axis) or ()) or 'sampled'} {name}" for name, axis in section.axes.items())
        raise BadInput(
            f"the study has {said} ({each}), more than its limit of {section.limit:,}. If that is meant, add --yes or"
            " raise limit; if not, take values away or sample (design: random)"
        )


def _base(section: StudySection, target: Target) -> dict[str, Any]:
    raw = with_values(section.config or {}, section.set, "set")
    try:
        return plain_config(target.check(raw, False))
    except ConfigError as error:
        if section.set:
            known = target.known(target.check(dict(section.config or {}), False))
            for name in section.set:
                check_field(name, known)
        raise error


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    found = plain(config, finite=False)
    assert isinstance(found, dict)
    return found


def _check_fields(section: StudySection, target: Target, base: dict[str, Any]) -> None:
    known = target.known(base)
    for name, axis in section.axes.items():
        for path in fields_of(name, axis):
            if path.partition(".")[0] in NOT_HASHED:
                raise ConfigError(f"axis {name!r}: {path} says where a run happens, not what it is: choose another")
            try:
                check_field(path, known)
            except ConfigError as error:
                raise ConfigError(f"axis {name!r}: {error}") from None


def _config_at(
    section: StudySection, target: Target, base: dict[str, Any], point: Point, thorough: bool
) -> dict[str, Any]:
    settings = {p: v for n, level in point.items() for p, v in settings_of(n, section.axes[n], level).items()}
    try:
        return plain_config(target.check(with_values(base, settings, "field"), thorough))
    except ConfigError as error:
        where = ", ".join(f"{name}={level}" for name, level in point.items())
        raise ConfigError(f"the run {where} cannot be: {error}") from None


# --- what a study says of itself -------------------------------------------------------------------------------


def described_axes(study: Study) -> list[dict[str, Any]]:
    """Name, fields, label, unit, role and values of each axis, for tables and reports."""
    config = study.section.config or {}
    found = []
    for name, axis in study.section.axes.items():
        entry: dict[str, Any] = {
            "name": name,
            "fields": fields_of(name, axis),
            "label": axis.label or name,
            "unit": axis.unit,
            "role": role_of(name, axis),
            "values": levels_of(axis),
        }
        if axis.values is None:
            entry |= {"low": axis.low, "high": axis.high, "scale": axis.scale}
        if isinstance(axis.values, dict):
            entry["settings"] = axis.values
        if axis.tiers:
            entry["tiers"] = axis.tiers
        if note := axis.note or _note(config, entry["fields"]):
            entry["note"] = note
        found.append(entry)
    return found


def _note(config: Mapping[str, Any], fields: list[str]) -> str | None:
    """What must be said of an axis of a real device: nothing here knows what the setting does to it."""
    devices = config.get("devices")
    for path in fields:
        section, _, rest = path.partition(".")
        name = rest.partition(".")[0]
        if section == "devices" and rest.endswith(".added_noise"):
            return "added on the host"
        if section == "devices" and isinstance(devices, Mapping) and addresses({"devices": {name: devices.get(name)}}):
            return "a setting of a real device"
    return None


def described_metrics(study: Study) -> list[dict[str, Any]]:
    """Name, label, unit and better of each number, those of the target first."""
    given = {name: m.model_dump(exclude_none=True) for name, m in study.section.metrics.items()}
    names = [*study.target.metrics, *(n for n in given if n not in study.target.metrics)]
    usual = {"label": None, "unit": None, "better": None}
    merged = {n: {**usual, **study.target.metrics.get(n, {}), **given.get(n, {})} for n in names}
    return [{"name": n, **m, "label": m["label"] or n} for n, m in merged.items()]


def study_hash(study: Study) -> str:
    """Of everything that says what is studied; not of what runs it."""
    runs = [planned.run for planned in study.runs]
    return what_hash({"name": study.section.name, "target": study.section.target, "runs": runs})
