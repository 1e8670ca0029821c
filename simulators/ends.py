"""The last steps of a stage, in one pass: bias, Gaussian noise, gain, converter.

One meaning, three routes: a kernel in C, numpy, torch. Knows nothing of where the noise comes from.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import native, noise
from hzo_hil.simulators.arrays import Held, is_numpy
from hzo_hil.simulators.converters import convert, port_numbers
from hzo_hil.simulators.model import Port

Array = NDArray[Any]
_LEAST = 1 << 16  # values that are worth a thread of their own


@dataclass(frozen=True)
class ReadOut:
    """y = convert(gain (x + b + s n)), with n a standard normal number and s^2 = dark + per_level max(x + b, 0).

    `dark` and `per_level` are variances, in units of x squared and of x; `port` is the converter behind the gain.
    Without noise no number is drawn.
    """

    port: Port = Port()
    gain: float = 1.0
    dark: float = 0.0
    per_level: float = 0.0

    def __post_init__(self) -> None:
        if not (self.dark >= 0 and self.per_level >= 0 and math.isfinite(self.gain)):
            raise ValueError(
                f"read-out: variances {self.dark} and {self.per_level} must not be negative, gain {self.gain} finite"
            )

    @property
    def noisy(self) -> bool:
        return self.dark > 0 or self.per_level > 0

    @property
    def idle(self) -> bool:
        """Whether values pass unchanged."""
        limited = math.isfinite(self.port.low) or math.isfinite(self.port.high)
        return not self.noisy and self.gain == 1 and not limited and self.port.step == 0

    @cached_property
    def _numbers(self) -> dict[str, Array]:
        own = (self.gain, self.dark, self.per_level)
        return {kind: np.append(port_numbers(self.port, kind), np.array(own, kind)) for kind in native.REALS}

    def __call__(self, values: Any, keys: Any, bias: Held | None = None, stream: int = noise.STREAM_DETECTOR) -> Any:
        """Outputs `[batch, width]` from `values` of that shape, row i drawn from keys[i]; `bias` is `[width]`.

        A numpy array is used up: the answer may be the same array. Tensors are left alone.
        """
        if self.idle and bias is None:
            return values
        if not is_numpy(values):
            return self._by_torch(values, keys, bias, stream)
        if not (values.flags.c_contiguous and values.flags.writeable):
            values = values.copy()
        if native.library() is not None and values.dtype.name in native.REALS:
            return self._by_kernel(values, keys, bias, stream)
        return self._by_numpy(values, keys, bias, stream)

    def _by_kernel(self, values: Array, keys: Any, bias: Held | None, stream: int) -> Array:
        rows, width = values.shape
        kernel, how = _kernel(values.dtype.name), self._numbers[values.dtype.name].ctypes.data
        added = None if bias is None else bias.like(values).ctypes.data
        keys = np.ascontiguousarray(keys, dtype=np.uint64) if self.noisy else None
        start, first = values.ctypes.data, 0 if keys is None else keys.ctypes.data

        def work(part: slice) -> None:
            row = start + part.start * width * values.itemsize
            kernel(row, first + 8 * part.start, part.stop - part.start, width, stream, added, how)

        native.over_rows(work, rows, _LEAST // max(width, 1) + 1)
        return values

    def _by_numpy(self, values: Array, keys: Any, bias: Held | None, stream: int) -> Array:
        kind = values.dtype.type
        if bias is not None:
            values += bias.like(values)
        if self.noisy:
            draw = noise.normals(keys, stream, values.shape[1], values.dtype)
            if self.per_level:
                draw *= np.sqrt(np.maximum(values, 0) * kind(self.per_level) + kind(self.dark))
            else:
                draw *= np.sqrt(kind(self.dark))
            values += draw
        if self.gain != 1:
            values *= kind(self.gain)
        return np.asarray(convert(values, self.port, own=True))

    def _by_torch(self, values: Any, keys: Any, bias: Held | None, stream: int) -> Any:
        if bias is not None:
            values = values + bias.like(values)
        if self.noisy:
            draw = noise.normals(keys, stream, values.shape[1], values.dtype)
            spread = (values.clamp(min=0) * self.per_level + self.dark).sqrt() if self.per_level else self.dark**0.5
            values = values + draw * spread
        return convert(values * self.gain if self.gain != 1 else values, self.port)


@cache
def _kernel(kind: str) -> Any:
    library = native.library()
    assert library is not None
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    types = (pointer, pointer, long, long, ctypes.c_uint64, pointer, pointer)
    return library.kernel(f"read_out_{native.SUFFIXES[kind]}", *types)
