"""Capabilities as plain JSON: what a device says of itself over any wire and in any file.

One meaning for both protocols, for recordings and for the conformance kit. Infinite limits are null; unknown keys are
ignored, so that a newer device can be read by an older host.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from hzo_hil.devices.api import BoundarySpec, Capabilities, ChannelLimit, Local, ParameterSpec, StageSpec
from hzo_hil.devices.errors import CapabilityError

T = TypeVar("T")


def to_json(capabilities: Capabilities) -> dict[str, Any]:
    """Plain lists, numbers, strings and nulls; `from_json` gives equal Capabilities back."""
    found = _plain(dataclasses.asdict(capabilities))
    assert isinstance(found, dict)
    # What promises nothing is left out: older readers do not know the word.
    for stage in found["stages"]:
        for parameter in stage["parameters"]:
            if not parameter["harmonics"]:
                del parameter["harmonics"]
        if isinstance(stage["structure"], dict) and not stage["structure"]["uniform"]:
            del stage["structure"]["uniform"]
    return found


def from_json(manifest: Any) -> Capabilities:
    """Raises CapabilityError, naming the field, for whatever is no description of a device."""
    if not isinstance(manifest, Mapping):
        raise CapabilityError(f"a device describes itself with a JSON object, not {type(manifest).__name__}")
    stages = tuple(_stage(s, f"stage {i}") for i, s in enumerate(_list(manifest, "stages")))
    boundaries = tuple(_made(BoundarySpec, b, f"boundary {i}") for i, b in enumerate(_list(manifest, "boundaries")))
    return _made(Capabilities, {**manifest, "stages": stages, "boundaries": boundaries}, "device")


def _stage(raw: Any, where: str) -> StageSpec:
    if not isinstance(raw, Mapping):
        raise CapabilityError(f"{where}: expected an object, not {type(raw).__name__}")
    parameters = tuple(
        _made(ParameterSpec, _parameter(p, where), f"{where}, parameter {i}")
        for i, p in enumerate(_list(raw, "parameters", ()))
    )
    limits = tuple(_made(ChannelLimit, r, f"{where}, limit {i}") for i, r in enumerate(_list(raw, "limits", ())))
    found = {**raw, "parameters": parameters, "limits": limits}
    if isinstance(raw.get("structure"), Mapping):
        found["structure"] = _made(Local, raw["structure"], f"{where}, structure")
    return _made(StageSpec, found, where)


def _parameter(raw: Any, where: str) -> Any:
    if isinstance(raw, Mapping) and not isinstance(raw.get("shape"), (list, tuple)):
        raise CapabilityError(f"{where}: parameter {raw.get('name')!r} needs a shape, a list of whole numbers")
    return raw


def _list(raw: Mapping[str, Any], name: str, default: Any = None) -> Any:
    value = raw.get(name, default)
    if not isinstance(value, (list, tuple)):
        raise CapabilityError(f"the description lacks the list {name!r}")
    return value


def _made(kind: type[T], raw: Any, where: str) -> T:
    if not isinstance(raw, Mapping):
        raise CapabilityError(f"{where}: expected an object, not {type(raw).__name__}")
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in raw:
            given[field.name] = _value(str(field.type), raw[field.name], f"{where}, {field.name}", field.name)
    missing = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in given
    ]
    if missing:
        raise CapabilityError(f"{where}: lacks {', '.join(missing)}")
    try:
        return kind(**given)
    except CapabilityError:
        raise
    except (TypeError, ValueError) as error:
        raise CapabilityError(f"{where}: {error}") from error


def _value(kind: str, value: Any, where: str, name: str) -> Any:
    """`value` as the annotated type, from what JSON makes of it."""
    if kind.startswith("tuple"):
        if value is None and "None" in kind:
            return None
        if not isinstance(value, (list, tuple)):
            raise CapabilityError(f"{where}: expected a list, not {value!r}")
        if "Spec" in kind or "Limit" in kind:
            return tuple(value)
        word = "int" if "int" in kind else "str" if "str" in kind else "float"
        return tuple(_value(word, v, where, name) for v in value)
    if kind == "float" and value is None:
        return -math.inf if name in ("low", "out_low") else math.inf
    if kind.startswith("float"):
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise CapabilityError(f"{where}: expected a number, not {value!r}")
        return float(value)
    if kind == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise CapabilityError(f"{where}: expected a whole number of at least 0, not {value!r}")
    if kind == "bool" and not isinstance(value, bool):
        raise CapabilityError(f"{where}: expected true or false, not {value!r}")
    if kind == "str" and not isinstance(value, str):
        raise CapabilityError(f"{where}: expected text, not {value!r}")
    if isinstance(value, Local):
        return value
    if kind.startswith("Literal") or kind == "Structure":
        known = _CHOICES.get(name, ())
        if value not in known:
            raise CapabilityError(f"{where}: {value!r} is none of {', '.join(known)}")
    return value


_CHOICES = {
    "dtype": ("float32", "float64"),
    "structure": ("dense", "diagonal"),
    "edge": ("clip", "wrap", "reflect"),
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
