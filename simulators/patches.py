"""Patches of images as rows (im2col), so that a matrix can be a convolution. Knows nothing of the matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hzo_hil.simulators.arrays import Held


@dataclass(frozen=True)
class Patches:
    """Square patches of `kernel` pixels from images `[channels, height, width]`, `stride` apart, with `padding` zeros
    around the image."""

    channels: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width", "kernel", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"convolution: {name} must be at least 1, not {getattr(self, name)}")
        if self.padding < 0:
            raise ValueError(f"convolution: padding must not be negative, not {self.padding}")
        if self.kernel > min(self.height, self.width) + 2 * self.padding:
            raise ValueError(
                f"convolution: a kernel of {self.kernel} does not fit on {self.height} x {self.width} pixels with"
                f" {self.padding} of padding"
            )

    @property
    def out_shape(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        high, wide = (size + 2 * self.padding - self.kernel for size in (self.height, self.width))
        return high // self.stride + 1, wide // self.stride + 1

    @property
    def positions(self) -> int:
        return self.out_shape[0] * self.out_shape[1]

    @property
    def size(self) -> int:
        """Values in a patch: channel, row, column, as in the weights of a convolution."""
        return self.channels * self.kernel**2

    @cached_property
    def _places(self) -> Held:
        """Where each value lies in a flat image `[positions, size]`; behind its end where it is padding."""
        inside = np.arange(self.channels * self.height * self.width).reshape(self.channels, self.height, self.width)
        border = ((0, 0), (self.padding,) * 2, (self.padding,) * 2)
        padded = np.pad(inside, border, constant_values=inside.size)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (self.kernel,) * 2, axis=(1, 2))
        windows = windows[:, :: self.stride, :: self.stride]
        return Held(windows.transpose(1, 2, 0, 3, 4).reshape(self.positions, self.size))

    def of(self, xp: Any, images: Any) -> Any:
        """Patches `[batch, positions, size]` of flat images `[batch, channels x height x width]`."""
        if self.padding:
            images = xp.concatenate([images, images[:, :1] * 0], 1)
        return images[:, self._places.like(images)]
