"""YAML as people write it: files and `a.b=c` overrides, with mistakes named. Knows no fields.

Two differences from the YAML library's defaults: `1e-3` is a number, and a key given twice is a mistake.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hzo_hil.devices.errors import ConfigError

_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?|\.[0-9])[0-9_]*[eE][-+]?[0-9]+$")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The fields of a YAML file. Raises ConfigError, which names the file."""
    import yaml

    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {file}: {error}") from error
    try:
        raw = yaml.load(text, Loader=_loader())  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{file} holds no fields: a configuration is a YAML mapping (name:, data:, devices:, network:)"
        )
    return raw


def with_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `raw` with each `a.b=c` set; c is YAML, and a number in the path is a place in a list."""
    raw = copy.deepcopy(raw)
    for text in overrides:
        path, value = split_override(text)
        _set(raw, path, value, f"--set {text!r}")
    return raw


def with_values(raw: Mapping[str, Any], values: Mapping[str, Any], said: str = "field") -> dict[str, Any]:
    """A copy of `raw` with the value of each dotted path set; `said` is what errors call a path."""
    found: dict[str, Any] = copy.deepcopy(dict(raw))
    for path, value in values.items():
        _set(found, path, copy.deepcopy(value), f"{said} {path!r}")
    return found


def split_override(text: str) -> tuple[str, Any]:
    """The path and the value of `a.b=c`. Raises ConfigError."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"--set {text!r} is not of the form a.b=value")
    return path, _value(value, text)


def _set(raw: dict[str, Any], path: str, value: Any, said: str) -> None:
    *parents, last = path.split(".")
    at: Any = raw
    for name in parents:
        at = _step_into(at, name, said)
    if isinstance(at, list):
        at[_index(at, last, said)] = value
    else:
        at[last] = value


def _value(value: str, text: str) -> Any:
    import yaml

    try:
        return yaml.load(value, Loader=_loader())  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML: {error}") from error


def _step_into(at: Any, name: str, said: str) -> Any:
    place = _index(at, name, said) if isinstance(at, list) else name
    if not isinstance(at, list) and at.get(name) is None:
        at[name] = {}
    if not isinstance(at[place], (dict, list)):
        raise ConfigError(f"{said}: {name} holds a value, not fields")
    return at[place]


def _index(at: list[Any], name: str, said: str) -> int:
    if not name.isdecimal() or int(name) >= len(at):
        raise ConfigError(f"{said}: {name!r} is not a place in a list of {len(at)} (they count from 0)")
    return int(name)


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:merge":
                    name = key.value if isinstance(key.value, str) else None
                    if name is not None and name in seen:
                        raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
                    seen.add(name)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return Loader
