"""Random probes: q directions drawn afresh for every sample (RGE; HZO eq. 16).

D = U^T / q (sphere directions have length sqrt(M)). Unbiased, with multiplicative variance about M / q per cut: stacked
deep, errors compound. Use it for few or single cuts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from hzo_hil.probes import working_dtype

Array = NDArray[Any]
KINDS = ("rademacher", "gaussian", "sphere")

# Gaussian directions are clipped, so that a probe's reach is bounded, and rescaled to unit variance again.
CUT = 4.0
_tail = 2 * (1 - ndtr(CUT))
_density = np.exp(-(CUT**2) / 2) / np.sqrt(2 * np.pi)
UNIT = float(1 / np.sqrt(1 - _tail - 2 * CUT * _density + CUT**2 * _tail))


class Random:
    """
    >>> Random("gaussian", 7).count(100)
    7
    """

    spread = True
    per_sample = True

    def __init__(self, kind: str, probes: int) -> None:
        self.name = f"{kind}:{probes}"
        self._kind = kind
        self._probes = probes

    def count(self, width: int) -> int:
        return self._probes

    def reach(self, width: int) -> float:
        return {"rademacher": 1.0, "gaussian": CUT * UNIT, "sphere": float(np.sqrt(width))}[self._kind]

    def directions(self, width: int, key: int, first: int, last: int) -> Array:
        return np.stack([self._draw(width, key, sample) for sample in range(first, last)])

    def decode(self, derivatives: Array, width: int, key: int, first: int) -> Array:
        directions = self.directions(width, key, first, first + len(derivatives))
        decoded = np.einsum("bp,bpm->bm", derivatives, directions) / self._probes
        return decoded.astype(working_dtype(derivatives))

    def _draw(self, width: int, key: int, sample: int) -> Array:
        # One generator a sample, keyed, so that directions do not depend on how a batch is split.
        rng = np.random.Generator(np.random.Philox(key=[key, sample]))
        shape = (self._probes, width)
        if self._kind == "rademacher":
            return rng.integers(0, 2, shape) * 2.0 - 1.0
        normal = rng.standard_normal(shape)
        if self._kind == "gaussian":
            return np.clip(normal, -CUT, CUT) * UNIT
        return normal * (np.sqrt(width) / np.linalg.norm(normal, axis=-1, keepdims=True))
