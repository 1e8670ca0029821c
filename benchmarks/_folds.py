"""Folds of small data sets, made afresh for each seed. Names no benchmark; `data.name: _folds:iris` uses it."""

from __future__ import annotations

from typing import Any

import numpy as np

FOLDS = 5


def iris(number: int, seed: int) -> dict[str, Any]:
    return fold("iris", number, seed)


def vowels(number: int, seed: int) -> dict[str, Any]:
    """Of all 259 samples, the sets for training and testing together. DataError where the file is missing."""
    return fold("vowels", number, seed)


def fold(name: str, number: int, seed: int) -> dict[str, Any]:
    """A set with every fifth of each class, in an order drawn by `seed`, for testing."""
    from hzo_hil.data import load

    data = load(name)
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    rng = np.random.default_rng(seed)
    part = np.empty(len(y), int)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        part[rng.permutation(rows)] = (np.arange(len(rows)) + label) % FOLDS
    test = part == number
    return {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}
