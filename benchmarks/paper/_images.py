"""Small images of ten classes made on the fly, for smokes where CIFAR-10 is not at hand: stripes under noise."""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES = 10


def stripes(size: int, train: int, test: int, seed: int = 0) -> dict[str, Any]:
    """`[n, 3, size, size]`, 0..1: the class is the stripes' direction and colour."""
    rng = np.random.default_rng(seed)
    labels = np.arange(train + test) % CLASSES
    angle = (labels % 5)[:, None, None] * np.pi / 5
    y, x = np.mgrid[:size, :size]
    wave = np.sin(2 * np.pi / 4 * (x * np.cos(angle) + y * np.sin(angle)))
    colour = np.where(labels[:, None] < CLASSES // 2, [1.0, 0.5, 0.0], [0.0, 0.5, 1.0])
    images = (
        0.5 + 0.2 * wave[:, None] * colour[:, :, None, None] + 0.1 * rng.standard_normal((len(labels), 3, size, size))
    )
    x_all = images.clip(0, 1).astype(np.float32)
    return {
        "x_train": x_all[:train], "y_train": labels[:train], "x_test": x_all[train:], "y_test": labels[train:],
        "classes": CLASSES, "source": "stripes made on the fly",
    }  # fmt: skip
