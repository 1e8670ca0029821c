"""One fabricated mesh: what its phase shifters really do when told a phase, and the matrix that results.

Fabrication errors are drawn once from the chip's seed, in unit strength, and scaled: another strength is
the same chip, more or less wrong. Knows nothing of inputs, outputs or detectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import noise
from hzo_hil.simulators.converters import phase_setting, voltage_levels
from hzo_hil.simulators.crosstalk import crosstalk
from hzo_hil.simulators.mesh import Layout, coefficients, nodes, phasor, unitary, walk

Array = NDArray[Any]
_WALK_BYTES = 1 << 24  # memory for the coefficients of rows that each walk the mesh with their own phases


@dataclass(frozen=True)
class MeshErrors:
    """Strength of every imperfection of a mesh; 0 switches one off.

    `coupler_std` rad of each of a node's two couplers, independent; `phase_bias` rad, static and unknown, the
    standard deviation of a normal (`bias_law` "normal") or the half width of a uniform law ("uniform");
    `gamma_std` rad/V^2 of the heaters' pi / v_pi^2; `crosstalk` part of a phase its neighbours feel, counted
    from `calibrated_at` rad (all shifters' setting when the chip was calibrated: what is left then is `phase_bias`);
    `loss_db` mean and `loss_std_db` spread of the loss of a node (never below 0 dB); `programming_std` rad
    redrawn at each write; `shot_phase_std` rad redrawn for every row; `phase_bits` of a DAC in volts (0: none) with
    `v_pi` and `v_max` V.
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
    phase_bits: int = 0
    v_pi: float = 4.36
    v_max: float = 10.8

    def __post_init__(self) -> None:
        if self.bias_law not in ("normal", "uniform"):
            raise ValueError(f"unknown bias_law {self.bias_law!r}: known are 'normal' and 'uniform'")
        for name, value in vars(self).items():
            if not isinstance(value, str) and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative, not {value}")
        if not self.v_pi > 0:
            raise ValueError(f"v_pi must be above 0 V, not {self.v_pi}")

    @property
    def levels(self) -> tuple[float, ...] | None:
        return voltage_levels(self.phase_bits, self.v_pi, self.v_max) if self.phase_bits else None


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

    def phases(self, commanded: Array, key: int) -> Array:
        """Phases (rad) the light meets `[phases]`: converter, heater, crosstalk, bias, then the noise of this write."""
        felt = phase_setting(commanded, self._levels) * self._gain
        if self.errors.crosstalk:
            # Calibration absorbs what the neighbours do at its own operating point.
            held = self.errors.calibrated_at
            felt = self._crosstalk @ (felt - held) + held
        felt = felt + self._bias
        if self.errors.programming_std:
            stream = noise.STREAM_PROGRAM + self.part
            felt += self.errors.programming_std * noise.normals(key, stream, felt.size, np.float64)[0]
        return np.asarray(felt)

    def matrix(self, phases: Array) -> Array:
        """Complex transfer matrix `[ports, ports]` at these phases."""
        couplers = self._couplers if self.errors.coupler_std else None
        return np.asarray(unitary(np, self.layout.gather, *self.layout.split(phases), errors=couplers, loss=self._loss))

    def walk_rows(self, fields: Array, phases: Array, keys: NDArray[np.uint64]) -> Array:
        """Complex fields `[batch, ports]` behind the mesh when every row meets phase noise of its own.

        Works through the rows in chunks, so that memory does not grow with the batch.
        """
        real = fields.real.dtype
        out = np.empty(fields.shape, np.result_type(fields, np.complex64))
        rows = max(1, _WALK_BYTES // (32 * self.layout.ports * self.layout.columns))
        for start in range(0, len(fields), rows):
            part = slice(start, start + rows)
            noisy = noise.normals(keys[part], noise.STREAM_SHOT_PHASE + self.part, self.layout.phases, real).T
            noisy = noisy * real.type(self.errors.shot_phase_std) + phases.astype(real)[:, None]
            out[part] = self._walk(fields[part].T, noisy).T
        return out

    def _walk(self, fields: Array, phases: Array) -> Array:
        """Fields `[ports, rows]` through phases `[phases, rows]`."""
        theta, phi, out_phase = self.layout.split(phases)
        kind = phases.dtype
        couplers = tuple(e.astype(kind)[:, None] for e in self._couplers)
        elements: tuple[Array, ...] = nodes(np, theta, phi, (couplers[0], couplers[1]))
        if self._loss is not None:
            elements = tuple(t * self._loss.astype(kind)[:, None] for t in elements)
        index, partner = self.layout.gather
        keep, take = coefficients(np, elements, index)  # type: ignore[arg-type]
        return np.asarray(phasor(np, out_phase) * walk(np, keep, take, partner, fields))
