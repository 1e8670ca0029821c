"""How the files of a run are written: completely or not at all, as valid JSON, with errors a person can act on.

It does not know what the files mean.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hzo_hil.devices.errors import BadInput

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}
REPLACE_TRIES = 20
REPLACE_WAIT_S = 0.05


class RunFolderError(BadInput):
    """A run folder cannot be made, read or written. What it already held is still there."""


@contextmanager
def explained(folder: Path, doing: str) -> Iterator[None]:
    """Turn an OSError of the body into a RunFolderError that names the folder and says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(f"run folder {folder}: cannot {doing} ({reason}). {_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in FULL:
        return (
            "The disk is full. What was written before is complete: free some space and resume the run, or copy the"
            " folder to another disk and resume it there"
        )
    if error.errno in FORBIDDEN:
        return "The folder is read-only for this user. Choose another one with --run-dir, or change its permissions"
    if error.errno in NOT_A_FOLDER:
        return "A part of this path is a file, not a folder. Choose another one with --run-dir"
    return "Check the path and the disk, or choose another folder with --run-dir"


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace the file at `path` in one step: after a crash it holds the old content or the new, never a part.

    The new content is on the disk before the old is given up. Raises OSError.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace(source: Path, target: Path) -> None:
    """`os.replace`, repeated for a second on Windows, where a virus scanner or a reader may hold the target."""
    for left in reversed(range(REPLACE_TRIES)):
        try:
            os.replace(source, target)
        except PermissionError:
            if os.name != "nt" or not left:
                raise
            time.sleep(REPLACE_WAIT_S)
        else:
            return


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system has a call for it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


def plain(value: Any, *, finite: bool = True) -> Any:
    """`value` as dicts, lists, strings and numbers, as JSON and YAML take them.

    Arrays and tensors become lists or, of no dimension, numbers; paths become strings. `finite` turns numbers that JSON
    does not have (NaN, infinity) into None. Raises BadInput for anything else.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, finite=finite) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(item, finite=finite) for item in items]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return plain(value.tolist(), finite=finite)
    raise BadInput(f"a value of type {type(value).__name__} cannot be written as JSON: {value!r}")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strictly valid JSON: numbers that are not finite are null."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: str | Path, value: Any) -> None:
    """Replace a JSON file in one step. Raises RunFolderError, and BadInput for what JSON cannot hold."""
    path = Path(path)
    content = (to_json(value, indent=2) + "\n").encode("utf-8")
    with explained(path.parent, f"write {path.name}"):
        write_bytes(path, content)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises RunFolderError where it is missing or damaged."""
    with explained(path.parent, f"read {path.name}"):
        content = path.read_bytes()
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged ({error}): take it from a copy of the run, or begin a new run"
        ) from error
