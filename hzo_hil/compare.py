"""Comparing two resolved configurations: are they the same experiment, and if not, where do they differ?

It does not know which sections say *what* is run and which say *where*: the caller names the latter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from hzo_hil.runfiles import plain


def what_hash(config: Mapping[str, Any], where_fields: Collection[str] = ()) -> str:
    """sha256 (hex) of everything but the fields `where_fields` names, whatever the order of keys."""
    text = json.dumps(
        plain(_without(config, where_fields), finite=False), sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where_fields: Collection[str] = ()) -> list[str]:
    """Lines "section.field: old -> new" for every field that differs, in alphabetical order; lists compare whole."""
    before, after = (plain(_without(c, where_fields), finite=False) for c in (old, new))
    return sorted(_differences(before, after, ""))


def _without(config: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """A copy that lacks some fields: `section`, or `section.*.name`, where * is any key or place in a list."""
    kept = dict(config)
    for field in fields:
        kept = _pruned(kept, field.split("."))
    return kept


def _pruned(value: Any, path: list[str]) -> Any:
    here, *rest = path
    if isinstance(value, list):
        return [_pruned(v, rest) for v in value] if here == "*" and rest else value
    if not isinstance(value, Mapping):
        return value
    if not rest:
        return {k: v for k, v in value.items() if k != here}
    return {k: _pruned(v, rest) if here in ("*", k) else v for k, v in value.items()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name in {*old, *new}:
        a, b = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif json.dumps(a, default=str) != json.dumps(
            b, default=str
        ):  # so that 1, 1.0 and True differ, and NaN does not
            found.append(f"{prefix}{name}: {_shown(a)} -> {_shown(b)}")
    return found


class _Absent:
    def __str__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def _shown(value: Any) -> str:
    return str(value) if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)
