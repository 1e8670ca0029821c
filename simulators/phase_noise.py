"""Phase noise by key: normal numbers, or normal numbers cut at a few standard deviations. Knows no mesh."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import is_numpy, precision

_WIDEST = 6.0  # standard deviations: beyond them 31 random bits are too few for the tails


@dataclass(frozen=True)
class PhaseNoise:
    """Independent draws of standard deviation `std` rad; with `clip` the normal law is cut at `clip * std`.

    A cut normal keeps its shape between the cuts (it is no clamp: nothing piles up at the ends), so its standard
    deviation is smaller than `std`: 0.88 of it at a clip of 2. It is drawn by the inverse of the cut distribution
    function, one uniform number each, since counter-based draws cannot be drawn again.
    """

    std: float
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.clip and not 0.1 <= self.clip <= _WIDEST:
            raise ValueError(
                f"noise_clip is 0 (none) or from 0.1 to {_WIDEST:g} standard deviations, not {self.clip:g}"
            )

    @property
    def lost(self) -> float:
        """Part of a normal's mass that is cut off."""
        return math.erfc(self.clip / math.sqrt(2)) if self.clip else 0.0

    def draw(self, keys: Any, stream: int, count: int, dtype: Any) -> Any:
        """Phases (rad) `[batch, count]`, numpy or torch as the keys."""
        if self.clip:
            return truncated(keys, stream, count, self.lost, dtype) * self.std
        return noise.normals(keys, stream, count, dtype) * self.std


def truncated(keys: Any, stream: int, count: int, lost: float, dtype: Any) -> Any:
    """Standard normal numbers `[batch, count]` without the outermost `lost` of the mass, half of it on each side."""
    drawn = noise.uniforms(keys, stream, count, np.float64)
    if is_numpy(drawn):
        xp, ndtri = np, special.ndtri
    else:
        xp, ndtri = sys.modules["torch"], sys.modules["torch"].special.ndtri
    # Counted from the nearer end, so that small tails keep their digits.
    bits = xp.floor(drawn * 2.0**31)
    upper = bits >= 2.0**30
    nearer = (xp.where(upper, 2.0**31 - 1 - bits, bits) + 0.5) * 2.0**-30
    size = ndtri((lost + (1 - lost) * nearer) / 2)
    signed = xp.where(upper, -size, size)
    return signed.astype(dtype) if is_numpy(drawn) else signed.to(_torch_dtype(dtype))


def _torch_dtype(dtype: Any) -> Any:
    torch = sys.modules["torch"]
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, np.dtype(dtype).name)


def like(x: Any) -> Any:
    """The real dtype of `x`'s module and precision."""
    name = precision(x)
    return np.dtype(name) if is_numpy(x) else getattr(sys.modules["torch"], name)
