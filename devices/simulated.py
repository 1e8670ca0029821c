"""Simulated physics as a device: the reference driver, made to be copied.

Knows the stage models only by their interface. Its clock is declared, not measured; its noise follows keys, so that
the same row gives the same answer whatever batch it travels in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import (
    BoundarySpec,
    Capabilities,
    Health,
    ParameterSpec,
    Reply,
    Segment,
    StageSpec,
)
from hzo_hil.devices.errors import BadInput, CapabilityError, DeviceError
from hzo_hil.simulators.drift import LaserWander
from hzo_hil.simulators.model import Parameter, StageModel
from hzo_hil.simulators.noise import derive

Array = NDArray[Any]
_REPEATS = 1 << 20  # where the key paths of repeats begin, above any stage index


class SimulatedDevice:
    """A chain of stage models behind the device contract.

    `inner_boundaries=False`: a chip that is driven and read at its ends only. `clip_inputs=False`: inputs outside
    what a boundary can be driven with are refused instead of clipped. Seconds are declared costs: `latency_s`
    a call, `query_s` a stage evaluation, `settling_s` a write. `max_batch` of 0: no limit. `laser_wander`: every
    stage's answer follows the power of one laser, which wanders by so much with `wander_period_s` of declared time.
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
    ) -> None:
        self._models = tuple(models)
        self._clip = clip_inputs
        self._laser = LaserWander(laser_wander, wander_period_s)
        self._clock = 0.0
        self._states: dict[int, Any] = {}
        self._written: dict[int, dict[str, Array]] = {}
        self._rows = 0
        self._writes = 0
        for stage, model in enumerate(self._models):
            if not model.parameters:
                self._states[stage], self._written[stage] = model.program({}, 0), {}
        self._capabilities = Capabilities(
            identity=identity,
            stages=tuple(_stage_spec(m) for m in self._models),
            boundaries=_boundaries(self._models, inner_boundaries),
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
            read_noise=max((m.read_noise for m in self._models), default=None),
        )

    def __repr__(self) -> str:
        return f"SimulatedDevice({self._capabilities.identity!r}, {len(self._models)} stages)"

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def models(self) -> tuple[StageModel, ...]:
        return self._models

    def open(self) -> None:
        """Nothing to reach."""

    def close(self) -> None:
        """Nothing to release: written parameters stay, as on a chip left under power."""

    def health(self) -> Health:
        return Health(True, "simulated")

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
        self._clock += self._capabilities.latency_s + len(inputs) * repeats * len(segment) * self._capabilities.query_s
        outputs, read = self._shot(segment, inputs, taps, keys)
        for repeat in range(1, repeats):
            more, more_read = self._shot(segment, inputs, taps, derive(keys, _REPEATS + repeat))
            outputs = outputs + more
            read = {k: read[k] + more_read[k] for k in read}
        if repeats > 1:
            outputs = outputs / outputs.dtype.type(repeats)
            read = {k: v / v.dtype.type(repeats) for k, v in read.items()}
        return Reply(np.ascontiguousarray(outputs), read)

    def _shot(
        self, segment: Segment, inputs: Array, taps: Sequence[int], keys: NDArray[np.uint64]
    ) -> tuple[Array, dict[int, Array]]:
        values = inputs
        power = self._laser.gain(self._clock)
        read: dict[int, Array] = {}
        for stage in range(segment.lo, segment.hi):
            values = self._models[stage].run(self._states[stage], values, derive(keys, stage))
            if self._laser.amplitude:
                values = values * values.dtype.type(power)
            if stage + 1 in taps:
                read[stage + 1] = values.copy()
        return (values.copy() if values is inputs else values), read

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
        self._clock += self._capabilities.settling_s
        state = model.program(values, self._writes if key is None else int(key) % 2**64)
        self._states[stage], self._written[stage] = state, values

    def read(self, stage: int) -> Mapping[str, Array]:
        """The values last written to a stage, as they were commanded."""
        model = self._model(stage)
        if stage not in self._written:
            raise self._never_written(stage, model)
        return {name: value.copy() for name, value in self._written[stage].items()}

    def snapshot(self) -> Mapping[str, Any]:
        """Identity, the settings of every model, and a hash of what was last written."""
        digest = hashlib.sha256()
        for stage, values in sorted(self._written.items()):
            for name in sorted(values):
                digest.update(f"{stage}/{name}".encode())
                digest.update(np.ascontiguousarray(values[name]).tobytes())
        return {
            "identity": self._capabilities.identity,
            "models": [m.settings() for m in self._models],
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
        self._check_inputs(where, segment, inputs)
        if keys is not None and (keys.shape != (len(inputs),) or keys.dtype != np.uint64):
            raise BadInput(f"{where}: keys must be uint64 [{len(inputs)}], not {keys.dtype} {list(keys.shape)}")
        for stage in range(segment.lo, segment.hi):
            if stage not in self._states:
                raise self._never_written(stage, self._models[stage])

    def _check_inputs(self, where: str, segment: Segment, inputs: Array) -> None:
        ability, boundary = self._capabilities, self._capabilities.boundaries[segment.lo]
        width = ability.width(segment.lo)
        if inputs.ndim != 2 or inputs.shape[1] != width:
            raise BadInput(f"{where}: inputs must be [batch, {width}], not {list(inputs.shape)}")
        if inputs.dtype != ability.dtype:
            raise BadInput(f"{where}: inputs must be {ability.dtype}, not {inputs.dtype}: convert them before sending")
        if ability.max_batch and len(inputs) > ability.max_batch:
            raise BadInput(f"{where}: {len(inputs)} rows in one call, at most {ability.max_batch}: split the batch")
        if not np.isfinite(inputs).all():
            raise BadInput(f"{where}: inputs hold NaN or infinity: check the activations before boundary {segment.lo}")
        if not self._clip and inputs.size and (inputs.min() < boundary.low or inputs.max() > boundary.high):
            raise BadInput(
                f"{where}: inputs from {inputs.min():g} to {inputs.max():g} leave the range {boundary.low:g} to"
                f" {boundary.high:g} of boundary {segment.lo}: scale them, or set clip_inputs"
            )

    def _check_values(self, stage: int, values: Mapping[str, Array], where: Mapping[str, Array] | None) -> None:
        model = self._models[stage]
        at = f"{self._name}, stage {stage} ({model.name!r})"
        expected = {p.name: p for p in model.parameters}
        if set(values) != set(expected):
            raise BadInput(f"{at} takes parameters {sorted(expected)}, not {sorted(values)}")
        for name, spec in expected.items():
            _check_value(f"{at}, parameter {name!r}", values[name], spec)
        for name, indices in (where or {}).items():
            size = values[name].size if name in values else -1
            if size < 0 or np.any(np.asarray(indices) < 0) or np.any(np.asarray(indices) >= size):
                raise BadInput(f"{at}: where names {name!r} with indices outside its {max(size, 0)} values")


def _check_value(at: str, value: Array, spec: Parameter) -> None:
    if value.shape != spec.shape:
        raise BadInput(f"{at}: the shape must be {list(spec.shape)}, not {list(value.shape)}")
    if not np.isfinite(value).all():
        raise BadInput(f"{at}: holds NaN or infinity: nothing was written")
    if spec.period == 0 and value.size:
        # A value at an end may cross it by the rounding of a float32 master.
        slack = 1e-6 * max(1.0, *(abs(end) for end in (spec.low, spec.high) if np.isfinite(end)), 1.0)
        if value.min() < spec.low - slack or value.max() > spec.high + slack:
            raise BadInput(
                f"{at}: values from {value.min():g} to {value.max():g} leave the range {spec.low:g} to {spec.high:g}:"
                " bring them back with the parameter's edge rule before writing"
            )


def _stage_spec(model: StageModel) -> StageSpec:
    return StageSpec(
        name=model.name,
        in_width=model.in_width,
        out_width=model.out_width,
        parameters=tuple(
            ParameterSpec(p.name, p.shape, p.low, p.high, p.period, p.edge, p.levels, p.slew) for p in model.parameters
        ),
        structure=model.structure,
        linear=model.linear,
    )


def _boundaries(models: Sequence[StageModel], inner: bool) -> tuple[BoundarySpec, ...]:
    """What each boundary takes (the next stage's input port) and gives (the last stage's output port)."""
    found = []
    for index in range(len(models) + 1):
        into = models[index].input if index < len(models) else None
        out_of = models[index - 1].output if index > 0 else None
        reachable = inner or index in (0, len(models))
        limits: dict[str, float] = {}
        if into is not None:
            limits |= {"low": into.low, "high": into.high, "in_step": into.step}
        if out_of is not None:
            limits |= {"out_low": out_of.low, "out_high": out_of.high, "out_step": out_of.step}
        found.append(BoundarySpec(drive=reachable, read=reachable, **limits))
    return tuple(found)
