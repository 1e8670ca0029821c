"""Free-space diffractive layers: an image in, phase masks with free space between them, intensities out.

Lin et al., Science 361, 1004 (2018); with spatial light modulators, Zhou et al., Nat. Photonics 15, 367 (2021). Masks
are thin and act on each pixel alone: no fringing fields, reflections or polarisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hzo_hil.simulators import noise
from hzo_hil.simulators.angular_spectrum import propagate, transfer
from hzo_hil.simulators.arrays import Held, namespace, precision
from hzo_hil.simulators.converters import NO_CONVERTER, convert, nearest_level
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.drift import Wander
from hzo_hil.simulators.image_plane import ImagePlane, Region
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values

TWO_PI = 2 * math.pi
_COMPILED = 1024  # inputs, and pixels seen, up to which the optics are kept as one matrix
_BYTES = 1 << 24  # memory for the fields of the rows that are worked on together


@dataclass(frozen=True)
class OpticsErrors:
    """Strength of every imperfection of the optics; 0 switches one off.

    `shift_std` pixels, by which each mask and the detector lie off the axis, down and right (chip); `distance_std` m
    of each distance (chip); `mask_std` rad, unevenness of each pixel of a mask (chip); `programming_std` rad of each
    pixel, redrawn at each write; `shot_phase_std` rad of each pixel, redrawn for every row (flicker); `loss_db` of
    each mask; `phase_bits` of a modulator whose levels are even over `phase_range` rad (None: any phase).
    """

    shift_std: float = 0.0
    distance_std: float = 0.0
    mask_std: float = 0.0
    programming_std: float = 0.0
    shot_phase_std: float = 0.0
    loss_db: float = 0.0
    phase_bits: int | None = None
    phase_range: float = TWO_PI

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"optics: {name} must be finite and not negative, not {value}")
        if not 0 < self.phase_range <= TWO_PI + 1e-9:
            raise ValueError(f"optics: phase_range must be above 0 and at most 2 pi rad, not {self.phase_range}")
        if self.phase_bits is not None and not 1 <= self.phase_bits <= 12:
            raise ValueError(f"optics: a modulator has 1 to 12 bits, not {self.phase_bits}{NO_CONVERTER}")

    @property
    def wraps(self) -> bool:
        return self.phase_range > TWO_PI - 1e-9

    @property
    def levels(self) -> tuple[float, ...] | None:
        """Phases of a modulator; where it covers 2 pi, 2^bits of them and 2 pi itself, which is 0 again."""
        if self.phase_bits is None:
            return None
        steps = 2**self.phase_bits - (0 if self.wraps else 1)
        return tuple(self.phase_range * k / steps for k in range(steps + 1))


class OpticsState(NamedTuple):
    """Realised phases of the masks `[layers, pixels, pixels]`, what they and each distance do to light, and `made`: all
    of it as one matrix `[in, 2 x pixels seen]` (real parts, then imaginary), once some row has gone through."""

    phases: Array
    masks: Held
    gaps: tuple[Held, ...]
    made: dict[str, Held]


@dataclass(frozen=True)
class Diffractive(StageModel):
    """`layers` masks of `pixels` x `pixels`, `distance` m apart, as far behind the input and before the detectors.

    Inputs: amplitudes of an image `[input_pixels, input_pixels]`, row by row, each on a square of mask pixels (0: as
    many as the masks have). Outputs: mean intensity over each of `detectors` (top, left, height, width in pixels),
    or, without them, over the squares of a camera `[camera, camera]` (0: every pixel); an input pixel of amplitude 1
    has 1. Then `scale`, a gain behind the detectors. Parameter: `phase` `[layers, pixels, pixels]` rad. `drift`: of
    the lateral place of every plane, pixels. `pitch`, `wavelength` m.
    """

    pixels: int
    layers: int = 1
    detectors: tuple[Region, ...] = ()
    input_pixels: int = 0
    camera: int = 0
    pitch: float = 8e-6
    wavelength: float = 532e-9
    distance: float = 2e-3
    scale: float = 1.0
    errors: OpticsErrors = OpticsErrors()
    drift: Wander = Wander()
    detector: Detector = Detector("intensity")
    input: Port = Port()
    output: Port = Port()
    seed: int = 0
    index: int = 0
    name: str = "diffractive"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"stage {self.name!r}: at least 1 mask, not {self.layers}")
        if self.input_pixels < 0 or (self.input_pixels and self.pixels % self.input_pixels):
            raise ValueError(
                f"stage {self.name!r}: input_pixels {self.input_pixels} do not fit on masks of {self.pixels} pixels:"
                " take a divisor"
            )
        if self.detector.kind != "intensity":
            raise ValueError(f"stage {self.name!r}: a camera reads intensities, not {self.detector.kind}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"stage {self.name!r}: scale must be finite and above 0, not {self.scale}")
        _ = self._nominal, self._plane

    @property
    def in_width(self) -> int:
        return (self.input_pixels or self.pixels) ** 2

    @property
    def out_width(self) -> int:
        return self._plane.outputs

    @property
    def read_noise(self) -> float:
        return self.detector.dark_std * self.scale

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        shape, e = (self.layers, self.pixels, self.pixels), self.errors
        if e.wraps:
            return (Parameter("phase", shape, 0.0, TWO_PI, TWO_PI, "wrap", e.levels),)
        return (Parameter("phase", shape, 0.0, e.phase_range, levels=e.levels),)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        return {"phase": rng.uniform(0, self.errors.phase_range, self.parameters[0].shape)}

    # --- one fabricated set of optics -----------------------------------------------------------------------------

    def _drawn(self, tag: int, shape: tuple[int, ...]) -> Array:
        return noise.chip_rng(self.seed, self.index, tag).standard_normal(shape)

    @cached_property
    def _plane(self) -> ImagePlane:
        return ImagePlane(self.pixels, self.detectors, self.camera)

    @cached_property
    def _nominal(self) -> Held:
        return Held(transfer(self.pixels, self.pitch, self.wavelength, self.distance))

    def _gaps(self, seconds: float) -> tuple[Held, ...]:
        """What the real distances do, with every plane where it is at that time."""
        e, planes = self.errors, self.layers + 1
        if not (e.shift_std or e.distance_std or self.drifts):
            return (self._nominal,) * planes
        places = e.shift_std * self._drawn(noise.CHIP_SHIFT, (planes, 2))
        places += self.drift.values(self.seed, self.index, noise.CHIP_SHIFT_DRIFT, 2 * planes, seconds).reshape(
            planes, 2
        )
        distances = self.distance + e.distance_std * self._drawn(noise.CHIP_DISTANCE, (planes,))
        # Seen from a plane that lies further down than the one before, the field has moved up.
        steps = -np.diff(places, axis=0, prepend=0.0)
        return tuple(
            Held(transfer(self.pixels, self.pitch, self.wavelength, max(d, 0.0), tuple(step)))
            for d, step in zip(distances, steps, strict=True)
        )

    def program(self, values: Values, key: int) -> OpticsState:
        check_values(self, values)
        e, phases = self.errors, np.asarray(values["phase"], dtype=np.float64)
        phases = np.mod(phases, TWO_PI) if e.wraps else np.clip(phases, 0, e.phase_range)
        if e.levels is not None:
            phases = nearest_level(phases, e.levels)
        if e.mask_std:
            phases = phases + e.mask_std * self._drawn(noise.CHIP_MASK, phases.shape)
        if e.programming_std:
            draw = noise.normals(key, noise.STREAM_PROGRAM, phases.size, np.float64)
            phases = phases + e.programming_std * draw.reshape(phases.shape)
        return self._state(phases, 0.0)

    def _state(self, phases: Array, seconds: float) -> OpticsState:
        passing = 10 ** (-self.errors.loss_db / 20)
        return OpticsState(phases, Held(passing * np.exp(1j * phases)), self._gaps(seconds), {})

    @property
    def drifts(self) -> bool:
        return self.drift.std > 0

    def at(self, state: OpticsState, seconds: float) -> OpticsState:
        return self._state(state.phases, seconds) if self.drifts else state

    # --- light ----------------------------------------------------------------------------------------------------

    def _image(self, xp: Any, inputs: Any) -> Any:
        """Fields `[batch, pixels, pixels]`: each input on its square of pixels."""
        side = self.input_pixels or self.pixels
        square = self.pixels // side
        fields = inputs.reshape(-1, side, side)
        if square == 1:
            return fields
        tiled = xp.broadcast_to(fields[:, :, None, :, None], (len(fields), side, square, side, square))
        return tiled.reshape(-1, self.pixels, self.pixels)

    def _walk(self, state: OpticsState, inputs: Any, keys: Any) -> Any:
        """Fields at the detectors; every row meets phase noise of its own where there is any."""
        xp, size = namespace(inputs), self.pixels**2
        masks = state.masks.like(inputs)
        fields = propagate(xp, self._image(xp, inputs), state.gaps[0].like(inputs))
        std = self.errors.shot_phase_std
        flicker = None
        if std and keys is not None:
            flicker = noise.normals(keys, noise.STREAM_SHOT_PHASE, self.layers * size, precision(inputs)) * std
            flicker = xp.exp(1j * flicker).reshape(-1, *state.phases.shape)
        for layer in range(self.layers):
            fields = fields * (masks[layer] if flicker is None else masks[layer] * flicker[:, layer])
            fields = propagate(xp, fields, state.gaps[layer + 1].like(inputs))
        return fields

    @property
    def _fixed(self) -> bool:
        """Whether all light meets the same optics, which are few enough numbers to keep as one matrix."""
        size = self.in_width * len(self._plane.seen.array)
        return not self.errors.shot_phase_std and self.in_width <= _COMPILED and size <= _COMPILED**2

    def _matrix(self, state: OpticsState) -> Held:
        if "matrix" not in state.made:
            fields = self._walk(state, np.eye(self.in_width), None).reshape(self.in_width, -1)
            fields = fields[:, self._plane.seen.array]
            state.made["matrix"] = Held(np.concatenate([fields.real, fields.imag], axis=1))
        return state.made["matrix"]

    def run(self, state: OpticsState, inputs: Any, keys: Any) -> Any:
        amplitudes = convert(inputs, self.input)
        if self._fixed:
            fields = amplitudes @ self._matrix(state).like(amplitudes)
            fields *= fields
            half = len(self._plane.seen.array)
            outputs = self._plane.means(fields[:, :half] + fields[:, half:])
        else:
            outputs = self._walked(state, amplitudes, keys)
        return self.detector.read(outputs, keys, self.output, self.scale)

    def _walked(self, state: OpticsState, amplitudes: Any, keys: Any) -> Any:
        """Through the planes one by one, some rows at a time so that memory does not grow with the batch."""
        xp = namespace(amplitudes)
        rows = max(1, _BYTES // (64 * self.pixels**2 * (1 + (self.layers if self.errors.shot_phase_std else 0))))
        parts = []
        for start in range(0, max(len(amplitudes), 1), rows):
            part = slice(start, start + rows)
            parts.append(self._plane.intensities(self._walk(state, amplitudes[part], keys[part])))
        return xp.concatenate(parts)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        gap = self._nominal.like(inputs)
        fields = propagate(xp, self._image(xp, inputs), gap)
        for layer in range(self.layers):
            fields = propagate(xp, fields * xp.exp(1j * values["phase"][layer]), gap)
        return self._plane.intensities(fields) * self.scale
