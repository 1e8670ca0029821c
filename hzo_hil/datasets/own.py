"""The user's own data: an .npz file, or a function of a Python module."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hzo_hil.datasets.dataset import PARTS, Dataset, checked, sha256
from hzo_hil.devices.errors import DataError, HzoError
from hzo_hil.paths import load_object


def from_npz(path: str | Path) -> Dataset:
    """Read x_train, y_train, x_test, y_test (and `classes`, where the highest class may be absent) from an .npz file.

    Object arrays are refused: they are pickles and could run code. Raises DataError.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"data file {path} cannot be read ({error.strerror or error}); a relative path starts at {Path.cwd()}"
        ) from error
    arrays = _arrays(content, path)
    classes = arrays.pop("classes", None)
    return checked(
        arrays, name=path.name, source=str(path), checksum=sha256(content), classes=_count(classes, path.name)
    )


def _arrays(content: bytes, path: Path) -> dict[str, Any]:
    try:
        archive = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        raise DataError(
            f"data file {path} is not an .npz archive or is damaged ({error}); write it with numpy.savez"
        ) from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"data file {path} is one array; write {', '.join(PARTS)} with numpy.savez")
    arrays: dict[str, Any] = dict.fromkeys(archive.files)
    for key in (*PARTS, "classes"):
        try:
            if key in arrays:
                arrays[key] = archive[key]
        except Exception as error:  # a damaged archive fails in many ways: zlib, struct, zip, value
            raise DataError(
                f"data file {path}: {key} cannot be read ({error}); arrays of objects are refused"
            ) from error
    return arrays


def from_function(path: str, options: Mapping[str, Any]) -> Dataset:
    """Call "module:function" with `options` as keywords; it returns a Dataset or a dict of the four arrays.

    The dict may also hold `classes` and `source`. Raises DataError if the function fails or returns something else.
    """
    function = load_object(path, what="data")
    if not callable(function):
        raise DataError(f"data {path!r} is of type {type(function).__name__}, not a function that returns the data")
    try:
        result = function(**options)
    except HzoError:
        raise
    except Exception as error:
        raise DataError(
            f"data {path!r} called with {dict(options)} failed with {type(error).__name__}: {error}"
        ) from error
    if isinstance(result, Dataset):
        result = {**vars(result), "classes": result.classes or None}
    if not isinstance(result, Mapping):
        raise DataError(
            f"data {path!r} returned a value of type {type(result).__name__}; return a Dataset or a dict with"
            f" {', '.join(PARTS)}"
        )
    classes = _count(result.get("classes"), path)
    return checked(dict(result), name=path, source=str(result.get("source", path)), classes=classes)


def _count(classes: Any, name: str) -> int | None:
    if classes is None:
        return None
    try:
        count = int(classes)
    except (TypeError, ValueError):
        count = -1
    if count < 0 or count != classes:
        raise DataError(
            f"data set {name!r}: classes is {classes!r}; it is a whole number (0 or absent: counted, or regression)"
        )
    return count or None
