"""One fabricated mesh: what its phase shifters really do when told a phase, and the matrix that results.

Fabrication errors are drawn once from the chip's seed, in unit strength, and scaled: another strength is
the same chip, more or less wrong. Knows nothing of inputs, outputs or detectors.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import Held
from hzo_hil.simulators.circuit import Circuit, Setting
from hzo_hil.simulators.converters import phase_setting, reach, voltage_levels
from hzo_hil.simulators.crosstalk import crosstalk
from hzo_hil.simulators.drift import Wander
from hzo_hil.simulators.mesh import TWO_PI, Layout, Walk, gather_for, unitary, walk
from hzo_hil.simulators.phase_noise import PhaseNoise

Array = NDArray[Any]


class ReachWarning(UserWarning):
    """A write holds phases that the DAC cannot reach; the message says how many and what it costs."""


@dataclass(frozen=True)
class MeshErrors:
    """Strength of every imperfection of a mesh; 0 switches one off.

    Chip: `coupler_std` rad of each of a node's two couplers, independent; `phase_bias` rad, static and unknown, the
    standard deviation of a normal (`bias_law` "normal") or the half width of a uniform law ("uniform");
    `gamma_std` rad/V^2 of the heaters' pi / v_pi^2; `crosstalk` part of a phase its neighbours feel, counted
    from `calibrated_at` rad (all shifters' setting when the chip was calibrated: what is left then is `phase_bias`);
    `loss_db` mean and `loss_std_db` spread of the loss of a node (never below 0 dB). Programming: `programming_std`
    rad, redrawn at each write. Shot: `shot_phase_std` rad, redrawn for every row. `noise_clip`: the noise of both is
    cut at so many standard deviations. Drift: `phase_drift_std` rad, by `phase_drift_law` ("ou" or "flicker") with the
    time `phase_drift_tau_s` s in steps of `phase_drift_step_s` s. DAC: `phase_bits` in volts (None: none) with `v_pi`
    and `v_max` V; `short_reach` says what happens where v_max reaches less than 2 pi: "refuse", or "nearest" (a phase
    out of reach becomes the nearest end, and the write warns how many did and what it cost).
    """

    coupler_std: float = 0.0
    phase_bias: float = 0.0
    bias_law: Literal["normal", "uniform"] = "normal"
    gamma_std: float = 0.0
    crosstalk: float = 0.0
    calibrated_at: float = 0.0
    loss_db: float = 0.0
    loss_std_db: float = 0.0
    programming_std: float = 0.0
    shot_phase_std: float = 0.0
    noise_clip: float = 0.0
    phase_drift_std: float = 0.0
    phase_drift_law: Literal["ou", "flicker"] = "ou"
    phase_drift_tau_s: float = 10.0
    phase_drift_step_s: float = 0.1
    phase_bits: int | None = None
    v_pi: float = 4.36
    v_max: float = 10.8
    short_reach: Literal["refuse", "nearest"] = "refuse"

    def __post_init__(self) -> None:
        for name, known in (("bias_law", ("normal", "uniform")), ("short_reach", ("refuse", "nearest"))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: known are {known[0]!r} and {known[1]!r}")
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative, not {value}")
        if not self.v_pi > 0:
            raise ValueError(f"v_pi must be above 0 V, not {self.v_pi}")
        _ = self.drift, self.shot, self.levels

    @property
    def levels(self) -> tuple[float, ...] | None:
        """Phases (rad) the DAC can set, ascending; None without one."""
        if self.phase_bits is None:
            return None
        return voltage_levels(self.phase_bits, self.v_pi, self.v_max, partial=self.short_reach == "nearest")

    @property
    def flawless(self) -> bool:
        """Whether the mesh is made as designed and its phases are set as commanded, noise and drift apart."""
        made = (self.coupler_std, self.phase_bias, self.gamma_std, self.crosstalk, self.loss_db, self.loss_std_db)
        return not any(made) and self.phase_bits is None

    @property
    def shot(self) -> PhaseNoise:
        return PhaseNoise(self.shot_phase_std, self.noise_clip)

    @property
    def drift(self) -> Wander:
        return Wander(self.phase_drift_law, self.phase_drift_std, self.phase_drift_tau_s, self.phase_drift_step_s)


@dataclass(frozen=True)
class ImperfectMesh:
    """A mesh made with `errors`, drawn for chip `seed`, stage `index`, and `part` where a stage holds several."""

    layout: Layout
    errors: MeshErrors
    seed: int = 0
    index: int = 0
    part: int = 0

    def _draw(self, tag: int) -> np.random.Generator:
        return noise.chip_rng(self.seed, self.index, tag + 1000 * self.part)

    @cached_property
    def _couplers(self) -> tuple[Array, Array]:
        first, second = self.errors.coupler_std * self._draw(noise.CHIP_COUPLERS).standard_normal(
            (2, self.layout.nodes)
        )
        return first, second

    @cached_property
    def _bias(self) -> Array:
        rng = self._draw(noise.CHIP_PHASE_BIAS)
        if self.errors.bias_law == "uniform":
            return self.errors.phase_bias * rng.uniform(-1, 1, self.layout.phases)
        return self.errors.phase_bias * rng.standard_normal(self.layout.phases)

    @cached_property
    def _gain(self) -> Array:
        """Realised over nominal gamma of every heater."""
        gamma = math.pi / self.errors.v_pi**2
        return 1 + self.errors.gamma_std / gamma * self._draw(noise.CHIP_GAMMA).standard_normal(self.layout.phases)

    @cached_property
    def _loss(self) -> Array | None:
        """Amplitude that passes each node, never above 1."""
        if self.errors.loss_db == 0 and self.errors.loss_std_db == 0:
            return None
        spread = self.errors.loss_std_db * self._draw(noise.CHIP_LOSS).standard_normal(self.layout.nodes)
        return np.asarray(10 ** (-np.maximum(self.errors.loss_db + spread, 0) / 20))

    @cached_property
    def _crosstalk(self) -> Any:
        return crosstalk(self.layout, self.errors.crosstalk)

    @cached_property
    def _levels(self) -> tuple[float, ...] | None:
        return self.errors.levels

    @cached_property
    def circuit(self) -> Circuit:
        """The fabricated couplers and losses, without phases."""
        first, second = (math.pi / 4 + error for error in self._couplers)
        passed = 1.0 if self._loss is None else self._loss
        couplers = [np.cos(first), np.sin(first), np.cos(second) * passed, np.sin(second) * passed]
        return Circuit(self.layout, np.ascontiguousarray(np.stack(couplers, axis=1)))

    def phases(self, commanded: Array, key: int | Array) -> Array:
        """Phases (rad) the light meets `[phases]`: converter, heater, crosstalk, bias, then the noise of this write.

        Also takes many settings at once, `[writes, phases]` with keys `[writes]`. A write by a DAC of short reach warns
        (`ReachWarning`) of the phases it could not set.
        """
        if self._levels is not None and self._levels[-1] < TWO_PI and (short := reach(commanded, self._levels)).outside:
            warnings.warn(f"write to the mesh of stage {self.index}: {short}", ReachWarning, stacklevel=3)
        felt = phase_setting(commanded, self._levels) * self._gain
        if self.errors.crosstalk:
            # Calibration absorbs what the neighbours do at its own operating point.
            held = self.errors.calibrated_at
            felt = (self._crosstalk @ (felt - held).T).T + held
        felt = felt + self._bias
        if self.errors.programming_std:
            stream = noise.STREAM_PROGRAM + self.part
            law = PhaseNoise(self.errors.programming_std, self.errors.noise_clip)
            felt += law.draw(np.atleast_1d(np.asarray(key, np.uint64)), stream, felt.shape[-1], np.float64).reshape(
                felt.shape
            )
        return np.asarray(felt)

    def unitary(self, xp: Any, commanded: Any, walk: Walk = walk) -> Any:
        """Complex matrix `[ports, ports]` at commanded phases `[phases]`, numpy or torch, differentiable: as it was
        fabricated, without converter, noise of a write and drift.
        """
        gain, bias, first, second = (held.like(commanded) for held in self._fabricated)
        felt = commanded * gain
        if self.errors.crosstalk:
            held = self.errors.calibrated_at
            felt = _mixed(xp, self._crosstalk, felt - held) + held
        theta, phi, out_phase = self.layout.split(felt + bias)
        loss = None if self._loss is None else Held(self._loss).like(commanded)
        return unitary(xp, gather_for(xp, self.layout, commanded), theta, phi, out_phase, (first, second), loss, walk)

    @cached_property
    def _fabricated(self) -> tuple[Held, ...]:
        return tuple(Held(drawn) for drawn in (self._gain, self._bias, *self._couplers))

    def set(self, commanded: Array, key: int) -> Setting:
        """The mesh after a write."""
        return Setting(self.circuit, self.phases(commanded, key))

    @property
    def drifts(self) -> bool:
        return self.errors.phase_drift_std > 0

    def at(self, setting: Setting, seconds: float) -> Setting:
        """The mesh as written, `seconds` of device time into its drift; every shifter wanders by itself."""
        if not self.drifts:
            return setting
        tag = noise.CHIP_PHASE_DRIFT + 1000 * self.part
        wandered = self.errors.drift.values(self.seed, self.index, tag, self.layout.phases, seconds)
        return Setting(self.circuit, setting.phases + wandered)

    def matrix(self, phases: Array) -> Array:
        """Complex transfer matrix `[ports, ports]` at these phases."""
        return Setting(self.circuit, phases).matrix

    @property
    def shot_streams(self) -> tuple[int, int]:
        return noise.STREAM_SHOT_PHASE + self.part, noise.STREAM_SHOT_OUT + self.part

    def walk_rows(self, setting: Setting, fields: Any, keys: Any) -> Any:
        """Complex fields `[batch, ports]` behind the mesh when every row meets phase noise of its own."""
        return setting.noisy(fields, keys, self.shot_streams, self.errors.shot)


def _mixed(xp: Any, matrix: Any, values: Any) -> Any:
    """A sparse matrix times an array, which torch differentiates."""
    if xp is np:
        return matrix @ values
    entries = matrix.tocoo()
    rows, columns = (xp.as_tensor(np.asarray(i, np.int64), device=values.device) for i in (entries.row, entries.col))
    return xp.zeros_like(values).index_add(0, rows, Held(entries.data).like(values) * values[columns])
