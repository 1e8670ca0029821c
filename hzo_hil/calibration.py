"""What calibrating found out about a network on its devices: figures with 95 % intervals, kept as JSON.

Plain numbers only: knows neither devices, tensors nor how a figure was measured (`hzo_hil.calibrate` does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hzo_hil.devices.errors import BadInput

GAIN_LOW, GAIN_HIGH = 1 / 3, 3.0
"""Mean-square gains outside these make noise, or the target, vanish within a few stages: a warning."""


@dataclass(frozen=True)
class Measured:
    """A figure and its 95 % interval; the three are equal where it was declared and not measured."""

    value: float
    low: float
    high: float

    @classmethod
    def known(cls, value: float) -> Measured:
        return cls(value, value, value)


@dataclass(frozen=True)
class StageFigures:
    """One stage, alone, in activation units.

    `noise`: standard deviation of an answer's element when the same row is asked again. `gain`: mean square of an
    output's change per unit of change of every input (||J||_F^2 / outputs). `curvature`: truncation error of a central
    difference relative to the difference, per eps^2, of a probe that moves every input. `turning`: how much a Jacobian
    changes, relative to it, per unit of noise in every input. `likeness`: how alike the Jacobians of two samples are
    (1: the same). `out_step`: of its read-out's converter, declared or estimated, 0: none seen. `amplitude`: root mean
    square of its inputs. `largest`: the largest step per element that was looked at. Of many stages only some are asked
    twice; noise and likeness of the others are then those of their kind.
    """

    noise: Measured
    gain: Measured
    curvature: Measured
    turning: Measured
    likeness: float
    out_step: float
    amplitude: float
    largest: float


@dataclass(frozen=True)
class Calibration:
    """A network at one batch of inputs. Lists by boundary have depth + 1 entries, by stage depth entries.

    `fingerprint`: of the devices and stages it is valid for. `noise_growth`: extra noise variance per squared
    amplitude of the answer, all stages pooled. `carried`: the fraction of a stage's noise variance that flows on into
    later stages of a segment (the rest is the read-out's). `bending`: how much of the curvature of later stages adds to
    a segment's. `alignment`: cosine between truncation and the difference it is part of, all stages together; below 0
    stages saturate, and differences come out too small. `unsteady`: variance of an activation from one forward pass to
    the next, by boundary. `target`: mean squared norm of a sample's target, by boundary. `top_error`: that of the last
    target's error, from noise of the forward pass. `own`, `shared`, `floor`, by stage: mean squared norm of a sample's
    gradient, mean product of two samples' gradients, and squared error of one sample's gradient that comes from noisy
    activations. Seconds are those declared, or measured where none are. `drift`: relative change of answers per device
    second (`drift_unit` says where it is per call).
    """

    devices: tuple[str, ...]
    fingerprint: str
    rows: int
    stages: tuple[StageFigures, ...]
    noise_growth: Measured
    carried: Measured
    bending: Measured
    alignment: Measured
    unsteady: tuple[float, ...]
    target: tuple[float, ...]
    top_error: float
    own: tuple[float, ...]
    shared: tuple[float, ...]
    floor: tuple[float, ...]
    call_s: Measured
    evaluation_s: Measured
    settling_s: Measured
    drift: Measured
    drift_unit: str
    queries: int
    writes: int

    def warnings(self) -> list[str]:
        """What a person should know before training with this."""
        found = []
        for k, stage in enumerate(self.stages):
            # Beyond doubt: a few directions alone find a gain to some ten per cent.
            if stage.gain.high < GAIN_LOW or stage.gain.low > GAIN_HIGH:
                found.append(
                    f"stage {k + 1}: the mean-square gain of its Jacobian is {stage.gain.value:.3g}, outside"
                    f" {GAIN_LOW:.2g}..{GAIN_HIGH:.2g}: over many stages"
                    f" {'noise is amplified' if stage.gain.value > 1 else 'the target vanishes in noise'}."
                    " Set gain (method.gain, or Opaque(gain=...)), scale its weights, or lay a known skip around it"
                )
        return found

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        try:
            return _calibration(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"this is no calibration: {error}. Calibrate again (hzo-hil device calibrate)") from error


_PLAIN = {"devices", "unsteady", "target", "own", "shared", "floor"}


def _calibration(raw: Mapping[str, Any]) -> Calibration:
    fields: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "stages":
            fields[name] = tuple(StageFigures(**_figures(s)) for s in value)
        elif name in _PLAIN:
            fields[name] = tuple(value)
        else:
            fields[name] = Measured(**value) if isinstance(value, dict) else value
    return Calibration(**fields)


def _figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {n: Measured(**v) if isinstance(v, dict) else v for n, v in raw.items()}
