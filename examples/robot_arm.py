"""Data for configs/regression.yaml: where a robot arm of two links reaches, from the sines and cosines of its joints.

Angles a and b are uniform over the circle; the hand is at (cos a + cos(a + b), sin a + sin(a + b)) / 2. No data set on
disk is needed: the points are drawn with a seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def reach(samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """x `[n, 4]`: cos a, sin a, cos b, sin b. y `[n, 2]`: the hand, -1..1. One in five is kept for testing."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 2 * np.pi, (2, samples))
    x = np.stack([np.cos(a), np.sin(a), np.cos(b), np.sin(b)], axis=1)
    y = np.stack([np.cos(a) + np.cos(a + b), np.sin(a) + np.sin(a + b)], axis=1) / 2
    train = samples - samples // 5
    return {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
