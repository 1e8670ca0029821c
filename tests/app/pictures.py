"""Small images made on the fly, as a data function of a configuration."""

from __future__ import annotations

from typing import Any

import numpy as np


def noise(size: int = 8, train: int = 24, test: int = 10) -> dict[str, Any]:
    """`[n, 3, size, size]` of three classes, each of a colour of its own."""
    rng = np.random.default_rng(1)
    labels = np.arange(train + test) % 3
    images = rng.standard_normal((len(labels), 3, size, size)) + np.eye(3)[labels][:, :, None, None]
    return {"x_train": images[:train], "y_train": labels[:train], "x_test": images[train:], "y_test": labels[train:]}
