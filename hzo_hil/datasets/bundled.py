"""The sets that come with the package: digits and iris, with the split that their files fix.

Source, licence and how the split was drawn: README.md beside this file.
"""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np

from hzo_hil.datasets.dataset import Array, Dataset, checked, sha256
from hzo_hil.devices.errors import DataError

CHECKSUMS = {
    "digits.npz": "e726cec0e06673ef31347bc61f630ec96f7a6cc9aba66c05c9aca03de82d70f1",
    "iris.npz": "7b844c61f0f97f029751d4a94a35c0469d6bba7c6f392376a3deb940af34a4a6",
}
GREYS = 16


def digits() -> Dataset:
    """1,197 / 600 digits of 10 classes: x `[n, 64]`, rows of an 8 x 8 image, 0..1 (the source's 0..16 over 16)."""
    x, y, train = _read("digits.npz")
    return _split(x / GREYS, y, train, "digits", "UCI optical recognition of handwritten digits (CC BY 4.0)")


def iris() -> Dataset:
    """120 / 30 flowers of 3 classes: x `[n, 4]`, where 0 and 1 are the ends of each column's training rows.

    With this split the test rows lie within 0..1 as well.
    """
    x, y, train = _read("iris.npz")
    low, high = x[:train].min(axis=0), x[:train].max(axis=0)
    return _split((x - low) / (high - low), y, train, "iris", "UCI iris (CC BY 4.0)")


def _read(file: str) -> tuple[Array, Array, int]:
    content = files("hzo_hil.datasets").joinpath(file).read_bytes()
    if sha256(content) != CHECKSUMS[file]:
        raise DataError(f"{file}, which comes with the package, is damaged: install hzo-hil again")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        order = archive["order"]
        return archive["x"][order].astype(np.float64), archive["y"][order], int(archive["train"])


def _split(x: Array, y: Array, train: int, name: str, source: str) -> Dataset:
    parts = {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
    return checked(parts, name=name, source=source, checksum=CHECKSUMS[f"{name}.npz"])
