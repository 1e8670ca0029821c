"""A working driver package to start from: `create(name, folder)`. The texts are the files in `templates`.

Knows nothing of instruments; what it writes is a toy that passes the kit, trains, and is replaced line by line.
"""

from __future__ import annotations

import keyword
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from hzo_hil.devices.errors import BadInput

__all__ = ["create"]

LAYOUT = {
    "pyproject.txt": "pyproject.toml",
    "readme.txt": "README.md",
    "init.txt": "NEW_NAME/__init__.py",
    "driver.txt": "NEW_NAME/driver.py",
    "bench.txt": "NEW_NAME/bench.py",
    "test.txt": "tests/test_NEW_NAME.py",
    "device.txt": "device.yaml",
    "train.txt": "train.yaml",
}
"""Template -> file in the new package. NEW_NAME and NewName stand for the name, there and in the texts."""


def create(name: str, folder: str | Path = ".") -> list[Path]:
    """Write a package `name` into `folder`/`name`, which must not exist; return the files written.

    Raises BadInput for a name that cannot be a module's, or is taken, and for a folder that is there already.
    """
    _check_name(name)
    place = Path(folder) / name
    if place.exists():
        raise BadInput(f"{place} exists already: nothing was written. Choose another name, or move it away")
    written = []
    for template, target in LAYOUT.items():
        text = files("hzo_hil.devices.scaffold").joinpath("templates", template).read_text(encoding="utf-8")
        path = place / _named(target, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_named(text, name), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror}. Choose a folder of your own") from error
        written.append(path)
    return written


def _check_name(name: str) -> None:
    advice = "use a word of small letters, digits and underscores, such as my_chip"
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name != name.lower():
        raise BadInput(f"{name!r} cannot be the name of a Python package: {advice}")
    if name.startswith("_"):
        raise BadInput(f"{name!r} begins with an underscore: {advice}")
    if name in sys.stdlib_module_names or name in ("test", "tests") or _importable(name):
        raise BadInput(f"{name!r} is the name of a module that can be imported here already: {advice}")


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _named(text: str, name: str) -> str:
    camel = "".join(part.capitalize() for part in name.split("_"))
    return text.replace("NEW_NAME", name).replace("NewName", camel)
