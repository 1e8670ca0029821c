"""Large real matrices on small photonic cores: cut into blocks, each a pair of meshes, their partial sums added up.

Knows the cores as stages of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import Held, namespace
from hzo_hil.simulators.clements import random_orthogonal
from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.layouts import Scheme
from hzo_hil.simulators.model import Array, Parameter, Port, StageModel, Values, check_values
from hzo_hil.simulators.svd_stage import SVDStage

_CORES = 1 << 20  # from one core's index to the next: above any number of stages on a chip


class CoreState(NamedTuple):
    """State of each block's core (none where all are perfect), the electrical gains behind them `[blocks]` and for each
    output `[in blocks, out]`. Where no noise of a shot is in the light: what the blocks let through `[in blocks, core,
    out]`, and that times the gains as one matrix `[in, out]`."""

    cores: tuple[Any, ...]
    gains: Array
    gain: Held
    passing: Held | None
    matrix: Held | None


@dataclass(frozen=True)
class TensorCore(StageModel):
    """W x for `weight` `[out_features, in_features]`, in blocks of `core` x `core`, with zeros at its edges.

    Every block is programmed as a matrix of light: its largest singular value is an electrical gain behind its
    detectors (`detector`, homodyne), whose noise each block has for itself. `shared`: one physical core takes all
    blocks in turn, with the same fabrication errors each time; otherwise each block has a core of its own.
    `partial_sums` "analog": currents are added, then pass the `converter`; "digital": each block's answer passes it,
    then they are added. `errors` and `scheme` ("clements" or "reck") are those of each mesh.
    """

    in_features: int
    out_features: int
    core: int = 8
    shared: bool = False
    partial_sums: Literal["analog", "digital"] = "analog"
    errors: MeshErrors = MeshErrors()
    detector: Detector = field(default_factory=Detector)
    input: Port = Port()
    converter: Port = Port()
    seed: int = 0
    index: int = 0
    name: str = "core"
    scheme: Scheme = "clements"

    def __post_init__(self) -> None:
        if self.in_features < 1 or self.out_features < 1:
            raise ValueError(f"stage {self.name!r}: {self.in_features} to {self.out_features} values: at least 1 each")
        if self.core < 2:
            raise ValueError(f"stage {self.name!r}: a core has at least 2 x 2 ports, not {self.core}")
        if self.partial_sums not in ("analog", "digital"):
            raise ValueError(f"stage {self.name!r}: partial_sums are 'analog' or 'digital', not {self.partial_sums!r}")
        if self.detector.kind != "homodyne":
            raise ValueError(f"stage {self.name!r}: signed outputs need a homodyne detector, not {self.detector.kind}")
        _ = self._cores

    @property
    def in_width(self) -> int:
        return self.in_features

    @property
    def out_width(self) -> int:
        return self.out_features

    @cached_property
    def output(self) -> Port:
        """The converter, or what several give that are added."""
        c, sums = self.converter, self.blocks[1]
        return c if self.partial_sums == "analog" else Port(sums * c.low, sums * c.high, c.step)

    @property
    def linear(self) -> bool:
        return True

    @property
    def read_noise(self) -> float:
        """Of one block of largest singular value 1, times the root of how many are added."""
        return self.detector.dark_std * float(np.sqrt(self.blocks[1]))

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks along the outputs and along the inputs."""
        return -(-self.out_features // self.core), -(-self.in_features // self.core)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("weight", (self.out_features, self.in_features)),)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """A random isometry (orthogonal rows or columns of length 1)."""
        rank = min(self.in_features, self.out_features)
        u, v = random_orthogonal(self.out_features, rng), random_orthogonal(self.in_features, rng)
        return {"weight": u[:, :rank] @ v[:rank]}

    @cached_property
    def _cores(self) -> tuple[SVDStage, ...]:
        count = self.blocks[0] * self.blocks[1]
        places = [self.index + (0 if self.shared else (k + 1) * _CORES) for k in range(count)]
        made = {
            p: SVDStage(self.core, self.core, errors=self.errors, seed=self.seed, index=p, scheme=self.scheme)
            for p in set(places)
        }
        return tuple(made[p] for p in places)

    def program(self, values: Values, key: int) -> CoreState:
        check_values(self, values)
        (out, into), k = self.blocks, self.core
        padded = np.zeros((out * k, into * k))
        padded[: self.out_features, : self.in_features] = values["weight"]
        blocks = padded.reshape(out, k, into, k).swapaxes(1, 2).reshape(-1, k, k)
        gain = np.linalg.norm(blocks, 2, axis=(-2, -1))
        gain[gain == 0] = 1.0
        if self.errors == MeshErrors():  # what perfect cores let through needs no decomposition
            return self._state((), gain, blocks.swapaxes(1, 2))
        states = tuple(
            core.program({"weight": block}, int(noise.derive(key, number)[0]))
            for number, (core, block) in enumerate(zip(self._cores, blocks, strict=True))
        )
        return self._state(states, gain, self._realised(states))

    def _realised(self, states: tuple[Any, ...]) -> Array | None:
        """What each core makes of light in each of its ports, `[blocks, core, core]`, gain and all."""
        if self.errors.shot_phase_std:
            return None
        light, silent = np.eye(self.core), np.zeros(self.core, np.uint64)  # the cores' detectors have no noise
        return np.stack([core.run(state, light, silent) for core, state in zip(self._cores, states, strict=True)])

    def _state(self, states: tuple[Any, ...], gain: Array, realised: Array | None) -> CoreState:
        """Gains `[blocks]`, row by row of blocks."""
        (out, into), k = self.blocks, self.core
        behind = np.repeat(gain.reshape(out, into).T, k, axis=1)[:, : self.out_features]
        if realised is None:
            return CoreState(states, gain, Held(behind), None, None)
        passing = (realised / gain[:, None, None]).reshape(out, into, k, k)
        passing = passing.transpose(1, 2, 0, 3).reshape(into, k, out * k)[..., : self.out_features]
        matrix = (passing * behind[:, None, :]).reshape(into * k, -1)[: self.in_features]
        return CoreState(states, gain, Held(behind), Held(passing), Held(matrix))

    @property
    def drifts(self) -> bool:
        return self._cores[0].drifts

    def at(self, state: CoreState, seconds: float) -> CoreState:
        if not self.drifts:
            return state
        later = tuple(core.at(held, seconds) for core, held in zip(self._cores, state.cores, strict=True))
        return self._state(later, state.gains, self._realised(later))

    def run(self, state: CoreState, inputs: Any, keys: Any) -> Any:
        return self.apply(state, convert(inputs, self.input)[:, None], keys)[:, 0]

    def apply(self, state: CoreState, rows: Any, keys: Any) -> Any:
        """Outputs `[batch, positions, out]` of rows `[batch, positions, in]`; `keys` `[batch]`."""
        if state.matrix is not None and self.partial_sums == "analog" and self.detector == Detector():
            return convert(rows @ state.matrix.like(rows), self.converter, own=True)
        xp, (batch, positions, _) = namespace(rows), rows.shape
        parts = self._parts(state, rows, keys)  # [in blocks, batch x positions, out]
        parts = self.detector.add_noise(xp.swapaxes(parts, 0, 1).reshape(batch, -1), keys)
        parts = parts.reshape(batch, positions, -1, self.out_features) * state.gain.like(rows)
        if self.partial_sums == "digital":
            return convert(parts, self.converter, own=True).sum(2)
        return convert(parts.sum(2), self.converter, own=True)

    def _parts(self, state: CoreState, rows: Any, keys: Any) -> Any:
        """What comes out of each column of blocks, in full scale."""
        xp, (_, positions, width) = namespace(rows), rows.shape
        flat, (_, into) = rows.reshape(-1, width), self.blocks
        dark = [flat[:, :1] * 0] * (into * self.core - width)
        blocks = xp.swapaxes(xp.concatenate([flat, *dark], 1).reshape(-1, into, self.core), 0, 1)
        if state.passing is not None:
            return blocks @ state.passing.like(rows)
        each = xp.stack([noise.derive(keys, place) for place in range(positions)], 1).reshape(-1)
        answers = [
            core.run(held, blocks[number % into], noise.derive(each, number))
            for number, (core, held) in enumerate(zip(self._cores, state.cores, strict=True))
        ]
        columns = [xp.concatenate(answers[number::into], 1)[:, : self.out_features] for number in range(into)]
        return xp.stack(columns) / state.gain.like(rows)[:, None, :]

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        return inputs @ values["weight"].T
