"""A lab's device as a server's jobs need it: arrays checked on the way in and on the way out.

It adds what a driver need not know: repeats averaged here, writes of single values merged here, answers that stay as
they were given. Knows no sessions and no sockets; needs no torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from sys import getrefcount
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import BoundarySpec, Capabilities, Device, Reply, Segment, StageSpec
from hzo_hil.devices.errors import BadInput, BadReply
from hzo_hil.devices.wire import messages as m
from hzo_hil.devices.wire.hzo1_served import Job

Array = NDArray[Any]
COPIED_BYTES = 1 << 14
"""Shorter answers are copied: that is cheaper than to find out whether they must be."""
LOOKED_AT_BYTES = 1 << 18
"""Longer answers are not searched for NaN here: their host does so, and reading them twice takes as long as a frame."""
MOST_REPEATS = 1 << 20
"""More is a mistake."""


class Stale(Exception):
    """A change of values that are not known any more."""


class Driver:
    """The device, checked. `forget` is called when it has lost what was written."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.capabilities = device.capabilities
        self._dtype = np.dtype(self.capabilities.dtype)
        self._widths = [self.capabilities.width(b) for b in range(len(self.capabilities.boundaries))]
        self._last: dict[int, dict[str, Array]] = {}
        self._asked_before: dict[bytes, tuple[Segment, tuple[int, ...], int]] = {}

    def forget(self) -> None:
        self._last.clear()

    # --- run ---------------------------------------------------------------------------------------------------

    def run(self, job: Job) -> tuple[list[Array], list[int], bytes, int]:
        """(arrays, roles, META, flags) of the answer."""
        message = job.message
        segment, taps, repeats = self._asked_before.get(message.meta) or self._read_meta(job)
        inputs = self._inputs(message.arrays, segment.lo)
        if not taps and repeats == 1 and len(message.arrays) == 1:  # by far the commonest, and nothing to add to it
            start = time.perf_counter()
            reply = self.device.run(segment, inputs)
            spent = time.perf_counter() - start
            if type(reply) is Reply:
                outputs = reply.outputs
                if (
                    type(outputs) is not np.ndarray
                    or outputs.shape != (len(inputs), self._widths[segment.hi])
                    or outputs.dtype != self._dtype
                    or not self._only_ours(outputs, getrefcount(outputs), getrefcount(reply), inputs)
                ):
                    outputs = self._checked(outputs, len(inputs), segment.hi)
                return [outputs], [segment.hi], _result_meta(reply.seconds or spent, reply.monitors), _flags(outputs)
            outputs = self._checked(getattr(reply, "outputs", reply), len(inputs), segment.hi)
            return [outputs], [segment.hi], _result_meta(spent, {}), _flags(outputs)
        return self._run_more(message.arrays, segment, inputs, taps, repeats)

    def _run_more(
        self, arrays: list[Array], segment: Segment, inputs: Array, taps: tuple[int, ...], repeats: int
    ) -> tuple[list[Array], list[int], bytes, int]:
        keys = self._keys(arrays, len(inputs)) if len(arrays) > 1 else None
        start = time.perf_counter()
        if repeats == 1 or self.capabilities.repeats:
            reply = self._once(segment, inputs, taps, repeats, keys)
        else:
            reply = self._averaged(segment, inputs, taps, repeats, keys)
        found, roles = [reply.outputs, *(reply.taps[t] for t in taps)], [segment.hi, *taps]
        meta = _result_meta(reply.seconds or time.perf_counter() - start, reply.monitors)
        return found, roles, meta, max(map(_flags, found))

    def _only_ours(self, values: Array, references: int, reply_references: int, inputs: Array) -> bool:
        """Whether a driver kept no way to this memory, so that a large answer need not be copied to be kept."""
        flags = values.flags
        if values.nbytes < COPIED_BYTES or reply_references > _EXPECTED[0] or not flags.c_contiguous:
            return False
        return references <= _EXPECTED[2] if values is inputs else references <= _EXPECTED[1] and flags.owndata

    def _read_meta(self, job: Job) -> tuple[Segment, tuple[int, ...], int]:
        if len(self._asked_before) > 1024:
            self._asked_before.clear()
        asked = self._asked_before[bytes(job.message.meta)] = self._asked(job.options)
        return asked

    def _inputs(self, arrays: list[Array], boundary: int) -> Array:
        """C-contiguous, aligned, writable, of the declared dtype: what a driver may do anything with."""
        width = self._widths[boundary]
        if not arrays or arrays[0].ndim != 2 or arrays[0].shape[1] != width or not len(arrays[0]):
            got = list(arrays[0].shape) if arrays else "nothing"
            raise BadInput(f"inputs at boundary {boundary} are [batch, {width}], {got} came")
        array = arrays[0]
        if array.dtype != self._dtype:
            return np.ascontiguousarray(array, self._dtype)
        flags = array.flags
        return array if flags.aligned and flags.writeable else array.copy()

    def _keys(self, arrays: list[Array], rows: int) -> Array | None:
        keys = arrays[1]
        if keys.shape != (rows,) or keys.dtype != np.uint64:
            raise BadInput(f"noise keys are {rows} uint64, one an input; {keys.dtype} {list(keys.shape)} came")
        return keys.copy() if self.capabilities.keyed else None

    def _asked(self, options: Mapping[str, Any]) -> tuple[Segment, tuple[int, ...], int]:
        c, stages = self.capabilities, len(self.capabilities.stages)
        lo, hi = m.whole(options, "lo", most=stages), m.whole(options, "hi", most=stages)
        repeats = m.whole(options, "repeats", 1, MOST_REPEATS) or 1
        taps = options.get("taps", ())
        if taps and not c.taps:
            raise BadInput("this device reads no inner boundaries within a query (taps)")
        if not isinstance(taps, (list, tuple)) or not all(type(t) is int and lo < t <= hi for t in taps):
            raise BadInput(f"taps are boundaries from {lo + 1} to {hi}, not {taps!r}")
        segment = Segment(lo, hi)
        if not c.boundaries[lo].drive or not c.boundaries[hi].read:
            raise BadInput(f"this device cannot be driven at boundary {lo} and read at boundary {hi}")
        return segment, tuple(taps), repeats

    def _averaged(
        self, segment: Segment, inputs: Array, taps: tuple[int, ...], repeats: int, keys: Array | None
    ) -> Reply:
        rows = np.repeat(inputs, repeats, axis=0)
        if keys is not None:
            keys = np.repeat(keys, repeats) + np.tile(np.arange(repeats, dtype=np.uint64), len(inputs))
        size = self._most_rows(inputs)
        parts = [
            self._once(segment, rows[i : i + size], taps, 1, None if keys is None else keys[i : i + size])
            for i in range(0, len(rows), size)
        ]
        outputs = _mean([p.outputs for p in parts], repeats)
        tapped = {t: _mean([p.taps[t] for p in parts], repeats) for t in taps}
        monitors = {k: v for p in parts for k, v in p.monitors.items()}
        return Reply(outputs, tapped, monitors, sum(p.seconds for p in parts))

    def _most_rows(self, inputs: Array) -> int:
        c = self.capabilities
        most = c.max_batch or 1 << 30
        if c.max_bytes:
            most = min(most, c.max_bytes // max(1, inputs[0].nbytes))
        return max(1, most)

    def _once(self, segment: Segment, inputs: Array, taps: tuple[int, ...], repeats: int, keys: Array | None) -> Reply:
        options: dict[str, Any] = {}
        if taps:
            options["taps"] = taps
        if repeats != 1:
            options["repeats"] = repeats
        if keys is not None:
            options["keys"] = keys
        reply = self.device.run(segment, inputs, **options)
        rows = len(inputs)
        outputs = self._checked(getattr(reply, "outputs", reply), rows, segment.hi)
        found: Any = getattr(reply, "taps", {})
        tapped = {t: self._checked(found.get(t), rows, t) for t in taps}
        return Reply(outputs, tapped, getattr(reply, "monitors", {}), float(getattr(reply, "seconds", 0.0)))

    def _checked(self, values: Any, rows: int, boundary: int) -> Array:
        expected = (rows, self._widths[boundary])
        if type(values) is np.ndarray and values.shape == expected and values.dtype == self._dtype:
            # An answer is kept for repeats: a driver that fills the same buffer again must not change it.
            return values.copy()
        ok = isinstance(values, np.ndarray) and values.shape == expected and values.dtype.kind in "fiu"
        if not ok or (values.dtype.kind == "f" and values.dtype.itemsize < self._dtype.itemsize):
            got = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
            raise BadReply(
                f"its driver answered {got} to {rows} inputs, read at boundary {boundary}; expected {self._dtype}"
                f" {list(expected)}. Its capabilities and its run() disagree"
            )
        return m.sendable(values, "outputs").copy()

    # --- write, read -------------------------------------------------------------------------------------------

    def write(self, job: Job) -> None:
        stages, arrays, roles = self.capabilities.stages, job.message.arrays, job.message.roles
        names, single = job.options.get("names", []), job.options.get("where") is True
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise BadInput(f"names are a list of parameter names, not {names!r}")
        if len(arrays) != len(names) * (1 + single) or any(r >= len(stages) for r in roles):
            raise BadInput(f"{len(arrays)} arrays for the parameters {names} of stages {sorted(set(roles))}")
        options: dict[str, Any] = {}
        if self.capabilities.keyed:
            options["key"] = m.whole(job.options, "key", 0, (1 << 64) - 1)
        for stage in dict.fromkeys(roles):
            mine = [i for i, r in enumerate(roles[:: 1 + single]) if r == stage]
            values, where = self._merged(
                stage, {names[i]: arrays[i * (1 + single) : (i + 1) * (1 + single)] for i in mine}
            )
            self._last.pop(stage, None)
            self.device.write(
                stage, {n: v.copy() for n, v in values.items()}, where=where if single else None, **options
            )
            self._last[stage] = values

    def _merged(self, stage: int, sent: dict[str, list[Array]]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Every value of the stage, and where those are that came."""
        spec = self.capabilities.stages[stage]
        known = {p.name: p for p in spec.parameters}
        if sorted(sent) != sorted(known):
            raise BadInput(f"stage {stage} has the parameters {sorted(known)}, {sorted(sent)} came")
        values, where = {}, {}
        for name, arrays in sent.items():
            if len(arrays) == 1:
                values[name], where[name] = arrays[0].copy(), np.arange(arrays[0].size)
            else:
                values[name], where[name] = self._changed(stage, name, *arrays), arrays[1].astype(np.intp)
            if values[name].shape != known[name].shape:
                raise BadInput(f"parameter {name!r} is {list(known[name].shape)}, {list(values[name].shape)} came")
        return values, where

    def _changed(self, stage: int, name: str, changed: Array, indices: Array) -> Array:
        last = self._last.get(stage, {}).get(name)
        if last is None:
            raise Stale(f"single values of parameter {name!r}, but the others are not known")
        if indices.shape != changed.shape or indices.dtype.kind not in "iu" or indices.ndim != 1:
            raise BadInput(
                f"parameter {name!r}: {changed.size} values at {indices.dtype} {list(indices.shape)} indices"
            )
        if len(indices) and (indices.min() < 0 or indices.max() >= last.size):
            raise BadInput(f"parameter {name!r}: an index outside its {last.size} values")
        merged = last.astype(changed.dtype, copy=True).reshape(-1)
        merged[indices] = changed
        return merged.reshape(last.shape)

    def read(self, job: Job) -> tuple[list[Array], list[int], bytes]:
        """(arrays, roles, META) of the answer."""
        what = job.options.get("what", "parameters")
        if what == "snapshot":
            return [], [], m.pack_json({str(k): _plain(v) for k, v in self.device.snapshot().items()})
        if what == "health":
            health = self.device.health()
            return [], [], m.pack_json({"ok": bool(health.ok), "detail": str(health.detail)})
        stage = m.whole(job.options, "stage", 0)
        if what != "parameters" or stage >= len(self.capabilities.stages):
            raise BadInput(f"nothing to read: {what!r} of stage {stage}")
        found = self.device.read(stage)
        arrays = [m.sendable(np.array(v), f"parameter {n!r}") for n, v in found.items()]
        return arrays, list(range(len(arrays))), m.pack_json({"names": list(found)})


def _result_meta(seconds: float, monitors: Mapping[str, float]) -> bytes:
    if not monitors:
        return b'{"seconds":%.7f}' % seconds
    named = {str(k): float(v) for k, v in monitors.items() if np.isfinite(v)}
    return m.pack_json({"seconds": seconds, "monitors": named})


def _mean(parts: list[Array], repeats: int) -> Array:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    mean: Array = whole.reshape(-1, repeats, whole.shape[-1]).mean(axis=1)
    return mean


def _flags(values: Array) -> int:
    if values.dtype.kind != "f" or values.nbytes > LOOKED_AT_BYTES:
        return 0
    # A sum of squares is much cheaper than a mask; it may also overflow.
    finite = math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())
    return 0 if finite else m.NON_FINITE


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class _Probe(Driver):
    """Notes the references that `run` sees when a driver keeps none: how many depends on the Python."""

    seen: tuple[int, int] = (0, 0)

    def _only_ours(self, values: Array, references: int, reply_references: int, inputs: Array) -> bool:
        self.seen = (reply_references, references)
        return True


class _Forgetful:
    """A driver that keeps no reference to what it answers: a new array, or its inputs handed back."""

    capabilities = Capabilities("probe", (StageSpec("probe", 1, 1),), (BoundarySpec(), BoundarySpec()))

    def __init__(self, back: bool) -> None:
        self.back = back

    def run(self, segment: Segment, inputs: Array) -> Reply:
        return Reply(inputs if self.back else np.zeros((1, 1), np.float32))


def _expected() -> tuple[int, int, int]:
    """References to a reply, to a new array in it and to inputs in it, if the driver keeps none."""
    found = []
    for back in (False, True):
        probe = _Probe(_Forgetful(back))  # type: ignore[arg-type]
        x = np.zeros((1, 1), np.float32)
        frames = m.encode(m.RUN, 1, 1, meta=b'{"lo":0,"hi":1}', arrays=[x], roles=[0])
        frames[3] = bytearray(x)
        message = m.decode(frames)
        probe.run(Job("run", b"", message, message.options()))
        found.append(probe.seen)
    return found[0][0], found[0][1], found[1][1]


_EXPECTED = _expected()
