"""Microring weight banks: powers on wavelengths in, weighted sums of them out.

Tait et al., J. Lightwave Technol. 32, 4029 (2014) and IEEE J. Sel. Top. Quantum Electron. 22, 5900214 (2016). Light
of all wavelengths is shared out to one bank for each output. A bank is a row of rings between a through bus and a
drop bus, one ring for each wavelength; a pair of photodiodes reads drop minus through. Powers add: interference
between light that went round different rings is averaged out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import Held, namespace
from hzo_hil.simulators.converters import convert, nearest_level, phase_setting
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.drift import Wander
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values
from hzo_hil.simulators.ring import Ring
from hzo_hil.simulators.ring_heaters import BankErrors

TWO_PI = 2 * math.pi


class BankState(NamedTuple):
    """Realised round-trip phases `[outputs, wavelengths]`, the parts of each power that reach the two diodes of every
    output, `[wavelengths, outputs]`, and how many weights lay out of the rings' reach, the worst by how much."""

    phases: Array
    drop: Held
    through: Held
    out_of_reach: int
    worst_miss: float


@dataclass(frozen=True)
class RingBank(StageModel):
    """`outputs` banks of `wavelengths` rings each: y = scale (drop - through) x.

    `trained` "weight": one parameter `weight` `[outputs, wavelengths]`, what a ring alone would weigh, times `scale`;
    its range is the rings' reach. "phase": the heaters' phases `phase`, rad in a period of 2 pi. `spacing` Hz between
    neighbouring channels; 0: a free spectral range shared evenly. `wdm`: every ring acts on all channels (False: on
    its own only). With "weight" this is an imperfection; the data sheet is W x. `signed`: inputs of both signs, by a
    second pass that sends the negative ones and is subtracted; otherwise inputs are powers and negative ones are cut
    off. `scale`: gain behind the diodes. `drift`: of every resonance, Hz. `detector.full_scale` is the power on a
    diode at an input of 1, when all of it arrives.
    """

    wavelengths: int
    outputs: int
    ring: Ring = Ring()
    trained: Literal["weight", "phase"] = "weight"
    spacing: float = 0.0
    wdm: bool = True
    signed: bool = False
    scale: float = 1.0
    errors: BankErrors = BankErrors()
    drift: Wander = Wander()
    detector: Detector = Detector("intensity")
    input: Port = Port()
    output: Port = Port()
    seed: int = 0
    index: int = 0
    name: str = "rings"

    def __post_init__(self) -> None:
        if self.wavelengths < 1 or self.outputs < 1:
            raise ValueError(
                f"stage {self.name!r}: {self.wavelengths} wavelengths to {self.outputs} outputs: at least 1 each"
            )
        if self.trained not in ("weight", "phase"):
            raise ValueError(f"stage {self.name!r}: trained is 'weight' or 'phase', not {self.trained!r}")
        if self.detector.kind != "intensity":
            raise ValueError(f"stage {self.name!r}: diodes read intensities, not {self.detector.kind}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"stage {self.name!r}: scale must be finite and above 0, not {self.scale}")
        self._check_spacing()
        if not self.signed:
            object.__setattr__(self, "input", replace(self.input, low=max(self.input.low, 0.0)))
        _ = self.parameters

    def _check_spacing(self) -> None:
        band = self.ring.free_spectral_range
        if not (self.spacing >= 0 and self.spacing * self.wavelengths <= band * (1 + 1e-9)):
            raise ValueError(
                f"stage {self.name!r}: {self.wavelengths} channels {self.spacing:.4g} Hz apart do not fit into a free"
                f" spectral range of {band:.4g} Hz: take fewer wavelengths, closer channels or smaller rings"
            )

    @property
    def in_width(self) -> int:
        return self.wavelengths

    @property
    def out_width(self) -> int:
        return self.outputs

    @property
    def linear(self) -> bool:
        return True

    @property
    def read_noise(self) -> float:
        passes = 2 if self.signed else 1
        return self.scale * math.sqrt(passes * (self.detector.dark_std**2 + self._other_diode.dark_std**2))

    @cached_property
    def _other_diode(self) -> Detector:
        """The diode on the through bus: it shares the amplifier of the first, whose noise must not count twice."""
        return replace(self.detector, temperature=0.0, noise_std=0.0)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        shape = (self.outputs, self.wavelengths)
        if self.trained == "phase":
            return (Parameter("phase", shape, 0.0, TWO_PI, TWO_PI, "wrap", self.errors.levels),)
        low, high = (self.scale * w for w in self.ring.reach)
        levels = self._weight_levels
        return (
            Parameter("weight", shape, levels[0] if levels else low, levels[-1] if levels else high, levels=levels),
        )

    @cached_property
    def _weight_levels(self) -> tuple[float, ...] | None:
        """Weights of a ring at the phases its heater can take, ascending."""
        if self.errors.levels is None:
            return None
        phases = np.array([p for p in self.errors.levels if p <= math.pi])
        weights = self.ring.drop(np, phases) - self.ring.through(np, phases)
        return tuple(float(w) for w in self.scale * weights[::-1])

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Weights of variance 1 / wavelengths within the rings' reach, or the phases of such."""
        low, high = self.ring.reach
        weight = np.clip(rng.standard_normal((self.outputs, self.wavelengths)) / math.sqrt(self.wavelengths), low, high)
        if self.trained == "phase":
            return {"phase": self.ring.phase_of(weight)}
        return {"weight": np.clip(self.scale * weight, self.parameters[0].low, self.parameters[0].high)}

    def program(self, values: Values, key: int) -> BankState:
        check_values(self, values)
        missed = np.zeros(1)
        if self.trained == "phase":
            phases = phase_setting(values["phase"], self.errors.levels)
        else:
            wanted = np.asarray(values["weight"], dtype=np.float64)
            weight = np.clip(wanted, self.parameters[0].low, self.parameters[0].high)
            missed = np.abs(wanted - weight)
            if self._weight_levels is not None:
                weight = nearest_level(weight, self._weight_levels)
            phases = self.ring.phase_of(weight / self.scale)
        felt = self._felt(phases, key)
        return BankState(felt, *self._diodes(felt), int((missed > 0).sum()), float(missed.max()))

    def _felt(self, phases: Array, key: int) -> Array:
        return self.errors.felt(phases, self._fabrication, self.ring.free_spectral_range, key)

    @cached_property
    def _fabrication(self) -> Array:
        rng = noise.chip_rng(self.seed, self.index, noise.CHIP_RESONANCE)
        return rng.standard_normal((self.outputs, self.wavelengths))

    def _phase_of_shift(self, hertz: float) -> float:
        return TWO_PI * hertz / self.ring.free_spectral_range

    @property
    def drifts(self) -> bool:
        return self.drift.std > 0

    def at(self, state: BankState, seconds: float) -> BankState:
        if not self.drifts:
            return state
        shift = self.drift.values(self.seed, self.index, noise.CHIP_RESONANCE_DRIFT, state.phases.size, seconds)
        phases = state.phases + self._phase_of_shift(1.0) * shift.reshape(state.phases.shape)
        drop, through = self._diodes(phases)
        return state._replace(drop=drop, through=through)

    def _diodes(self, phases: Array) -> tuple[Held, Held]:
        drop, through = self._bank(np, phases)
        return Held(drop.T), Held(through.T)

    @cached_property
    def _offsets(self) -> Held:
        """Phase `[ring, channel]` by which a channel is off the ring of another."""
        spacing = self.spacing or self.ring.free_spectral_range / self.wavelengths
        channel = np.arange(self.wavelengths)
        return Held(self._phase_of_shift(spacing) * (channel - channel[:, None]))

    def _bank(self, xp: Any, phases: Any) -> tuple[Any, Any]:
        """Parts of every channel's power that reach the drop and the through diode, `[outputs, wavelengths]` each."""
        if not self.wdm:
            return self.ring.drop(xp, phases), self.ring.through(xp, phases)
        met = phases[:, :, None] + self._offsets.like(phases)
        passed, dropped = self.ring.through(xp, met), self.ring.drop(xp, met)
        back = self.ring.through_drop_bus(xp, met)
        drop, through = dropped[:, -1], passed[:, -1]
        # Rings in a row are a pile of half-transparent plates: light bounces between one and all behind it (Stokes,
        # 1862). Two that drop everything let nothing in between them, so that the end of the clip does not matter.
        for ring in range(self.wavelengths - 2, -1, -1):
            bounces = 1 / xp.clip(1 - dropped[:, ring] * drop, 1e-8, None)
            drop = dropped[:, ring] + passed[:, ring] * drop * back[:, ring] * bounces
            through = passed[:, ring] * through * bounces
        return drop, through

    def run(self, state: BankState, inputs: Any, keys: Any) -> Any:
        powers = convert(inputs, self.input)
        if self.signed:
            xp = namespace(powers)
            outputs = self._read(state, xp.clip(powers, 0, None), keys)
            outputs = outputs - self._read(state, xp.clip(-powers, 0, None), noise.derive(keys, 1))
        else:
            outputs = self._read(state, powers, keys)
        if self.scale != 1:
            outputs *= self.scale
        return convert(outputs, self.output, own=True)

    def _read(self, state: BankState, powers: Any, keys: Any) -> Any:
        """Difference of the currents of both diodes, in inputs of full scale."""
        drop = self.detector.add_noise(powers @ state.drop.like(powers), keys)
        return drop - self._other_diode.add_noise(powers @ state.through.like(powers), noise.derive(keys, 0))

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        if self.trained == "weight":
            return inputs @ values["weight"].T
        drop, through = self._bank(xp, values["phase"])
        return inputs @ ((drop - through).T * self.scale)
