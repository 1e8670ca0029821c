"""The study file: which configuration is varied, over which axes, and what runs it.

Knows neither the fields of the configuration nor the thing studied.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hzo_hil.devices.errors import ConfigError
from hzo_hil.sections import Section, parse_section
from hzo_hil.yamlfile import read_yaml, split_override, with_overrides

Role = Literal["noise", "method", "seed", "setting"]
CROSSED: tuple[Role, ...] = ("seed", "method")
"""Axes that every sampled point meets in full, so that methods and noises are compared on the same seeds."""

TRAINING = "hzo_hil.study.training:run"


class RangedSection(Section):
    """Something that takes `values`, or lies between `low` and `high`."""

    values: Any = None
    low: float | None = Field(default=None, description="the least value")
    high: float | None = Field(default=None, description="the greatest value")
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _values_or_range(self) -> Self:
        if (self.values is None) == (self.low is None) or (self.low is None) != (self.high is None):
            raise ValueError("give values, or both low and high")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
            if self.scale == "log" and self.low <= 0:
                raise ValueError(f"scale log needs low above 0 (given: {self.low:g})")
        return self


class AxisSection(RangedSection):
    """What is varied: `field` (or `fields`, all set to the value), through `values`, or between `low` and `high`.

    `values` that are a mapping are bundles: named sets of fields.
    """

    field: str | None = Field(default=None, description="dotted field of the configuration; null: the axis' name")
    fields: list[str] | None = Field(default=None, description="several fields that take the same value")
    values: list[Any] | dict[str, dict[str, Any]] | None = None
    label: str | None = Field(default=None, description="what tables and plots call it; null: the axis' name")
    unit: str | None = None
    role: Role | None = Field(default=None, description="null: seed for `seed`, method for bundles, else setting")
    note: str | None = Field(default=None, description="what reports say beside it, e.g. added on the host")
    tiers: dict[str, str] | None = Field(default=None, description="of a method: what it needs of the device")

    @model_validator(mode="after")
    def _one_kind(self) -> AxisSection:
        if self.values is not None and not self.values:
            raise ValueError("values is empty: an axis has at least one value")
        if self.field is not None and self.fields is not None:
            raise ValueError("give field or fields, not both")
        if isinstance(self.values, dict) and (self.field or self.fields):
            raise ValueError("values that are a mapping name their own fields: leave field out")
        return self


class DesignSection(Section):
    kind: Literal["grid", "random", "latin_hypercube"] = "grid"
    runs: int | None = Field(default=None, ge=1, description="points sampled; each meets every seed and method")
    seed: int = Field(default=0, ge=0, description="of the sampling")

    @model_validator(mode="after")
    def _sampled(self) -> DesignSection:
        if (self.kind == "grid") != (self.runs is None):
            raise ValueError("runs is the number of points of random and latin_hypercube, and needed there only")
        return self


class MetricSection(Section):
    label: str | None = None
    unit: str | None = None
    better: Literal["higher", "lower"] | None = None


class ExecutorSection(Section):
    """What runs the study. It changes no result."""

    workers: int | None = Field(default=None, ge=1, description="processes here; null: cores / threads")
    threads: int = Field(default=1, ge=1, description="threads of a run")
    scheduler: str | None = Field(default=None, description="address of a Dask scheduler, tcp://host:port")
    dask: bool = Field(default=False, description="a Dask cluster of `workers` processes on this machine")
    slurm: dict[str, Any] | None = Field(default=None, description="options of dask_jobqueue.SLURMCluster; jobs: N")
    retries: int = Field(default=2, ge=0, description="how often a run is begun again whose worker died or hung")
    timeout_s: float | None = Field(default=None, gt=0, description="a run that takes longer hangs; null: no limit")
    heartbeat_s: float = Field(default=60.0, gt=0, description="a cluster's worker silent for longer hangs")

    @model_validator(mode="after")
    def _one_place(self) -> ExecutorSection:
        if sum([self.scheduler is not None, self.dask, self.slurm is not None]) > 1:
            raise ValueError("give one of scheduler, dask, slurm")
        return self


class StudySection(Section):
    """A whole study."""

    name: str = Field(pattern=r"^[\w.-]+$")
    base: Path | None = Field(default=None, description="a configuration, relative to the study file")
    config: dict[str, Any] | None = Field(default=None, description="a configuration, here")
    target: str = Field(default=TRAINING, description="module:function(config) -> numbers by name")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted fields that all runs share")
    axes: dict[str, AxisSection] = Field(min_length=1)
    design: DesignSection = DesignSection()
    constraints: list[str] = Field(default_factory=list, description="expressions over axes that every run meets")
    metrics: dict[str, MetricSection] = Field(default_factory=dict)
    executor: ExecutorSection = ExecutorSection()
    tune: dict[str, Any] | None = Field(default=None, description="what `hzo-hil tune` looks for; runs know it not")
    limit: int = Field(default=1000, ge=1, description="more runs than this need --yes")

    @field_validator("axes", mode="before")
    @classmethod
    def _short_forms(cls, axes: Any) -> Any:
        if not isinstance(axes, dict):
            return axes
        return {name: {"values": axis} if isinstance(axis, list) else axis for name, axis in axes.items()}

    @field_validator("design", mode="before")
    @classmethod
    def _kind_alone(cls, design: Any) -> Any:
        return {"kind": design} if isinstance(design, str) else design

    @model_validator(mode="after")
    def _whole(self) -> StudySection:
        if (self.base is None) == (self.config is None):
            raise ValueError("give base (a file) or config (fields), not both")
        for name in self.axes:
            check_name(name)
        if self.design.kind == "grid":
            sampled = [n for n, axis in self.axes.items() if axis.values is None]
            if sampled:
                raise ValueError(f"axes {', '.join(sampled)} have low and high: a grid needs values")
        return self


def check_name(name: str) -> None:
    """Raise ValueError for a name that a constraint could not use."""
    taken = {"run", "status", "error", "seconds"}
    try:
        parsed = ast.parse(name, mode="eval").body
    except (SyntaxError, ValueError):
        parsed = None
    if not isinstance(parsed, ast.Name | ast.Attribute) or name in taken:
        raise ValueError(
            f"axis {name!r}: use letters, digits, _ and dots, none of {', '.join(sorted(taken))}; the field goes into"
            " field:"
        )


def load_study_file(path: Path, overrides: Iterable[str] = ()) -> StudySection:
    """Read a study file. `a.b=c` overrides fields of the study where `a` is one of them, else of its configuration.

    `base` is read and becomes `config`, so that the result stands alone. Raises ConfigError.
    """
    raw = read_yaml(path)
    own, shared = [], dict(raw.get("set") or {})
    for text in overrides:
        field, value = split_override(text)
        if field.partition(".")[0] in StudySection.model_fields:
            own.append(text)
        else:
            shared[field] = value
    section = parse_section(StudySection, {**with_overrides(raw, own), "set": shared}, str(path))
    if section.base is None:
        return section
    config = read_yaml(path.parent / section.base)
    return section.model_copy(update={"base": None, "config": config})


def plain_study(section: StudySection) -> dict[str, Any]:
    """The study as plain data, what is not given left out."""
    return section.model_dump(mode="json", exclude_defaults=True)


def role_of(name: str, axis: AxisSection) -> Role:
    if axis.role is not None:
        return axis.role
    if "seed" in (name, axis.field):
        return "seed"
    return "method" if isinstance(axis.values, dict) else "setting"


def fields_of(name: str, axis: AxisSection) -> list[str]:
    """Every dotted field that the axis sets."""
    if isinstance(axis.values, dict):
        return list(dict.fromkeys(field for bundle in axis.values.values() for field in bundle))
    return axis.fields or [axis.field or name]


def levels_of(axis: AxisSection) -> list[Any] | None:
    """Its values, or the names of its bundles; None where it is continuous."""
    return None if axis.values is None else list(axis.values)


def settings_of(name: str, axis: AxisSection, level: Any) -> Mapping[str, Any]:
    """The fields that a level of the axis sets, with their values."""
    if isinstance(axis.values, dict):
        return axis.values[level]
    return dict.fromkeys(fields_of(name, axis), level)


def check_apart(axes: Mapping[str, AxisSection]) -> None:
    """Raise ConfigError where two axes set the same field, or one inside the other's."""
    owner: dict[str, str] = {}
    for name, axis in axes.items():
        for field in fields_of(name, axis):
            for other, holder in owner.items():
                if f"{field}.".startswith(f"{other}.") or f"{other}.".startswith(f"{field}."):
                    raise ConfigError(f"axes {holder!r} and {name!r} both set {field}: one would overwrite the other")
        owner |= dict.fromkeys(fields_of(name, axis), name)
