"""From the text "module:name" to the Python object it names: a user's own data, model, loss or metric.

It runs the user's module, so it belongs to files the user wrote. It does not know what the object is for.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from types import ModuleType
from typing import Any

from hzo_hil.devices.errors import ConfigError


def is_object_path(text: str) -> bool:
    """True for text of the form "module:name", as `load_object` takes it."""
    module, colon, name = text.partition(":")
    parts = [*module.split("."), *name.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def load_object(path: str, what: str = "object") -> Any:
    """Import and return what "package.module:name" (or "module:Class.method") names.

    `what` is the word for it in error messages ("loss", "model"). Modules in the current directory are
    found, as they are by `python -m`. Raises ConfigError for a malformed path, a module that is missing or fails
    while it is imported, and a name the module does not have.
    """
    if not is_object_path(path):
        raise ConfigError(
            f"{what} {path!r} is not of the form 'module:name': write for example 'my_lab:{what}' for the name"
            f" {what!r} in my_lab.py, without '.py' and without slashes"
        )
    module_name, _, name = path.partition(":")
    found: Any = _import(module_name, path, what)
    for depth, part in enumerate(name.split(".")):
        if not hasattr(found, part):
            holder = f"module {module_name!r}" if depth == 0 else ".".join(name.split(".")[:depth])
            raise ConfigError(f"{what} {path!r}: {holder}{_place(found)} has no {part!r}.{_near(part, found)}")
        found = getattr(found, part)
    return found


def _import(name: str, path: str, what: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # stays: the user's module may import its neighbours later, inside functions
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"{what} {path!r}: no module {missing!r}. Looked in the current directory ({here}) and among the"
                f" installed packages. Start from the folder that holds {missing}.py, or install it"
            ) from error
        raise ConfigError(
            f"{what} {path!r}: module {name!r} was found but imports {missing!r}, which is not installed"
        ) from error
    except Exception as error:
        raise ConfigError(f"{what} {path!r}: importing {name!r} failed with {type(error).__name__}: {error}") from error


def _place(found: Any) -> str:
    file = getattr(found, "__file__", None)
    return f" ({file})" if file else ""


def _near(name: str, holder: Any) -> str:
    public = [candidate for candidate in dir(holder) if not candidate.startswith("_")]
    near = difflib.get_close_matches(name, public, n=3)
    return f" Did you mean {', '.join(near)}?" if near else ""
