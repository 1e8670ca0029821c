"""A scripted in-process device for tests: exact where it answers, and failing exactly as it was told to.

It knows nothing of physics, of the host or of a wire. Everything it was asked is kept in `calls` and
`writes`; calls are numbered from 0 in the order they came, failed and repeated ones included.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from hzo_hil.devices.api import (
    Array,
    BoundarySpec,
    Capabilities,
    Health,
    ParameterSpec,
    Query,
    Reply,
    Segment,
    StageSpec,
)
from hzo_hil.devices.errors import DeviceRebooted, LinkLost
from hzo_hil.devices.fake_checks import check_parameters, check_query, check_slew, check_stage
from hzo_hil.devices.fake_script import CallRecord, Script, WriteRecord
from hzo_hil.devices.fake_stages import (
    Activation,
    FakeStage,
    StageFunction,
    boundary_specs,
    keyed_normals,
    mlp_stages,
    nearest_levels,
    on_grid,
)

__all__ = ["CallRecord", "FakeDevice", "FakeStage", "Script", "WriteRecord"]


class FakeDevice:
    """A blocking device made of FakeStages. Activations are rounded to `dtype` at every boundary.

    So a long segment equals its one-stage queries bit for bit (with no converter in between), and a
    row's answer does not depend on its batch. Converters: driven inputs are rounded to `in_step`,
    values read out to `out_step` and cut at the ends; grids start at the lower end, at 0 if there is none.
    Written values are rounded to `levels`. A partial write touches the indices in `where` only.
    `capabilities` fields not named below are passed on as keywords (`taps=True`, `max_batch=64`, ...).
    """

    def __init__(
        self,
        stages: Sequence[FakeStage],
        *,
        boundaries: BoundarySpec | Sequence[BoundarySpec] | None = None,
        inner: bool = True,
        script: Script | None = None,
        dtype: Literal["float32", "float64"] = "float32",
        identity: str = "fake",
        keep_inputs: bool = False,
        **declared: Any,
    ) -> None:
        self._capabilities = Capabilities(
            identity=identity,
            stages=tuple(s.spec for s in stages),
            boundaries=boundary_specs(boundaries, len(stages) + 1, inner),
            dtype=dtype,
            **declared,
        )
        self.script = script or Script()
        self.keep_inputs = keep_inputs
        self.calls: list[CallRecord] = []
        self.writes: list[WriteRecord] = []
        self.opened = 0
        self.closed = 0
        self.boots = 0
        self.seconds = 0.0  # virtual clock; moves only with virtual_time
        self.threads: set[int] = set()
        self._stages = list(stages)
        self._parameters = [self._to_dtype(s.power_on()) for s in stages]
        self._lost: set[int] = set()
        self._rows_seen = 0
        self._busy = threading.Lock()
        self._unhang = threading.Event()

    @staticmethod
    def mlp(
        widths: Sequence[int],
        activation: Activation | Sequence[Activation] = "tanh",
        *,
        seed: int = 0,
        bias: bool = True,
        parameter: Mapping[str, Any] | None = None,
        pipelined: bool = False,
        **options: Any,
    ) -> FakeDevice:
        """Stage l is y = act(W a + b), with seeded `weight` [out, in] and `bias` [out].

        `parameter` holds ParameterSpec fields for all of them; `options` go to the constructor.
        """
        stages = mlp_stages(widths, activation, seed=seed, bias=bias, parameter=parameter)
        return _kind(pipelined)(stages, **options)

    @staticmethod
    def functions(
        stages: Sequence[FakeStage | tuple[StageSpec, StageFunction]], *, pipelined: bool = False, **options: Any
    ) -> FakeDevice:
        """Stages from plain functions `(inputs [batch, in], parameters) -> [batch, out]`, each with its spec."""
        made = [s if isinstance(s, FakeStage) else FakeStage(*s) for s in stages]
        return _kind(pipelined)(made, **options)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def open(self) -> None:
        with self._alone():
            self.opened += 1

    def run(
        self,
        segment: Segment,
        inputs: Array,
        taps: Sequence[int] = (),
        repeats: int = 1,
        keys: Array | None = None,
    ) -> Reply:
        with self._alone():
            call = self._record(Query(segment, inputs, taps, repeats, keys))
            self._spend(self._call_seconds(call.number))
            if call.number in self.script.hang:
                self._unhang.wait(self.script.hang_s)
                raise LinkLost(f"{self._name} did not answer call {call.number} (scripted hang)")
            return self._answer(Query(segment, inputs, taps, repeats, keys), call.number)

    def write(
        self,
        stage: int,
        parameters: Mapping[str, Array],
        where: Mapping[str, Array] | None = None,
        key: Any = None,
    ) -> None:
        with self._alone():
            check_parameters(self.capabilities, stage, parameters)
            number = len(self.writes)
            copies = {name: np.array(value) for name, value in parameters.items()}
            self.writes.append(WriteRecord(number, stage, copies, where, key))
            self._spend(self.script.write_s)
            if number in self.script.lose_write:
                raise LinkLost(f"{self._name} did not answer write {number} of stage {stage} (scripted loss)")
            self._parameters[stage] = {
                spec.name: self._written(stage, spec, copies[spec.name], where)
                for spec in self.capabilities.stages[stage].parameters
            }
            if where is None:
                self._lost.discard(stage)

    def read(self, stage: int) -> Mapping[str, Array]:
        with self._alone():
            check_stage(self.capabilities, stage)
            return {name: value.copy() for name, value in self._parameters[stage].items()}

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "identity": self.capabilities.identity,
            "calls": len(self.calls),
            "writes": len(self.writes),
            "boots": self.boots,
        }

    def health(self) -> Health:
        if self._lost:
            return Health(False, f"{self._name} rebooted; stages {sorted(self._lost)} were not written since")
        return Health(True)

    def close(self) -> None:
        with self._alone():
            self.closed += 1

    def unhang(self) -> None:
        """End a scripted hang of a blocking call now; may be called from any thread."""
        self._unhang.set()

    @property
    def _name(self) -> str:
        return f"fake device {self.capabilities.identity!r}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The contract promises one call at a time: overlapping ones are the host's mistake."""
        me = threading.get_ident()
        self.threads.add(me)
        if self.script.one_thread and len(self.threads) > 1:
            raise RuntimeError(f"{self._name} was called from a second thread: all calls must come from one")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(f"{self._name} was called while another call was running: it takes one at a time")
        try:
            yield
        finally:
            self._busy.release()

    def _record(self, query: Query) -> CallRecord:
        check_query(self.capabilities, query)
        call = CallRecord(
            number=len(self.calls),
            segment=query.segment,
            rows=len(query.inputs),
            keys=None if query.keys is None else np.array(query.keys),
            taps=tuple(query.taps),
            repeats=query.repeats,
            inputs=query.inputs.copy() if self.keep_inputs else None,
        )
        self.calls.append(call)
        if call.number in self.script.fail:
            raise self.script.fail[call.number]
        return call

    def _call_seconds(self, number: int) -> float:
        return self.script.latency_s + self.script.delay.get(number, 0.0)

    def _spend(self, seconds: float) -> None:
        if self.capabilities.virtual_time:
            self.seconds += seconds
        elif seconds > 0:
            time.sleep(seconds)

    def _answer(self, query: Query, number: int) -> Reply:
        """What the script makes of this call: a reply, or an error."""
        script = self.script
        if number in script.reboot_at:
            self._reboot()
        lost = self._lost.intersection(range(query.segment.lo, query.segment.hi))
        if number in script.reboot_at or lost:
            raise DeviceRebooted(
                f"{self._name} rebooted and lost its parameters (call {number}): write every stage again,"
                f" whole, before the next query; still missing: {sorted(self._lost)}"
            )
        if number in script.lose or script.happens(script.lose_rate, number, kind=1):
            raise LinkLost(f"{self._name} did not answer call {number} (scripted loss)")
        return self._spoil(self._compute(query, number), number)

    def _reboot(self) -> None:
        self.boots += 1
        self._lost = {i for i, s in enumerate(self._stages) if s.spec.parameters}
        blank = [FakeStage(s.spec, s.function).power_on() for s in self._stages]
        self._parameters = [self._to_dtype(values) for values in blank]

    def _compute(self, query: Query, number: int) -> Reply:
        segment = query.segment
        keys = self._row_keys(query)
        gain = 1.0 + self.script.drift_per_call * number
        flow = self._converted(query.inputs, segment.lo)
        read: dict[int, Array] = {}
        for index in range(segment.lo, segment.hi):
            values = self._stages[index].function(flow.astype(np.float64), self._parameters[index])
            flow = np.ascontiguousarray(values, dtype=self.capabilities.dtype)
            if index + 1 == segment.hi or index + 1 in query.taps:
                read[index + 1] = self._read_out(flow, index + 1, gain, keys, query.repeats)
        return Reply(read.pop(segment.hi), taps=read)

    def _row_keys(self, query: Query) -> Array:
        """Without keys every row that was ever asked gets its own number."""
        rows = len(query.inputs)
        if query.keys is not None:
            return np.asarray(query.keys, dtype=np.uint64)
        self._rows_seen += rows
        return np.arange(self._rows_seen - rows, self._rows_seen, dtype=np.uint64)

    def _noise_seed(self, boundary: int, repeat: int) -> int:
        return int(np.random.SeedSequence((self.script.seed, boundary, repeat)).generate_state(1, np.uint64)[0])

    def _converted(self, inputs: Array, boundary: int) -> Array:
        spec = self.capabilities.boundaries[boundary]
        return on_grid(inputs, spec.in_step, spec.low)

    def _read_out(self, values: Array, boundary: int, gain: float, keys: Array, repeats: int) -> Array:
        out = values.astype(np.float64) * gain
        if self.script.noise > 0:
            shots = (keyed_normals(keys, self._noise_seed(boundary, r), out.shape[1]) for r in range(repeats))
            out += self.script.noise / repeats * sum(shots)
        spec = self.capabilities.boundaries[boundary]
        out = np.clip(on_grid(out, spec.out_step, spec.out_low), spec.out_low, spec.out_high)
        return np.ascontiguousarray(out, dtype=self.capabilities.dtype)

    def _spoil(self, reply: Reply, number: int) -> Reply:
        script = self.script
        if script.always_nan:
            reply.outputs[...] = script.bad_value
        elif number in script.nan or script.happens(script.nan_rate, number, kind=2):
            place = random.Random(script.seed + number).randrange(reply.outputs.size)
            reply.outputs.flat[place] = script.bad_value
        if number in script.wrong_shape_at:
            reply.outputs = reply.outputs[:, :-1].copy()
        if number in script.wrong_dtype_at:
            reply.outputs = reply.outputs.astype(np.float16)
        return reply

    def _to_dtype(self, values: Mapping[str, Array]) -> dict[str, Array]:
        return {name: value.astype(self.capabilities.dtype) for name, value in values.items()}

    def _written(self, stage: int, spec: ParameterSpec, value: Array, where: Mapping[str, Array] | None) -> Array:
        """The parameter after a write, before anything is changed."""
        old = self._parameters[stage][spec.name]
        new = np.array(value, dtype=old.dtype)
        if where is not None:
            changed = np.asarray(where.get(spec.name, ()), dtype=np.int64)
            new = old.copy()
            new.reshape(-1)[changed] = value.reshape(-1)[changed]
        if spec.levels is not None:
            new = nearest_levels(new, spec.levels)
        if stage not in self._lost:
            check_slew(self.capabilities, stage, spec, old, new)
        return new


def _kind(pipelined: bool) -> type[FakeDevice]:
    from hzo_hil.devices.fake_pipelined import PipelinedFakeDevice

    return PipelinedFakeDevice if pipelined else FakeDevice
