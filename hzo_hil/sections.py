"""What every section of a configuration shares: unknown keys are refused, and mistakes are told in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hzo_hil.devices.errors import ConfigError

Options = dict[str, Any]
S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def parse_section(model: type[S], raw: Mapping[str, Any], source: str) -> S:
    """Validate `raw` against a section, with every mistake named in one error."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(model, e) for e in error.errors()]
        raise ConfigError(
            f"{source} has {len(lines)} mistake{'s' * (len(lines) > 1)}:\n  " + "\n  ".join(lines)
        ) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        return f"{where}: no such field{near(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{where}: this field is needed"
    given = "" if isinstance(error.get("input"), (dict, list)) else f" (given: {error.get('input')!r})"
    return f"{where}: {message}{given}" if where else message


def _fields_at(model: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    """Field names of the section that a mistake's place lies in."""
    found: Any = model
    for part in place:
        if isinstance(part, int) or not (isinstance(found, type) and issubclass(found, BaseModel)):
            continue
        field = found.model_fields.get(str(part))
        sections = _sections_in(field.annotation) if field else []
        found = sections[0] if sections else found
    return list(found.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for a in getattr(annotation, "__args__", ()) for s in _sections_in(a)]


def near(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
