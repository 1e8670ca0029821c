"""Whole training runs for benchmarks: one configuration, several seeds, each with its own chip; and intervals.

It knows no targets.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _rows import ROOT
from scipy import stats

from hzo_hil import train
from hzo_hil.config import load_config


def trained(config: str, seed: int, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Summary of one run of a configuration in `configs/`, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "run").as_posix()
        own = [f"seed={seed}", f"where.run_dir='{place}'", "where.picture=false", *overrides]
        return train.run(load_config(ROOT / "configs" / config, own), quiet=True, say=lambda _: None)


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Two-sided t interval of the mean of two values or more; of differences of paired runs: the paired t interval."""
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * np.std(values, ddof=1) / math.sqrt(len(values))
    middle = float(np.mean(values))
    return middle - float(half), middle + float(half)
