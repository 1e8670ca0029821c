"""One microring between two buses: what passes it and what it drops, as closed forms of its round-trip phase.

Bogaerts et al., Laser Photonics Rev. 6, 47 (2012), section 2. Knows one ring only: no neighbours, heaters or detectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import constants

Array = NDArray[Any]


@dataclass(frozen=True)
class Ring:
    """An add-drop ring; `r2` of 1 makes it an all-pass ring, which drops nothing.

    `r1`, `r2`: amplitudes that stay in the input bus and in the drop bus at their couplers; `a`: amplitude left after
    one round trip (without the couplers); `radius` m; `group_index`, taken as the same at all wavelengths;
    `wavelength` m of the band's middle. The round-trip phase is 0 rad on resonance; a free spectral range is 2 pi.
    """

    r1: float = 0.96
    r2: float = 0.96
    a: float = 1.0
    radius: float = 5e-6
    group_index: float = 2.353
    wavelength: float = 1.55e-6

    def __post_init__(self) -> None:
        if not (0 < self.r1 < 1 and 0 < self.r2 <= 1):
            raise ValueError(f"ring: r1 {self.r1} must be in (0, 1) and r2 {self.r2} in (0, 1]: parts of an amplitude")
        if not 0 < self.a <= 1:
            raise ValueError(f"ring: the round-trip amplitude a must be in (0, 1], not {self.a}: a ring has no gain")
        for name in ("radius", "group_index", "wavelength"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"ring: {name} must be finite and above 0, not {getattr(self, name)}")

    @property
    def _around(self) -> float:
        """Amplitude after a round trip with both couplers."""
        return self.r1 * self.r2 * self.a

    @property
    def _dropped(self) -> float:
        return (1 - self.r1**2) * (1 - self.r2**2) * self.a

    @property
    def _missing(self) -> float:
        """What lacks behind the ring on the input bus, times the resonance denominator."""
        return (1 - self.r1**2) * (1 - (self.r2 * self.a) ** 2)

    def _denominator(self, xp: Any, phase: Any) -> Any:
        """|1 - r1 r2 a e^{i phase}|^2, written so that nothing cancels near the resonance."""
        return (1 - self._around) ** 2 + 4 * self._around * xp.sin(phase * 0.5) ** 2

    def drop(self, xp: Any, phase: Any) -> Any:
        """Part of the power that goes from bus to bus; the same from either side."""
        return self._dropped / self._denominator(xp, phase)

    def through(self, xp: Any, phase: Any) -> Any:
        """Part of the power that stays on the input bus."""
        return 1 - self._missing / self._denominator(xp, phase)

    def through_drop_bus(self, xp: Any, phase: Any) -> Any:
        """Part of the power on the drop bus that stays there."""
        return 1 - (1 - self.r2**2) * (1 - (self.r1 * self.a) ** 2) / self._denominator(xp, phase)

    @property
    def reach(self) -> tuple[float, float]:
        """Lowest and highest weight drop - through, half a free spectral range off and on resonance."""
        both = self._dropped + self._missing
        return both / (1 + self._around) ** 2 - 1, both / (1 - self._around) ** 2 - 1

    def phase_of(self, weight: Array) -> Array:
        """Phase in [0, pi] rad at which drop - through is `weight`; weights out of reach give the nearest end."""
        both = self._dropped + self._missing
        denominator = both / (1 + np.clip(weight, *self.reach))
        return 2 * np.arcsin(np.sqrt(np.clip((denominator - (1 - self._around) ** 2) / (4 * self._around), 0, 1)))

    @property
    def free_spectral_range(self) -> float:
        """Hz between resonances: c / (n_g 2 pi R)."""
        return constants.c / (self.group_index * 2 * math.pi * self.radius)

    @property
    def fwhm(self) -> float:
        """Full width of a resonance at half its height, Hz; ValueError where the ring is too lossy to have one.

        Exact: sin(phase / 2) = (1 - r1 r2 a) / (2 sqrt(r1 r2 a)). The usual formula puts the angle for its sine.
        """
        sine = (1 - self._around) / (2 * math.sqrt(self._around))
        if sine > 1:
            raise ValueError(f"ring: with r1 r2 a = {self._around:.3g} a resonance never falls to half its height")
        return self.free_spectral_range * 2 * math.asin(sine) / math.pi

    @property
    def quality(self) -> float:
        """Loaded quality factor: carrier frequency over `fwhm`."""
        return constants.c / self.wavelength / self.fwhm
