"""The thing studied: any `module:function(config) -> numbers by name`.

Its module may also hold `check(config, thorough) -> config` (raise for a bad configuration, give the complete one;
`thorough` allows what takes a moment), `known(config)` (everything that can be set, defaults included) and `METRICS`
(label, unit and better by name of number). Without them a field can be set if the configuration has it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from hzo_hil.devices.errors import ConfigError
from hzo_hil.paths import load_object

Config = dict[str, Any]
FREE = ("options", "arguments")
"""Sections whose keys belong to somebody else."""


class Target:
    def __init__(self, path: str) -> None:
        self.path = path
        self.function: Callable[[Config], Mapping[str, Any]] = load_object(path, "target")
        if not callable(self.function):
            raise ConfigError(f"target {path!r} is a {type(self.function).__name__}, not a function of a configuration")
        self._module = sys.modules[path.partition(":")[0]]

    def check(self, config: Config, thorough: bool) -> Config:
        """The complete configuration. Raises ConfigError."""
        check = getattr(self._module, "check", None)
        return config if check is None else check(config, thorough)

    def known(self, config: Config) -> Mapping[str, Any]:
        known = getattr(self._module, "known", None)
        return config if known is None else known(config)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        return dict(getattr(self._module, "METRICS", {}))

    def numbers(self, config: Config) -> dict[str, Any]:
        """What the function gives for `config`. Raises TypeError for anything but numbers by name."""
        found = self.function(config)
        if not isinstance(found, Mapping):
            raise TypeError(f"target {self.path} gave a {type(found).__name__}, not numbers by name")
        return {str(name): _number(self.path, str(name), value) for name, value in found.items()}


@cache
def target_of(path: str) -> Target:
    """The target, imported once a process. Raises ConfigError."""
    return Target(path)


def _number(path: str, name: str, value: Any) -> float | int | None:
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:  # of NumPy
        value = value.item()
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"target {path}: {name!r} is a {type(value).__name__}, not a number")
    return value


def check_field(field: str, known: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the nearest that exists, for a dotted field that `known` does not have."""
    at: Any = known
    parts = field.split(".")
    for place, part in enumerate(parts):
        if at is None or (place and parts[place - 1] in FREE and not at):
            return
        if isinstance(at, list) and part.isdecimal() and int(part) < len(at):
            at = at[int(part)]
        elif isinstance(at, Mapping) and part in at:
            at = at[part]
        else:
            raise ConfigError(f"the configuration has no field {field!r}{_near(field, known)}")


def _near(field: str, known: Mapping[str, Any]) -> str:
    paths = list(_paths(known, ""))
    last = field.rpartition(".")[2]
    same_end = [p for p in paths if difflib.SequenceMatcher(None, p.rpartition(".")[2], last).ratio() > 0.8]
    close = difflib.get_close_matches(field, same_end, 1, 0.0) or difflib.get_close_matches(field, paths, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _paths(value: Any, prefix: str) -> Iterator[str]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield f"{prefix}{name}"
        yield from _paths(item, f"{prefix}{name}.")
