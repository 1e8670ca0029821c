"""A stage that is one mesh: real amplitudes in, detected fields out, its phases trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import mesh
from hzo_hil.simulators.clements import decompose, random_orthogonal
from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.mesh import TWO_PI, Layout
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values


def phase_parameters(layout: Layout, errors: MeshErrors, suffix: str = "") -> tuple[Parameter, ...]:
    """theta, phi and out_phase of a mesh: they wrap at 2 pi and take the converter's levels."""
    levels = errors.levels
    sizes = {"theta": layout.nodes, "phi": layout.nodes, "out_phase": layout.ports}
    return tuple(Parameter(name + suffix, (size,), 0.0, TWO_PI, TWO_PI, "wrap", levels) for name, size in sizes.items())


class Programmed(NamedTuple):
    """A mesh at its realised phases; `parts` is the transposed matrix, as real numbers, for each precision."""

    phases: Array
    parts: dict[Any, tuple[Array, Array]]


def programmed(phases: Array, matrix: Array) -> Programmed:
    parts = {}
    for kind in (np.float32, np.float64):
        real, imaginary = matrix.real.T.astype(kind), matrix.imag.T.astype(kind)
        parts[np.dtype(kind)] = (np.ascontiguousarray(real), np.ascontiguousarray(imaginary))
    return Programmed(phases, parts)


@dataclass(frozen=True)
class MeshStage(StageModel):
    """Mesh of `ports` ports. Homodyne gives Re(U x), linear in x; intensity gives |U x|^2.

    `input` and `output` are the converters at its ends (amplitudes or intensities in units of full scale).
    `seed` and `index` name the chip and the stage on it.
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
        return Layout(self.ports)

    @cached_property
    def _mesh(self) -> ImperfectMesh:
        return ImperfectMesh(self.layout, self.errors, self.seed, self.index)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Phases of a random orthogonal matrix: the real part read by homodyne then keeps all the light."""
        return self.named_phases(decompose(random_orthogonal(self.ports, rng)))

    def named_phases(self, phases: Array) -> dict[str, Array]:
        """`clements.decompose`'s array as values by parameter name."""
        return dict(zip(("theta", "phi", "out_phase"), self.layout.split(phases), strict=True))

    def program(self, values: Values, key: int) -> Programmed:
        check_values(self, values)
        commanded = np.concatenate([values["theta"], values["phi"], values["out_phase"]])
        phases = self._mesh.phases(commanded, key)
        return programmed(phases, self._mesh.matrix(phases))

    def run(self, state: Programmed, inputs: Array, keys: NDArray[np.uint64]) -> Array:
        assert self.detector is not None
        fields = convert(inputs, self.input)
        if self.errors.shot_phase_std:
            behind = self._mesh.walk_rows(fields, state.phases, keys)
            outputs = np.ascontiguousarray(behind.real) if self.linear else behind.real**2 + behind.imag**2
        else:
            real, imaginary = state.parts[fields.dtype]
            outputs = fields @ real
            if not self.linear:
                outputs = _intensity(outputs, fields @ imaginary)
        return convert(self.detector.add_noise(outputs, keys), self.output, own=True)

    def ideal(self, xp: Any, values: Values, inputs: Any, walk: mesh.Walk = mesh.walk) -> Any:
        gather = mesh.gather_for(xp, self.layout, values["theta"])
        matrix = mesh.unitary(xp, gather, values["theta"], values["phi"], values["out_phase"], walk=walk)
        outputs = inputs @ matrix.real.T
        return outputs if self.linear else outputs**2 + (inputs @ matrix.imag.T) ** 2


def _intensity(real: Array, imaginary: Array) -> Array:
    """|a + ib|^2, using up both arrays."""
    np.multiply(real, real, out=real)
    np.multiply(imaginary, imaginary, out=imaginary)
    real += imaginary
    return real
