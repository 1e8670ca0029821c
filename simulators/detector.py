"""Photodetectors in SI inside, full scale outside: an amplitude or intensity of 1 is full scale.

Order: settling, soft saturation, shot and thermal noise, hard saturation; the converter behind them is a `Port`.
The mean dark current is taken as subtracted. One sample knows nothing of the one before (no interference between
symbols), and this module nothing of meshes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from scipy import constants

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import is_numpy, namespace
from hzo_hil.simulators.counting import poisson
from hzo_hil.simulators.ends import ReadOut
from hzo_hil.simulators.model import Port

_OPEN = Port()
_POSITIVE = ("responsivity", "load", "full_scale")
_NOT_NEGATIVE = (
    "dark_current", "temperature", "bandwidth", "local_oscillator", "noise_std", "integration_s", "saturation_current",
    "read_after_s",
)  # fmt: skip


def shot_noise(current: float, bandwidth: float) -> float:
    """Variance 2 q I B in A^2 of a current (A) within a noise bandwidth (Hz) (Schottky, 1918)."""
    return 2 * constants.e * current * bandwidth


def thermal_noise(load: float, temperature: float, bandwidth: float) -> float:
    """Variance 4 k T B / R in A^2 of the current through a resistor (ohm, K, Hz) (Johnson and Nyquist, 1928)."""
    return 4 * constants.k * temperature * bandwidth / load


@dataclass(frozen=True)
class Detector:
    """Balanced homodyne (real part of the field) or direct (intensity) detection.

    `responsivity` A/W; `dark_current` A; `load` ohm; `temperature` K; `full_scale` W of signal at full scale;
    `local_oscillator` W, which sets the shot noise of homodyne (0: as much as `full_scale`). `noise_std`: a further
    plain Gaussian noise, in output units.

    `bandwidth` Hz of shot and thermal noise; `integration_s` s of an integrating receiver, whose noise bandwidth is
    1 / (2 integration_s) instead. Both 0: no physical noise. `statistics` "gaussian": one normal number an output;
    "poisson": photo-electrons are counted, on each diode (dark ones too), and thermal noise is added.

    `saturation_current` A (0: none), of the signal current: "soft" divides it by 1 + |I| / I_sat before the noise, as a
    photodiode that is slowly screened by its own carriers; "hard" cuts it at +-I_sat with its noise, as the
    rails of an amplifier. `read_after_s` s between a change of the light and the sample (0: settled): a detector of
    `bandwidth` B has then reached 1 - exp(-2 pi B t).
    """

    kind: Literal["homodyne", "intensity"] = "homodyne"
    responsivity: float = 1.0
    dark_current: float = 0.0
    load: float = 50.0
    temperature: float = 300.0
    bandwidth: float = 0.0
    full_scale: float = 1e-3
    local_oscillator: float = 0.0
    noise_std: float = 0.0
    integration_s: float = 0.0
    statistics: Literal["gaussian", "poisson"] = "gaussian"
    saturation_current: float = 0.0
    saturation_law: Literal["soft", "hard"] = "soft"
    read_after_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("homodyne", "intensity"):
            raise ValueError(f"unknown detection {self.kind!r}: known are 'homodyne' and 'intensity'")
        if self.statistics not in ("gaussian", "poisson"):
            raise ValueError(f"unknown statistics {self.statistics!r}: known are 'gaussian' and 'poisson'")
        if self.saturation_law not in ("soft", "hard"):
            raise ValueError(f"unknown saturation_law {self.saturation_law!r}: known are 'soft' and 'hard'")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"detector: {name} must be above 0 and finite, not {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"detector: {name} must not be negative or infinite, not {getattr(self, name)}")
        if self.statistics == "poisson" and not self.noise_bandwidth:
            raise ValueError("detector: counting statistics need an integration_s (or a bandwidth): it is 0")
        if self.read_after_s and not self.bandwidth:
            raise ValueError("detector: read_after_s needs a bandwidth: at 0 the detector has none to settle with")

    # --- units

    @property
    def noise_bandwidth(self) -> float:
        """Hz that shot and thermal noise are counted over."""
        return 1 / (2 * self.integration_s) if self.integration_s else self.bandwidth

    @property
    def full_current(self) -> float:
        """Signal current (A) of an output of 1: R P of an intensity, 2 R sqrt(P_lo P) of a field."""
        if self.kind == "intensity":
            return self.responsivity * self.full_scale
        return 2 * self.responsivity * math.sqrt(self._oscillator * self.full_scale)

    @property
    def _oscillator(self) -> float:
        return self.local_oscillator or self.full_scale

    def power(self, outputs: Any) -> Any:
        """Signal power (W) at the detector for outputs in units of full scale. ValueError for an intensity below 0."""
        if self.kind == "homodyne":
            return self.full_scale * outputs**2
        self._check_intensity(outputs)
        return self.full_scale * outputs

    def current(self, outputs: Any) -> Any:
        """Signal current (A), dark current not counted. ValueError for an intensity below 0."""
        if self.kind == "intensity":
            self._check_intensity(outputs)
        return self.full_current * outputs

    def output(self, current: Any) -> Any:
        """Output in units of full scale for a signal current (A)."""
        return current / self.full_current

    def current_std(self, outputs: Any) -> Any:
        """Standard deviation (A) of the noise on `outputs`, before saturation."""
        dark, per_level = self._variance
        return self.full_current * (dark + per_level * abs(outputs)) ** 0.5

    def electrons(self, outputs: Any) -> Any:
        """Mean number of photo-electrons in a sample, dark ones included; both diodes' where there are two."""
        if self.kind == "intensity":
            current = self.current(outputs) + self.dark_current
        else:
            current = self.responsivity * (self._oscillator + self.power(outputs)) + 2 * self.dark_current
        return current / self._charge

    @property
    def _charge(self) -> float:
        """Current (A) of one electron in a sample."""
        if not self.noise_bandwidth:
            raise ValueError("detector: a sample has no length: give an integration_s or a bandwidth")
        return 2 * constants.e * self.noise_bandwidth

    def _check_intensity(self, outputs: Any) -> None:
        values = outputs if hasattr(outputs, "min") else np.asarray(outputs)
        if (values < 0).any():
            raise ValueError(f"detector: an intensity must not be negative, not {float(values.min()):g} of full scale")

    # --- noise

    @property
    def dark_std(self) -> float:
        """Standard deviation of a dark output, in output units."""
        return math.sqrt(self._variance[0])

    @property
    def _thermal(self) -> float:
        """Variance that does not come from single electrons, in output units squared."""
        thermal = thermal_noise(self.load, self.temperature, self.noise_bandwidth)
        return self.noise_std**2 + thermal / self.full_current**2

    @cached_property
    def _variance(self) -> tuple[float, float]:
        """Variance of a dark output, and what an intensity of 1 adds to it; in output units squared."""
        if self.kind == "intensity":
            dark, level = self.dark_current, self.full_current
        else:
            # Two diodes share the local oscillator. The signal's own shot noise is left out, as usual where the
            # local oscillator is at least as strong; counting has it.
            dark, level = self.responsivity * self._oscillator + 2 * self.dark_current, 0.0
        shot = [shot_noise(current, self.noise_bandwidth) / self.full_current**2 for current in (dark, level)]
        return self._thermal + shot[0], shot[1]

    def add_noise(self, outputs: Any, keys: Any, stream: int = noise.STREAM_DETECTOR) -> Any:
        """`outputs` `[batch, width]` as this detector reads them, by row i's keys[i]; numpy arrays are used up."""
        return self.read(outputs, keys, stream=stream)

    def read(
        self,
        outputs: Any,
        keys: Any,
        port: Port = _OPEN,
        gain: float = 1.0,
        stream: int = noise.STREAM_DETECTOR,
    ) -> Any:
        """What is read of `outputs` `[batch, width]`, times an electrical `gain` above 0, behind the converter `port`.

        numpy arrays (used up) or torch tensors, in units of full scale; row i is drawn from keys[i].
        """
        outputs = self._settled(outputs)
        if self.statistics == "poisson":
            outputs = self._counted(outputs, keys)
        return _read_out(self, port, gain)(outputs, keys, stream=stream)

    def noiseless(self, outputs: Any) -> Any:
        """`outputs` as read without noise and converter; numpy arrays or torch tensors, differentiable."""
        outputs = self._settled(outputs)
        if not (self.saturation_current and self.saturation_law == "hard"):
            return outputs
        end = self.output(self.saturation_current)
        return namespace(outputs).clip(outputs, -end, end)

    def _settled(self, outputs: Any) -> Any:
        """After settling and soft saturation."""
        if self.read_after_s:
            outputs = outputs * (1 - math.exp(-2 * math.pi * self.bandwidth * self.read_after_s))
        if self.saturation_current and self.saturation_law == "soft":
            outputs = outputs / (1 + abs(outputs) * (self.full_current / self.saturation_current))
        return outputs

    def _counted(self, outputs: Any, keys: Any) -> Any:
        """Outputs with the shot noise of counted electrons: the same draws for float32 and float64."""
        wide = outputs.astype(np.float64) if is_numpy(outputs) else outputs.double()
        signal = wide * self.full_current
        if self.kind == "intensity":
            mean, back = namespace(wide).clip(signal, 0.0, None), self.dark_current
            found = self._electrons(mean, keys, noise.STREAM_COUNTS) - back
        else:
            shared = self.responsivity * (self._oscillator + self.full_scale * wide**2)
            found = self._electrons((shared + signal) / 2, keys, noise.STREAM_COUNTS)
            found = found - self._electrons((shared - signal) / 2, keys, noise.STREAM_COUNTS_2)
        found = found / self.full_current
        return found.astype(outputs.dtype) if is_numpy(outputs) else found.to(outputs.dtype)

    def _electrons(self, current: Any, keys: Any, stream: int) -> Any:
        """Current (A) of a diode that carries `current` and its dark current on average, electron by electron."""
        kind = np.float64 if is_numpy(current) else current.dtype
        uniform = noise.uniforms(keys, stream, current.shape[1], kind)
        return poisson(uniform, (current + self.dark_current) / self._charge) * self._charge


@lru_cache(maxsize=256)
def _read_out(detector: Detector, port: Port, gain: float) -> ReadOut:
    """All that is left to do in one pass. Hard saturation is a converter's limit in other units."""
    dark, per_level = detector._variance if detector.statistics == "gaussian" else (detector._thermal, 0.0)
    if detector.saturation_current and detector.saturation_law == "hard":
        end = gain * detector.output(detector.saturation_current)
        low, high = max(port.low, -end), min(port.high, end)
        if low >= high:
            raise ValueError(
                f"detector: it saturates at {end:g}, outside its converter's {port.low:g} to {port.high:g}:"
                " raise saturation_current or lower full_scale"
            )
        port = Port(low, high, port.step)
    return ReadOut(port, gain, dark, per_level)
