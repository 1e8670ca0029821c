"""Real data for training, as NumPy arrays: `load` by name, and `batches` of row numbers.

It knows no torch and no network, and fetches nothing over a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.datasets import bundled, downloaded, images, own
from hzo_hil.datasets.dataset import Dataset
from hzo_hil.devices.errors import BadInput, DataError
from hzo_hil.paths import is_object_path

__all__ = ["BUNDLED", "NAMES", "ON_DISK", "Dataset", "batches", "load"]

BUNDLED: dict[str, Callable[[], Dataset]] = {"digits": bundled.digits, "iris": bundled.iris}
ON_DISK: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": downloaded.mnist,
    "cifar10": downloaded.cifar10,
    "vowels": downloaded.vowels,
}
NAMES = (*BUNDLED, *ON_DISK, "npz", "images")
_OWN = ("npz", "images")  # at a path of the user's


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    path: str | Path | None = None,
    flatten: bool = False,
    limit_train: int | None = None,
    limit_test: int | None = None,
    **options: Any,
) -> Dataset:
    """A data set by name: one of NAMES, or "module:function" for the user's own.

    `data_dir` (or else the environment variable HZO_DATA) holds "mnist", "cifar10" and "vowels"; `path` is the file of
    "npz", or the folder of "images", whose options are those of `datasets.images.from_folder`. `flatten` makes x
    `[n, features]`. `limit_train` and `limit_test` keep the first rows only (None: all). Other options go to the user's
    function. Raises DataError, which says what is missing, where it was looked for and
    how to get it, and ConfigError for a "module:function" that cannot be imported.
    """
    dataset = _read(name, None if data_dir is None else Path(data_dir), path, options)
    train, test = _limit("limit_train", limit_train), _limit("limit_test", limit_test)
    return replace(
        dataset,
        x_train=_rows(dataset.x_train[:train], flatten),
        y_train=dataset.y_train[:train],
        x_test=_rows(dataset.x_test[:test], flatten),
        y_test=dataset.y_test[:test],
    )


def _read(name: str, data_dir: Path | None, path: str | Path | None, options: dict[str, Any]) -> Dataset:
    if path is not None and name not in _OWN:
        raise DataError(
            f"data set {name!r} takes no path; for a file of your own use the name 'npz', for a folder of pictures"
            " 'images'"
        )
    if is_object_path(name):
        return own.from_function(name, options)
    if name == "images":
        return _pictures(path, data_dir, options)
    if options:
        raise DataError(
            f"data set {name!r} has no option {', '.join(sorted(options))}; the options are data_dir, path, flatten,"
            " limit_train, limit_test"
        )
    if name in BUNDLED:
        return BUNDLED[name]()
    if name in ON_DISK:
        return ON_DISK[name](data_dir)
    if name == "npz":
        if path is None:
            raise DataError("data set 'npz' needs path: the .npz file with x_train, y_train, x_test and y_test")
        return own.from_npz(path)
    raise DataError(f"no data set {name!r}: the names are {', '.join(NAMES)}, or 'module:function' for your own")


def _pictures(path: str | Path | None, data_dir: Path | None, options: dict[str, Any]) -> Dataset:
    if path is None:
        raise DataError("data set 'images' needs path: the folder with train/<class>/ and test/<class>/ (or val/)")
    if unknown := sorted(set(options) - {"size", "keep"}):
        raise DataError(f"data set 'images' has no option {', '.join(unknown)}; its own are size and keep")
    return images.from_folder(path, data_dir, **options)


def _limit(what: str, limit: int | None) -> int | None:
    if limit is not None and (type(limit) is not int or limit < 1):
        raise DataError(f"{what} is {limit!r}; it is a number of rows, 1 or more (None: all)")
    return limit


def _rows(x: NDArray[Any], flatten: bool) -> NDArray[Any]:
    return x.reshape(len(x), -1) if flatten else x


def batches(n: int, batch_size: int, key: int, shuffle: bool = True) -> list[NDArray[np.int64]]:
    """Row numbers 0..n-1 in batches: int64 `[batch_size]`, the last one shorter where n does not divide.

    The order depends on `key` (0 to 2^128 - 1) and n alone, never on when or in which process it is drawn.
    """
    if n < 1 or batch_size < 1:
        raise BadInput(f"batches of {batch_size} out of {n} rows: both must be at least 1")
    rows = np.arange(n, dtype=np.int64)
    if shuffle:
        rows = np.random.Generator(np.random.Philox(key=key)).permutation(rows)
    return [rows[start : start + batch_size] for start in range(0, n, batch_size)]
