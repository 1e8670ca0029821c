"""A stage that is a real matrix made of light: W = scale U diag(attenuation) V^H, two meshes and a row of attenuators.

Either the matrix is the parameter and each write decomposes it, or the phases and attenuations themselves are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from hzo_hil.simulators import mesh
from hzo_hil.simulators.arrays import Held, namespace
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.clements import random_orthogonal, svd_program
from hzo_hil.simulators.converters import convert, nearest_level, uniform_levels
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout, Scheme
from hzo_hil.simulators.mesh_stage import initial_phases, phase_parameters
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values


class SVDState(NamedTuple):
    """Both meshes as set, attenuations `[rank]`, and the gain behind the detectors."""

    inner: Setting
    attenuation: Held
    outer: Setting
    scale: float
    made: dict[str, Held]  # what only some runs need: Re(W)^T

    @property
    def real(self) -> Held:
        if "real" not in self.made:
            rank = len(self.attenuation.array)
            matrix = (self.outer.matrix[:, :rank] * self.attenuation.array) @ self.inner.matrix[:rank]
            self.made["real"] = Held(matrix.real.T)
        return self.made["real"]


@dataclass(frozen=True)
class SVDStage(StageModel):
    """Real matrix `[out_ports, in_ports]` between real amplitudes, read by homodyne.

    `trained` "weight": one parameter `weight`; its largest singular value becomes an electrical gain behind the
    detector (so its noise grows with it). "phases": `theta_v`, `phi_v`, `out_phase_v`, `attenuation` in [0, 1],
    `theta_u`, `phi_u`, `out_phase_u`, with the fixed gain `scale`. Attenuators take as many bits as the phases.
    `scheme` of both meshes: "clements", "reck", or, with trained phases only, "butterfly".
    """

    in_ports: int
    out_ports: int
    trained: Literal["weight", "phases"] = "weight"
    scale: float = 1.0
    errors: MeshErrors = MeshErrors()
    detector: Detector = Detector()
    input: Port = Port()
    output: Port = Port()
    seed: int = 0
    index: int = 0
    name: str = "svd"
    scheme: Scheme = "clements"

    def __post_init__(self) -> None:
        if self.trained not in ("weight", "phases"):
            raise ValueError(f"stage {self.name!r}: trained is 'weight' or 'phases', not {self.trained!r}")
        if self.detector.kind != "homodyne":
            raise ValueError(f"stage {self.name!r}: signed outputs need a homodyne detector, not {self.detector.kind}")
        if not self.scale > 0:
            raise ValueError(f"stage {self.name!r}: scale must be above 0, not {self.scale}")
        if self.trained == "weight" and not all(layout.universal for layout in self.layouts):
            raise ValueError(
                f"stage {self.name!r}: meshes of scheme {self.scheme!r} cannot be programmed with a matrix, since"
                " they do not reach every unitary: set trained to 'phases', or scheme to 'clements' or 'reck'"
            )
        _ = self.parameters

    @property
    def in_width(self) -> int:
        return self.in_ports

    @property
    def out_width(self) -> int:
        return self.out_ports

    @property
    def linear(self) -> bool:
        return True

    @property
    def read_noise(self) -> float:
        return self.detector.dark_std * self.scale

    @property
    def rank(self) -> int:
        return min(self.in_ports, self.out_ports)

    @cached_property
    def layouts(self) -> tuple[Layout, Layout]:
        """Layouts of the first mesh (V^H, `in_ports`) and the last (U, `out_ports`)."""
        return Layout(self.in_ports, self.scheme), Layout(self.out_ports, self.scheme)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        if self.trained == "weight":
            return (Parameter("weight", (self.out_ports, self.in_ports)),)
        first, last = self.layouts
        middle = Parameter("attenuation", (self.rank,), 0.0, 1.0, levels=self._attenuator_levels)
        return (*phase_parameters(first, self.errors, "_v"), middle, *phase_parameters(last, self.errors, "_u"))

    @property
    def _attenuator_levels(self) -> tuple[float, ...] | None:
        return uniform_levels(self.errors.phase_bits, 0.0, 1.0) if self.errors.phase_bits is not None else None

    @cached_property
    def meshes(self) -> tuple[ImperfectMesh, ImperfectMesh]:
        """The fabricated meshes."""
        first, last = self.layouts
        return (
            ImperfectMesh(first, self.errors, self.seed, self.index, part=0),
            ImperfectMesh(last, self.errors, self.seed, self.index, part=1),
        )

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """A random isometry (orthogonal rows or columns of length 1), or the phases of one."""
        if self.trained == "phases":
            first, last = (initial_phases(layout, rng) for layout in self.layouts)
            return self._named(first, np.ones(self.rank), last)
        v, u = random_orthogonal(self.in_ports, rng), random_orthogonal(self.out_ports, rng)
        return {"weight": u[:, : self.rank] @ v[: self.rank]}

    def _named(self, first: Array, attenuation: Array, last: Array) -> dict[str, Array]:
        names = ("theta", "phi", "out_phase")
        values = {f"{n}_v": p for n, p in zip(names, self.layouts[0].split(first), strict=True)}
        values["attenuation"] = attenuation
        return values | {f"{n}_u": p for n, p in zip(names, self.layouts[1].split(last), strict=True)}

    def phases_of(self, weight: Array) -> dict[str, Array]:
        """Values of a "phases" stage that realise `weight` / its largest singular value."""
        first, attenuation, last, _ = svd_program(weight, self.scheme)
        return self._named(first, attenuation, last)

    def program(self, values: Values, key: int) -> SVDState:
        check_values(self, values)
        if self.trained == "weight":
            first, attenuation, last, scale = svd_program(values["weight"], self.scheme)
        else:
            parts = ("theta", "phi", "out_phase")
            first, last = (np.concatenate([values[f"{n}_{end}"] for n in parts]) for end in ("v", "u"))
            attenuation, scale = np.asarray(values["attenuation"], dtype=np.float64), self.scale
        if self._attenuator_levels is not None:
            attenuation = nearest_level(attenuation, self._attenuator_levels)
        inner, outer = (m.set(p, key) for m, p in zip(self.meshes, (first, last), strict=True))
        return SVDState(inner, Held(attenuation), outer, scale, {})

    @property
    def drifts(self) -> bool:
        return self.meshes[0].drifts

    def at(self, state: SVDState, seconds: float) -> SVDState:
        if not self.drifts:
            return state
        inner, outer = (m.at(s, seconds) for m, s in zip(self.meshes, (state.inner, state.outer), strict=True))
        return SVDState(inner, state.attenuation, outer, state.scale, {})

    def run(self, state: SVDState, inputs: Any, keys: Any) -> Any:
        fields = convert(inputs, self.input)
        outputs = (
            self._walk_rows(state, fields, keys) if self.errors.shot_phase_std else fields @ state.real.like(fields)
        )
        return self.detector.read(outputs, keys, self.output, state.scale)

    def _walk_rows(self, state: SVDState, fields: Any, keys: Any) -> Any:
        xp, (first, last) = namespace(fields), self.meshes
        behind = first.walk_rows(state.inner, fields, keys)
        place = {} if xp is np else {"device": behind.device}
        between = xp.zeros((len(fields), self.out_ports), dtype=behind.dtype, **place)
        between[:, : self.rank] = behind[:, : self.rank] * state.attenuation.like(fields)
        outputs = last.walk_rows(state.outer, between, keys).real
        return np.ascontiguousarray(outputs) if xp is np else outputs.contiguous()

    def ideal(self, xp: Any, values: Values, inputs: Any, walk: mesh.Walk = mesh.walk) -> Any:
        if self.trained == "weight":
            return inputs @ values["weight"].T
        first, last = (self._ideal_mesh(xp, values, end, walk) for end in ("v", "u"))
        matrix = (last[:, : self.rank] * values["attenuation"]) @ first[: self.rank]
        return inputs @ (matrix.real.T * self.scale)

    def noiseless(self, xp: Any, values: Values, inputs: Any, walk: mesh.Walk = mesh.walk) -> Any:
        if self.trained == "weight":
            if not self.errors.flawless or self.detector.saturation_current:
                raise ValueError(
                    f"stage {self.name!r} is programmed with a matrix, which a write decomposes: with fabrication"
                    " errors or saturation that cannot be differentiated. Set trained to phases"
                )
            return self.detector.noiseless(self.ideal(xp, values, inputs, walk))
        first, last = (
            self.meshes[end == "u"].unitary(
                xp, xp.concatenate([values[f"{n}_{end}"] for n in ("theta", "phi", "out_phase")]), walk
            )
            for end in ("v", "u")
        )
        matrix = (last[:, : self.rank] * values["attenuation"]) @ first[: self.rank]
        return self.detector.noiseless(inputs @ matrix.real.T) * self.scale

    def _ideal_mesh(self, xp: Any, values: Values, end: str, walk: mesh.Walk) -> Any:
        theta, phi, out_phase = (values[f"{n}_{end}"] for n in ("theta", "phi", "out_phase"))
        gather = mesh.gather_for(xp, self.layouts[0 if end == "v" else 1], theta)
        return mesh.unitary(xp, gather, theta, phi, out_phase, walk=walk)
