"""Detectors in the last plane of free-space optics: which pixels of the light each of them sees.

Every output is the mean intensity over a detector's pixels. Knows nothing of noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hzo_hil.simulators.arrays import Held
from hzo_hil.simulators.model import Array

Region = tuple[int, int, int, int]  # top, left, height, width in pixels


def spots(pixels: int, count: int, side: int) -> tuple[Region, ...]:
    """Square detectors of `side` pixels, spread evenly over rows that are as equal as possible.

    ValueError where they do not fit on `pixels` x `pixels`.
    """
    rows = round(math.sqrt(count)) or 1
    lengths = [len(part) for part in np.array_split(np.arange(count), rows)]
    if count < 1 or side < 1 or max(rows, *lengths) * side > pixels:
        raise ValueError(
            f"{count} detectors of {side} x {side} pixels do not fit on {pixels} x {pixels}:"
            " take smaller detectors or more pixels"
        )
    return tuple(
        (
            round((2 * row + 1) * pixels / (2 * rows) - side / 2),
            round((2 * i + 1) * pixels / (2 * n) - side / 2),
            side,
            side,
        )
        for row, n in enumerate(lengths)
        for i in range(n)
    )


@dataclass(frozen=True)
class ImagePlane:
    """`detectors` on `pixels` x `pixels`; without them a camera of `camera` x `camera` squares (0: every pixel)."""

    pixels: int
    detectors: tuple[Region, ...] = ()
    camera: int = 0

    def __post_init__(self) -> None:
        if self.camera < 0 or (self.camera and self.pixels % self.camera):
            raise ValueError(f"a camera of {self.camera} pixels does not fit on {self.pixels}: take a divisor")
        for top, left, height, width in self.detectors:
            if not (0 <= top < top + height <= self.pixels and 0 <= left < left + width <= self.pixels):
                raise ValueError(
                    f"a detector at row {top}, column {left} of {height} x {width} pixels leaves the {self.pixels} x"
                    f" {self.pixels} pixels"
                )

    @property
    def outputs(self) -> int:
        return len(self.detectors) or (self.camera or self.pixels) ** 2

    @cached_property
    def seen(self) -> Held:
        """Pixels some detector looks at, ascending."""
        return Held(np.flatnonzero(self._sums.any(axis=1)) if self.detectors else np.arange(self.pixels**2))

    @cached_property
    def _sums(self) -> Array:
        """Mean over each detector as a matrix `[pixels of the plane, detectors]`."""
        sums = np.zeros((self.pixels, self.pixels, len(self.detectors)))
        for number, (top, left, height, width) in enumerate(self.detectors):
            sums[top : top + height, left : left + width, number] = 1 / (height * width)
        return sums.reshape(self.pixels**2, -1)

    @cached_property
    def _seen_sums(self) -> Held:
        return Held(self._sums[self.seen.array])

    def means(self, intensities: Any) -> Any:
        """What each detector gets of intensities `[batch, pixels seen]`: `[batch, outputs]`."""
        if self.detectors:
            return intensities @ self._seen_sums.like(intensities)
        camera = self.camera or self.pixels
        square = self.pixels // camera
        if square == 1:
            return intensities
        return intensities.reshape(-1, camera, square, camera, square).mean((2, 4)).reshape(-1, camera**2)

    def intensities(self, fields: Any) -> Any:
        """What each detector gets of complex fields `[batch, pixels, pixels]`."""
        flat = fields.reshape(-1, self.pixels**2)
        seen = flat[:, self.seen.like(fields)] if self.detectors else flat
        return self.means(seen.real**2 + seen.imag**2)
