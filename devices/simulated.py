"""Simulated physics as a device: the reference driver, made to be copied.

Knows the stage models only by their interface. Its clock is declared, not measured; its noise follows keys and its
drift that clock, so that the same row gives the same answer whatever batch it travels in.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Capabilities, Health, Probes, Reply, Segment
from hzo_hil.devices.engines import Torch
from hzo_hil.devices.engines import engine as engine_of
from hzo_hil.devices.errors import BadInput, CapabilityError, DeviceError
from hzo_hil.devices.simulated_spec import boundaries, check_inputs, check_value, stage_spec
from hzo_hil.devices.work_clock import Seconds, WorkClock
from hzo_hil.simulators.drift import LaserWander
from hzo_hil.simulators.light import Light
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.noise import derive

Array = NDArray[Any]
_REPEATS = 1 << 20  # where the key paths of repeats begin, above any stage index


class SimulatedDevice:
    """A chain of stage models behind the device contract.

    `inner_boundaries=False`: a chip that is driven and read at its ends only. `clip_inputs=False`: inputs outside
    what a boundary can be driven with are refused instead of clipped. Seconds are declared costs: `latency_s`
    a call, `query_s` a stage evaluation, `settling_s` a write. `max_batch` of 0: no limit.

    Every stage's answer is multiplied by the power of one light: `power`, of which `laser_wander` is the largest slow
    change, with `wander_period_s`, and `power_drift_std` the relative standard deviation of a random one, with the
    correlation time `power_drift_tau_s`; `seed` names its path. Whatever drifts follows the declared seconds of work,
    rows times stages and writes, without `latency_s`: how a batch is split does not matter. Models that drift are
    looked at in steps of `drift_step_s`. Where neither `query_s` nor `settling_s` is set, time stands still.

    `engine`: "native" (numpy and kernels in C), "torch" (the CPU by torch) or "cuda", "cuda:1" (a GPU by torch); the
    same physics and draws, equal to rounding; "cuda+tf32": on tensor cores, which round what they multiply to 10 bits.
    Raises CapabilityError where that is not to be had.
    """

    def __init__(
        self,
        models: Sequence[StageModel],
        identity: str = "simulated",
        inner_boundaries: bool = True,
        taps: bool = True,
        max_batch: int = 0,
        latency_s: float = 0.0,
        query_s: float = 0.0,
        settling_s: float = 0.0,
        dtype: Literal["float32", "float64"] = "float32",
        clip_inputs: bool = True,
        longest_call_s: float = 10.0,
        laser_wander: float = 0.0,
        wander_period_s: float = 10.0,
        power: float = 1.0,
        power_drift_std: float = 0.0,
        power_drift_tau_s: float = 10.0,
        seed: int = 0,
        drift_step_s: float = 0.1,
        engine: str = "native",
    ) -> None:
        self._models = tuple(models)
        self._clip = clip_inputs
        try:
            laser = LaserWander(laser_wander, wander_period_s)
            self._light = Light(power, laser, power_drift_std, power_drift_tau_s, seed)
        except ValueError as error:
            raise CapabilityError(f"device {identity!r}: {error}") from error
        if not 0 < drift_step_s < math.inf:
            raise CapabilityError(f"device {identity!r}: drift_step_s must be finite and above 0 s, not {drift_step_s}")
        self._engine_name, self._engine = engine, engine_of(engine, f"device {identity!r}")
        self._drift_step_s = drift_step_s
        self._drifts = not self._light.steady or any(m.drifts for m in self._models)
        self._clock = WorkClock(query_s, settling_s)
        self._states: dict[int, Any] = {}
        self._moments: dict[int, tuple[float, Any]] = {}  # of stages that drift: a time and the state then
        self._written: dict[int, dict[str, Array]] = {}
        self._rows = 0
        self._writes = 0
        for stage, model in enumerate(self._models):
            if not model.parameters:
                self._states[stage], self._written[stage] = model.program({}, 0), {}
        self._capabilities = Capabilities(
            identity=identity,
            stages=tuple(stage_spec(m) for m in self._models),
            boundaries=boundaries(self._models, inner_boundaries, power),
            dtype=dtype,
            max_batch=max_batch,
            latency_s=latency_s,
            query_s=query_s,
            settling_s=settling_s,
            longest_call_s=longest_call_s,
            taps=taps and inner_boundaries,
            repeats=True,
            keyed=True,
            virtual_time=True,
            read_noise=max((power * m.read_noise for m in self._models), default=None),
        )

    def __repr__(self) -> str:
        return f"SimulatedDevice({self._capabilities.identity!r}, {len(self._models)} stages)"

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def models(self) -> tuple[StageModel, ...]:
        return self._models

    @property
    def power(self) -> float:
        """Of the light, which every stage's answer is multiplied by; its wander apart."""
        return self._light.power

    def open(self) -> None:
        """Nothing to reach."""

    def close(self) -> None:
        """Nothing to release: written parameters stay, as on a chip left under power."""

    def health(self) -> Health:
        return Health(True, f"simulated by {self._engine.route}")

    def run(
        self,
        segment: Segment,
        inputs: Array,
        taps: Sequence[int] = (),
        repeats: int = 1,
        keys: NDArray[np.uint64] | None = None,
    ) -> Reply:
        """Send rows `[batch, width]` through a segment; `taps` are inner boundaries read on the way.

        `keys` (uint64 `[batch]`) names the noise of each row; without them the device counts rows. `repeats`
        averages that many independent shots. Raises BadInput or CapabilityError before anything is spent, DeviceError
        if a stage was never written.
        """
        self._check_run(segment, inputs, taps, repeats, keys)
        if keys is None:
            keys = np.arange(self._rows, self._rows + len(inputs), dtype=np.uint64)
            self._rows += len(inputs)
        outputs, read = self._shot(segment, inputs, taps, keys, repeats, 0)
        for repeat in range(1, repeats):
            again = derive(keys, _REPEATS + repeat)
            more, more_read = self._shot(segment, inputs, taps, again, repeats, repeat)
            outputs = outputs + more
            read = {k: read[k] + more_read[k] for k in read}
        if repeats > 1:
            outputs = outputs / outputs.dtype.type(repeats)
            read = {k: v / v.dtype.type(repeats) for k, v in read.items()}
        self._clock.evaluations += len(inputs) * repeats * len(segment)
        return Reply(outputs if self._engine.holds(inputs) else np.ascontiguousarray(outputs), read)

    def _shot(
        self,
        segment: Segment,
        inputs: Array,
        taps: Sequence[int],
        keys: NDArray[np.uint64],
        repeats: int,
        repeat: int,
    ) -> tuple[Array, dict[int, Array]]:
        """One shot of every row, each in its own time; rows of one step of time go together."""
        if not self._drifts:
            return self._pass(segment, inputs, taps, keys, None)
        times = self._clock.rows(len(inputs), len(segment), repeats, repeat)
        found = [self._pass(segment, inputs[r], taps, keys[r], times[r]) for r in self._steps(segment, times)]
        if len(found) == 1:
            return found[0]
        outputs, read = zip(*found, strict=True)
        return np.concatenate(outputs), {k: np.concatenate([part[k] for part in read]) for k in read[0]}

    def _steps(self, segment: Segment, times: Seconds) -> Iterator[slice]:
        """Ranges of rows during which no model of a segment changes."""
        ends: list[int] = []
        if any(m.drifts for m in self._models[segment.lo : segment.hi]):
            ends = [int(end) for end in np.flatnonzero(np.diff(self._step(times))) + 1]
        for first, last in itertools.pairwise([0, *ends, len(times)]):
            yield slice(first, last)

    def _step(self, seconds: Any) -> Any:
        return np.floor(np.asarray(seconds) / self._drift_step_s + 1e-6)

    def _pass(
        self, segment: Segment, inputs: Array, taps: Sequence[int], keys: NDArray[np.uint64], times: Seconds | None
    ) -> tuple[Array, dict[int, Array]]:
        engine = self._engine
        read: dict[int, Array] = {}
        stays = engine.holds(inputs)
        with engine.arithmetic():
            for stage, values in self._stages(segment, engine.put(inputs), engine.keys(keys), times):
                if stage in taps:
                    read[stage] = values.clone() if stays else engine.get(values).copy()
            outputs = values if stays else engine.get(values)
        return (outputs.copy() if outputs is inputs and not stays else outputs), read

    def _stages(self, segment: Segment, values: Any, keys: Any, times: Seconds | None) -> Iterator[tuple[int, Any]]:
        """Boundary by boundary what values `[batch, width]` of the engine become."""
        gains = None
        if not self._light.steady and times is not None:
            gains = self._light.gains(times)
        elif self._light.power != 1:
            gains = np.array([self._light.power])
        for stage in range(segment.lo, segment.hi):
            model = self._models[stage]
            values = model.run(self._state(stage, times), values, derive(keys, stage) if model.draws else keys)
            if gains is not None:
                values = self._engine.scaled(values, gains)
            yield stage + 1, values

    @property
    def run_probes(self) -> Callable[[Probes], Array] | None:
        """Answers `Probes` where its tensors are, on an engine of torch and where nothing drifts; else None."""
        return self._run_probes if isinstance(self._engine, Torch) and not self._drifts else None

    @property
    def place(self) -> Any:
        """Where its tensors are, on an engine of torch and where nothing drifts; else None."""
        return self._engine.place if isinstance(self._engine, Torch) and not self._drifts else None

    def _run_probes(self, probes: Probes) -> Array:
        from hzo_hil.devices.probes_torch import answered

        assert isinstance(self._engine, Torch)
        segment, engine = probes.segment, self._engine
        # `max_batch` limits what is sent in one call, not the rows that are built here.
        most = self._capabilities.max_batch or max(1, len(probes.inputs))
        for first in range(0, len(probes.inputs), most):
            self._check_run(segment, probes.inputs[first : first + most], (), 1, None)

        def run(rows: Any, keys: Any) -> Any:
            *_, (_, outputs) = self._stages(segment, rows, keys, None)
            return outputs

        with engine.arithmetic():
            answer = answered(probes, run, engine.place)
            found: Any = answer if engine.holds(probes.inputs) else engine.get(answer)
        self._clock.evaluations += len(probes.inputs) * probes.rows * len(segment)
        return found

    def _state(self, stage: int, times: Seconds | None) -> Any:
        """The state of a stage in the step of time that the rows have in common."""
        model = self._models[stage]
        if not model.drifts or times is None or not len(times):
            return self._states[stage]
        seconds = float(self._step(times[0])) * self._drift_step_s
        if getattr(model, "drifts_from_write", False):
            seconds = self._clock.since_write(stage, seconds)
        known = self._moments.get(stage)
        if known is None or known[0] != seconds:
            known = self._moments[stage] = seconds, model.at(self._states[stage], seconds)
        return known[1]

    def write(
        self,
        stage: int,
        parameters: Mapping[str, Array],
        where: Mapping[str, Array] | None = None,
        key: int | None = None,
    ) -> None:
        """Program a stage (from 0) with all its parameters; `key` names the noise of this write.

        `where` is checked and otherwise ignored: a simulated write sets every value at once.
        """
        model = self._model(stage)
        values = {name: np.array(value, dtype=np.float64) for name, value in parameters.items()}
        self._check_values(stage, values, where)
        self._writes += 1
        first = stage not in self._written
        state = model.program(values, self._writes if key is None else int(key) % 2**64)
        self._states[stage], self._written[stage] = state, values
        self._moments.pop(stage, None)
        self._clock.wrote(stage, None if key is None else int(key) % 2**64, first)

    def read(self, stage: int) -> Mapping[str, Array]:
        """The values last written to a stage, as they were commanded."""
        model = self._model(stage)
        if stage not in self._written:
            raise self._never_written(stage, model)
        return {name: value.copy() for name, value in self._written[stage].items()}

    @property
    def virtual_clock(self) -> dict[str, Any] | None:
        """Where device time stands, as plain data; None where nothing drifts. Set it to go on from there.

        A run keeps it in its checkpoints. Over a wire it is not offered: a server keeps a clock of its own, and a host
        that resumes finds the device as late as it has become.
        """
        return self._clock.state() if self._drifts else None

    @virtual_clock.setter
    def virtual_clock(self, state: Mapping[str, Any]) -> None:
        self._clock.restore(state)
        self._moments.clear()

    def snapshot(self) -> Mapping[str, Any]:
        """Identity, the settings of every model, light and engine, and a hash of what was last written."""
        digest = hashlib.sha256()
        for stage, values in sorted(self._written.items()):
            for name in sorted(values):
                digest.update(f"{stage}/{name}".encode())
                digest.update(np.ascontiguousarray(values[name]).tobytes())
        return {
            "identity": self._capabilities.identity,
            "models": [m.settings() for m in self._models],
            "light": asdict(self._light),
            "drift_step_s": self._drift_step_s,
            "engine": self._engine_name,
            "written": digest.hexdigest(),
        }

    def _model(self, stage: int) -> StageModel:
        if not 0 <= stage < len(self._models):
            raise CapabilityError(f"{self._name} has stages 0..{len(self._models) - 1}, not {stage}")
        return self._models[stage]

    @property
    def _name(self) -> str:
        return f"device {self._capabilities.identity!r}"

    def _never_written(self, stage: int, model: StageModel) -> DeviceError:
        return DeviceError(
            f"{self._name}: stage {stage} ({model.name!r}) was never written:"
            " write its parameters before the first query"
        )

    def _check_run(self, segment: Segment, inputs: Array, taps: Sequence[int], repeats: int, keys: Any) -> None:
        ability, name = self._capabilities, self._name
        where = f"{name}, segment ({segment.lo}, {segment.hi}]"
        if segment.hi > len(self._models):
            raise CapabilityError(f"{where}: there are only {len(self._models)} stages")
        if not ability.boundaries[segment.lo].drive:
            raise CapabilityError(f"{where}: boundary {segment.lo} cannot be driven")
        if not ability.boundaries[segment.hi].read:
            raise CapabilityError(f"{where}: boundary {segment.hi} cannot be read")
        for tap in taps:
            if not (ability.taps and segment.lo < tap < segment.hi and ability.boundaries[tap].read):
                raise CapabilityError(f"{where}: boundary {tap} cannot be tapped")
        if repeats < 1:
            raise BadInput(f"{where}: repeats must be at least 1, not {repeats}")
        check_inputs(where, ability, segment, inputs, self._clip)
        if keys is not None and (keys.shape != (len(inputs),) or keys.dtype != np.uint64):
            raise BadInput(f"{where}: keys must be uint64 [{len(inputs)}], not {keys.dtype} {list(keys.shape)}")
        for stage in range(segment.lo, segment.hi):
            if stage not in self._states:
                raise self._never_written(stage, self._models[stage])

    def _check_values(self, stage: int, values: Mapping[str, Array], where: Mapping[str, Array] | None) -> None:
        model = self._models[stage]
        at = f"{self._name}, stage {stage} ({model.name!r})"
        expected = {p.name: p for p in model.parameters}
        if set(values) != set(expected):
            raise BadInput(f"{at} takes parameters {sorted(expected)}, not {sorted(values)}")
        for name, spec in expected.items():
            check_value(f"{at}, parameter {name!r}", values[name], spec)
        for name, indices in (where or {}).items():
            size = values[name].size if name in values else -1
            if size < 0 or np.any(np.asarray(indices) < 0) or np.any(np.asarray(indices) >= size):
                raise BadInput(f"{at}: where names {name!r} with indices outside its {max(size, 0)} values")
