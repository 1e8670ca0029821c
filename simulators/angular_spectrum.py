"""Propagation of light through free space by its angular spectrum, on square grids of pixels.

Scalar waves without paraxial approximation; evanescent waves are dropped, and so is what the grid cannot sample
(Matsushima and Shimobaba, Opt. Express 17, 19662, 2009). Knows nothing of masks or detectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def transfer(
    pixels: int, pitch: float, wavelength: float, distance: float, shift: tuple[float, float] = (0, 0)
) -> Array:
    """What a distance does to each plane wave: complex `[2 pixels, 2 pixels]`, in the order of numpy's FFT.

    For fields `[pixels, pixels]` of `pitch` m, padded to twice the size so that light which leaves one edge does not
    come in at the other. `distance` m, 0 or more. `shift`: the field moves by so many pixels (down, right), fractions
    allowed.
    """
    if not (pixels >= 1 and pitch > 0 and wavelength > 0 and distance >= 0):
        raise ValueError(
            f"free space: {pixels} pixels must be at least 1, pitch {pitch} m and wavelength {wavelength} m above 0,"
            f" and distance {distance} m not negative"
        )
    frequency = np.fft.fftfreq(2 * pixels, pitch)
    down, right = frequency[:, None], frequency[None, :]
    axial = 1 / wavelength**2 - down**2 - right**2  # square of the frequency along the axis
    along = np.sqrt(np.maximum(axial, 0))
    # Neighbouring samples of the phase must differ by less than pi, along either axis.
    slope = 2 * distance / (2 * pixels * pitch)
    sampled = (axial > 0) & (np.abs(down) * slope <= along) & (np.abs(right) * slope <= along)
    phase = along * distance - (down * shift[0] + right * shift[1]) * pitch
    return np.where(sampled, np.exp(2j * np.pi * phase), 0)


def propagate(xp: Any, fields: Any, gap: Any) -> Any:
    """Complex fields `[..., pixels, pixels]` behind a distance; `gap` is its `transfer`, in the fields' precision."""
    pixels, window = fields.shape[-1], gap.shape[-1]
    # One axis at a time: rows that are only padding need no transform, nor do rows that are cut off.
    spectrum = xp.fft.fft(xp.fft.fft(fields, window, -1), window, -2) * gap
    rows = xp.fft.ifft(spectrum, window, -2)[..., :pixels, :]
    return xp.fft.ifft(rows, window, -1)[..., :pixels]
