"""A stage that is one mesh: real amplitudes in, detected fields out, its phases trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hzo_hil.simulators import butterfly
from hzo_hil.simulators.arrays import namespace
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.clements import decompose, random_orthogonal
from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout, Scheme
from hzo_hil.simulators.mesh import TWO_PI, Walk, gather_for, unitary, walk
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values


def phase_parameters(layout: Layout, errors: MeshErrors, suffix: str = "") -> tuple[Parameter, ...]:
    """theta, phi and out_phase of a mesh: they wrap at 2 pi and take the converter's levels.

    Fields are linear in e^{i phase}, so homodyne reads one harmonic, and so does a square law: |a + b e^{i phase}|^2
    has no second one.
    """
    levels = errors.levels
    sizes = {"theta": layout.nodes, "phi": layout.nodes, "out_phase": layout.ports}
    return tuple(
        Parameter(name + suffix, (size,), 0.0, TWO_PI, TWO_PI, "wrap", levels, harmonics=1)
        for name, size in sizes.items()
    )


def initial_phases(layout: Layout, rng: np.random.Generator) -> Array:
    """Phases `[phases]` of a random orthogonal matrix, uniform over the group where the layout reaches all of it."""
    if not layout.universal:
        return butterfly.random_real(layout, rng)
    return decompose(random_orthogonal(layout.ports, rng), scheme=layout.scheme)


@dataclass(frozen=True)
class MeshStage(StageModel):
    """Mesh of `ports` ports. Homodyne gives Re(U x), linear in x; intensity gives |U x|^2.

    `scheme`: "clements", "reck" or "butterfly" (see Layout). `input` and `output` are the converters at its ends
    (amplitudes or intensities in units of full scale). `seed` and `index` name the chip and the stage on it.
    """

    ports: int
    detection: Literal["homodyne", "intensity"] = "homodyne"
    errors: MeshErrors = MeshErrors()
    detector: Detector | None = None
    input: Port = Port()
    output: Port = Port()
    seed: int = 0
    index: int = 0
    name: str = "mesh"
    scheme: Scheme = "clements"

    def __post_init__(self) -> None:
        if self.detector is None:
            object.__setattr__(self, "detector", Detector(self.detection))
        elif self.detector.kind != self.detection:
            raise ValueError(f"stage {self.name!r}: detection {self.detection!r}, but a {self.detector.kind} detector")
        _ = self.layout, self.parameters

    @property
    def in_width(self) -> int:
        return self.ports

    @property
    def out_width(self) -> int:
        return self.ports

    @property
    def linear(self) -> bool:
        return self.detection == "homodyne"

    @property
    def read_noise(self) -> float:
        assert self.detector is not None
        return self.detector.dark_std

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        return phase_parameters(self.layout, self.errors)

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.ports, self.scheme)

    @cached_property
    def mesh(self) -> ImperfectMesh:
        """The fabricated mesh."""
        return ImperfectMesh(self.layout, self.errors, self.seed, self.index)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Phases of a random orthogonal matrix: the real part read by homodyne then keeps all the light."""
        return self.named_phases(initial_phases(self.layout, rng))

    def phases_of(self, unitary: Array) -> dict[str, Array]:
        """Values that realise a unitary `[ports, ports]`; ValueError if it is none, or the scheme cannot."""
        return self.named_phases(decompose(unitary, scheme=self.scheme))

    def named_phases(self, phases: Array) -> dict[str, Array]:
        """`clements.decompose`'s array as values by parameter name."""
        return dict(zip(("theta", "phi", "out_phase"), self.layout.split(phases), strict=True))

    def program(self, values: Values, key: int) -> Setting:
        check_values(self, values)
        commanded = np.concatenate([values["theta"], values["phi"], values["out_phase"]])
        return self.mesh.set(commanded, key)

    @property
    def drifts(self) -> bool:
        return self.mesh.drifts

    def at(self, state: Setting, seconds: float) -> Setting:
        return self.mesh.at(state, seconds)

    def run(self, state: Setting, inputs: Any, keys: Any) -> Any:
        fields = convert(inputs, self.input)
        if self.errors.shot_phase_std:
            return self.detect(self.mesh.walk_rows(state, fields, keys), keys)
        outputs = fields @ state.real.like(fields)
        if not self.linear:
            outputs = _intensity(outputs, fields @ state.imaginary.like(fields))
        return self._read(outputs, keys)

    def detect(self, behind: Any, keys: Any) -> Any:
        """What is read of complex fields `[batch, ports]` behind the mesh."""
        xp = namespace(behind)
        outputs = xp.ascontiguousarray(behind.real) if xp is np else behind.real.contiguous()
        return self._read(outputs if self.linear else _intensity(outputs, behind.imag), keys)

    def _read(self, outputs: Any, keys: Any) -> Any:
        assert self.detector is not None
        return self.detector.read(outputs, keys, self.output)

    def ideal(self, xp: Any, values: Values, inputs: Any, walk: Walk = walk) -> Any:
        gather = gather_for(xp, self.layout, values["theta"])
        return self._behind(unitary(xp, gather, values["theta"], values["phi"], values["out_phase"], walk=walk), inputs)

    def noiseless(self, xp: Any, values: Values, inputs: Any, walk: Walk = walk) -> Any:
        assert self.detector is not None
        commanded = xp.concatenate([values["theta"], values["phi"], values["out_phase"]])
        return self.detector.noiseless(self._behind(self.mesh.unitary(xp, commanded, walk), inputs))

    def _behind(self, matrix: Any, inputs: Any) -> Any:
        """What is read behind a complex matrix."""
        outputs = inputs @ matrix.real.T
        return outputs if self.linear else outputs**2 + (inputs @ matrix.imag.T) ** 2


def _intensity(real: Any, imaginary: Any) -> Any:
    """|a + ib|^2, using up the first array."""
    real *= real
    real += imaginary * imaginary
    return real
