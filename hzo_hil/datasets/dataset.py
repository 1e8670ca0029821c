"""What a data set is, and the checks every one of them passes before anything is trained on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import DataError

Array = NDArray[Any]
PARTS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Dataset:
    """Arrays in host memory, split into train and test.

    `x_*`: float32 `[n, features...]`; uint8 of a folder of images that was read so (see `images`). `y_*`: int64 labels
    `[n]` from 0 to classes - 1, or float32 targets `[n, k]` where `classes` is 0 (regression). `source` says where it
    came from, `checksum` is the sha256 of what was read.
    """

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: int
    name: str
    source: str
    checksum: str


def sha256(*contents: bytes) -> str:
    """sha256 in hex of one file's bytes, or of the sha256s of several in this order."""
    digests = [hashlib.sha256(content).digest() for content in contents]
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def checked(
    arrays: dict[str, Any], *, name: str, source: str, checksum: str | None = None, classes: int | None = None
) -> Dataset:
    """A Dataset from the four arrays named in PARTS, converted to its dtypes.

    Integer (or bool) `y` are labels, float `y` are targets. `classes` of None is counted from the labels; `checksum` of
    None is computed from the arrays. Raises DataError for a missing array, unequal lengths, values that are not finite,
    labels outside 0..classes - 1, or train and test parts of different shape.
    """
    missing = [part for part in PARTS if part not in arrays]
    if missing:
        raise DataError(
            f"data set {name!r} has no {', '.join(missing)}: it needs {', '.join(PARTS)} and holds"
            f" {', '.join(sorted(map(str, arrays))) or 'nothing'}"
        )
    raw = {part: _as_array(arrays[part], name, part) for part in PARTS}
    x_train, x_test = (_inputs(raw[part], name, part) for part in ("x_train", "x_test"))
    y_train, y_test, classes = _answers(raw["y_train"], raw["y_test"], name, classes)
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise DataError(
                f"data set {name!r}: x_{part} has {len(x)} rows and y_{part} has {len(y)}; they must be equal"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"data set {name!r}: a row of x_train has shape {x_train.shape[1:]}, of x_test {x_test.shape[1:]}; they"
            " must be equal"
        )
    if checksum is None:
        checksum = sha256(*(np.ascontiguousarray(a).tobytes() for a in (x_train, y_train, x_test, y_test)))
    return Dataset(x_train, y_train, x_test, y_test, classes, name, source, checksum)


def _as_array(value: Any, name: str, part: str) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise DataError(f"data set {name!r}: {part} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "biuf":
        hint = "; split a complex field into two reals a port" if array.dtype.kind == "c" else ""
        raise DataError(f"data set {name!r}: {part} has dtype {array.dtype}, which is not a real number{hint}")
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"data set {name!r}: {part} is empty")
    return array


def _inputs(array: Array, name: str, part: str) -> Array:
    if array.ndim < 2 or array.size == 0:
        raise DataError(f"data set {name!r}: {part} has shape {array.shape}; it must be [n, features...]")
    return _finite(array, name, part)


def _finite(array: Array, name: str, part: str) -> Array:
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(converted)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"data set {name!r}: {int(bad.sum())} values of {part} are not finite in float32, the first at"
            f" {list(where)} ({array[where]}). Remove or repair these rows"
        )
    return converted


def _answers(train: Array, test: Array, name: str, classes: int | None) -> tuple[Array, Array, int]:
    floats = [array.dtype.kind == "f" for array in (train, test)]
    if floats[0] != floats[1]:
        raise DataError(
            f"data set {name!r}: y_train is {train.dtype} and y_test {test.dtype}: integers are labels, floats are"
            " regression targets; use one of them in both"
        )
    if not floats[0]:
        return _labels(train, test, name, classes)
    if classes:
        raise DataError(f"data set {name!r}: classes is {classes} but y is {train.dtype}; labels are integers")
    train, test = (_finite(a.reshape(len(a), -1), name, part) for a, part in ((train, "y_train"), (test, "y_test")))
    if train.shape[1] != test.shape[1]:
        raise DataError(f"data set {name!r}: y_train has {train.shape[1]} targets a row and y_test {test.shape[1]}")
    return train, test, 0


def _labels(train: Array, test: Array, name: str, classes: int | None) -> tuple[Array, Array, int]:
    for part, array in (("y_train", train), ("y_test", test)):
        if array.ndim != 1:
            raise DataError(
                f"data set {name!r}: {part} holds integers of shape {array.shape}; labels are [n] class numbers"
                " (one-hot rows: take their argmax), regression targets are floats [n, k]"
            )
        if array.min() < 0:
            raise DataError(f"data set {name!r}: {part} holds the label {array.min()}; classes count from 0")
    highest = int(max(train.max(), test.max()))
    classes = highest + 1 if classes is None else classes
    if classes < 2 or highest >= classes:
        raise DataError(
            f"data set {name!r}: labels go up to {highest} with {classes} classes; there must be two classes or more"
            " and labels from 0 to classes - 1"
        )
    return train.astype(np.int64), test.astype(np.int64), classes
