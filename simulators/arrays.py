"""One source for numpy arrays and torch tensors: what the two call differently.

Stage models compute on whatever their inputs are. Knows nothing of physics; loads torch for nobody.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

_COMPLEX = {"float32": "complex64", "float64": "complex128"}


def namespace(x: Any) -> Any:
    """The module `x` belongs to: numpy, or torch (which is loaded already if `x` is a tensor)."""
    return np if isinstance(x, np.ndarray | np.generic) else sys.modules["torch"]


def is_numpy(x: Any) -> bool:
    return namespace(x) is np


def precision(x: Any) -> str:
    """ "float32" or "float64": the precision of `x`, of its parts if it is complex."""
    name = str(x.dtype).removeprefix("torch.")
    return {"complex64": "float32", "complex128": "float64"}.get(name, name)


class Held:
    """A constant array, real or complex, handed out in the precision and place of whatever it meets.

    Each form is made once and kept. Integer and Boolean arrays keep their type.
    """

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self._made: dict[Any, Any] = {}

    def like(self, x: Any) -> Any:
        """The array as numpy or torch, in the precision of `x`, where `x` lives; C-contiguous."""
        key = (precision(x), getattr(x, "device", None) if not is_numpy(x) else None)
        if key not in self._made:
            kind = key[0] if self.array.dtype.kind == "f" else None
            if self.array.dtype.kind == "c":
                kind = _COMPLEX[key[0]]
            plain = np.ascontiguousarray(self.array if kind is None else self.array.astype(kind))
            self._made[key] = plain if is_numpy(x) else sys.modules["torch"].as_tensor(plain, device=x.device)
        return self._made[key]
