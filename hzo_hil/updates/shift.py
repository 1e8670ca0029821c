"""Parameter shift: the exact derivative by phases whose effect on the outputs is a short trigonometric sum.

Where every output is a_0 + sum_{k <= h} (a_k cos k x + b_k sin k x) in one parameter's angle x (its spec says
`harmonics` h), 2h shifted settings and the reading at hand determine all 2h + 1 coefficients, and with them the
derivative at the base, sum_k k b_k. No step goes to zero, so there is no truncation, and read noise is divided by a
shift of order 1 rad instead of a small one. Shifts are asked for at +-(2m - 1) pi / 2h (pi / 2 for one harmonic:
Mitarai et al., PRA 98, 032309, 2018; several: Wierichs et al., Quantum 6, 677, 2022), and weights follow from the codes
that the converter realises, even or not.

Parameters without declared harmonics are probed by small differences (`probing`). Per setting one write and one query a
sample, one stage deep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Stage
from hzo_hil.parameters import difference, settled, widest_gap
from hzo_hil.updates import Leaf
from hzo_hil.updates.probing import ParameterProbing

Array = NDArray[Any]
TWO_PI = 2 * np.pi


class ParameterShift:
    """`probes` and `eps` are those of the parameters that are not sinusoidal (see `ParameterProbing`)."""

    queries = True

    def __init__(self, probes: str = "coordinate", eps: float | None = None) -> None:
        self.rest = ParameterProbing(probes, eps)

    @staticmethod
    def fits(stage: Stage) -> bool:
        """Whether the rule has anything to shift."""
        return any(spec.harmonics for _, spec in stage.parameters.values())

    def check(self, stage: Stage) -> None:
        if not self.fits(stage):
            raise BadInput(
                f"no parameter of stage {stage.label} is declared sinusoidal at its output (harmonics above 0, and only"
                " linear stages behind it): use leaf='probing', or declare it in the device's ParameterSpec"
            )
        for name, (_, spec) in stage.parameters.items():
            if spec.harmonics and (gap := _widest_hole(spec)) > (most := spec.period / (4 * spec.harmonics)):
                raise BadInput(
                    f"parameter {name!r} of stage {stage.label} has no value within {gap:.4g} somewhere in its period"
                    f" of {spec.period:.4g}, and shifts that tell {spec.harmonics} harmonics apart need one every"
                    f" {most:.4g}: its converter has too few levels, or its range is too short. Use leaf='probing'"
                )
        self.rest.check(stage)

    def cost(self, specs: Mapping[str, ParameterSpec]) -> tuple[int, int]:
        rest = {n: s for n, s in specs.items() if not s.harmonics}
        rows = sum(2 * s.harmonics * s.size for s in specs.values()) + (self.rest.cost(rest)[0] if rest else 0)
        return rows, rows

    def gradients(self, leaf: Leaf) -> dict[str, Tensor]:
        held = {n: v.detach().cpu().double().numpy() for n, v in leaf.parameters.items()}
        found: dict[str, Tensor] = {}
        for name, spec in leaf.specs.items():
            if spec.harmonics:
                slopes = [self.slope(leaf, held, name, place) for place in range(spec.size)]
                found[name] = torch.tensor(slopes, dtype=torch.float64).reshape(spec.shape).to(leaf.parameters[name])
        rest = {n: s for n, s in leaf.specs.items() if not s.harmonics}
        if rest:
            part = {n: leaf.parameters[n] for n in rest}
            found |= self.rest.gradients(
                replace(leaf, specs=rest, parameters=part, query=lambda v, **how: leaf.query({**held, **v}, **how))
            )
        return found

    def slope(self, leaf: Leaf, held: Mapping[str, Array], name: str, place: int, **how: Any) -> float:
        """d<target, outputs>/d(one value), by its 2h shifts. `how` goes to the query."""
        spec, dtype = leaf.specs[name], leaf.stage.device.capabilities.dtype
        target = leaf.target.detach().cpu().double().numpy()
        outputs = leaf.outputs.detach().cpu().double().numpy()
        moved, change = [], []
        # + - - +, so that slow drift cancels.
        shifts = self.shifts(spec)
        for shift in shifts if place % 2 == 0 else shifts[::-1]:
            wanted = held[name].astype(np.float64).copy()
            wanted.flat[place] += shift
            written = settled(spec, _inside(spec, wanted), dtype, f"stage {leaf.stage.label}")
            moved.append(difference(spec, written, held[name]).flat[place])
            answers = leaf.query({**held, name: written}, **how)
            change.append(np.vdot(target, answers.astype(np.float64) - outputs))
        return float(np.dot(weights(np.array(moved) * (TWO_PI / spec.period), spec.harmonics), change)) * (
            TWO_PI / spec.period
        )

    def shifts(self, spec: ParameterSpec) -> list[float]:
        """Where to measure, in the parameter's unit: 2h places, + and - in turn."""
        h = spec.harmonics
        return [
            sign * (2 * m - 1) * spec.period / (4 * h)
            for m in range(1, h + 1)
            for sign in ((1, -1) if m % 2 else (-1, 1))
        ]


def weights(angles: Array, harmonics: int) -> Array:
    """w with sum_j w_j (f(x_j) - f(0)) = f'(0) for every trigonometric sum of that many harmonics; angles `[2h]`, rad.

    The smallest such w where the angles leave some undetermined.
    """
    k = np.arange(1, harmonics + 1)
    x = np.asarray(angles, dtype=np.float64)[:, None]
    basis = np.concatenate([np.cos(k * x) - 1, np.sin(k * x)], axis=1)
    slopes = np.concatenate([np.zeros(harmonics), k])
    found: Array = np.linalg.lstsq(basis.T, slopes, rcond=None)[0]
    return found


def _widest_hole(spec: ParameterSpec) -> float:
    """The longest stretch of a period without a value that can be written."""
    low = spec.low if np.isfinite(spec.low) else 0.0
    if spec.levels is None:
        return max(0.0, spec.period - (spec.high - spec.low)) if spec.edge != "wrap" else 0.0
    return max(widest_gap(spec), low + spec.period - spec.levels[-1])


def _inside(spec: ParameterSpec, wanted: Array) -> Array:
    """A shift beyond the end of a range that does not wrap: one period away where that is inside."""
    if spec.edge == "wrap":
        return wanted
    over, under = wanted > spec.high, wanted < spec.low
    moved = wanted - spec.period * over + spec.period * under
    kept: Array = np.where((moved >= spec.low) & (moved <= spec.high), moved, wanted)
    return kept
