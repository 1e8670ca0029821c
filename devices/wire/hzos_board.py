"""A driver seen as a board: memory that a host writes, rows it runs, telemetry it reads.

Between the byte protocol (`hzos_served`) and any Device. What a host writes is kept as bytes and handed to the driver,
stage by stage, when the host says so or before the next query. Knows no frames and no time: settling is waited for by
`sleep`, passed in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, BoundarySpec, Capabilities, Device, ParameterSpec, Segment
from hzo_hil.devices.errors import BadReply, CapabilityError
from hzo_hil.devices.manifest import to_json
from hzo_hil.devices.wire.hzos_layout import Encoding, Layout, Place, layout_for


class Board:
    """`encoding`: f4, i2 or i1 for all numbers on the line. Averages repeats where the driver cannot."""

    def __init__(self, device: Device, mtu: int, encoding: str, sleep: Callable[[float], None]) -> None:
        self.device = device
        self._own = device.capabilities
        features = ["park", "apply"] + ["maintain"] * hasattr(device, "maintain")
        self.layout: Layout = layout_for(self._own, mtu, encoding, features)
        boundaries = tuple(map(_on_line, self._own.boundaries, self.layout.boundaries))
        self.capabilities: Capabilities = dataclasses.replace(
            self._own, boundaries=boundaries, taps=False, keyed=False, repeats=True
        )
        self.manifest = _manifest(self.capabilities, self.layout)
        self.inputs = self.outputs = b""
        self._sleep = sleep
        self._room = mtu - 12
        self._monitors: Mapping[str, float] = {}
        self._spans = [_span(self.layout, stage, self._own) for stage in range(len(self._own.stages))]
        self._image = bytearray(max((end for _, end in self._spans), default=0))
        self._read_back = bytes(self._image)
        self._applied = bytes(self._image)
        self._written: set[int] = set()
        self._asked: set[int] = set()  # stages whose bytes in `_read_back` are the driver's
        self._dirty: dict[int, list[tuple[int, int]]] = {}

    # --- parameters --------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of the parameters."""
        return len(self._image)

    def store(self, offset: int, data: bytes, again: bool = False) -> None:
        """Keep bytes of parameters, offset + len(data) <= size; the driver sees them at the next `apply`.

        `again`: it may be a frame sent twice; the driver need not hear of bytes that it has.
        """
        end = offset + len(data)
        if again and self._image[offset:end] == data:
            return
        self._image[offset:end] = data
        for stage, (low, high) in enumerate(self._spans):
            if offset < high and low < end:
                self._dirty.setdefault(stage, []).append((max(offset, low), min(end, high)))

    def image(self, offset: int, count: int) -> bytes:
        return bytes(self._image[offset : offset + count])

    def apply(self) -> None:
        """Write what was stored to the driver. Its errors pass through; then `revert`, or it is offered again."""
        changed = bool(self._dirty)
        self._asked.difference_update(self._dirty)
        for stage, ranges in sorted(self._dirty.items()):
            values, where = self._values(stage, ranges)
            specs = self._own.stages[stage].parameters
            whole = stage not in self._written or all(len(where[s.name]) == s.size for s in specs)
            self._written.discard(stage)
            self.device.write(stage, values, where=None if whole else where)
            self._written.add(stage)
            del self._dirty[stage]
            low, high = self._spans[stage]
            self._applied = self._applied[:low] + bytes(self._image[low:high]) + self._applied[high:]
        if changed and self._own.settling_s and not self._own.virtual_time:
            self._sleep(self._own.settling_s)

    def revert(self) -> None:
        """Forget what the driver did not take."""
        self._image[:] = self._applied
        self._dirty.clear()

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of what the driver says it holds; asked of it once for a reading of a stage from its first byte on."""
        for stage, (low, high) in enumerate(self._spans):
            touched = offset < high and low < offset + count
            if touched and (offset <= low or stage not in self._asked):
                self._refresh(stage)
                self._asked.add(stage)
        return self._read_back[offset : offset + count]

    def forget(self) -> None:
        """The driver lost its parameters, or was parked."""
        self._written.clear()
        self._asked.clear()
        self._dirty.clear()

    def _refresh(self, stage: int) -> None:
        held, image = self.device.read(stage), bytearray(self._read_back)
        for spec, place in self._places(stage):
            data, _ = place.encoding.encode(np.asarray(held[spec.name]).reshape(-1))
            image[place.address : place.address + len(data)] = data
        self._read_back = bytes(image)

    def _values(self, stage: int, ranges: list[tuple[int, int]]) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        values, where = {}, {}
        for spec, place in self._places(stage):
            size, start = place.encoding.size, place.address
            end = start + spec.size * size
            flat = place.encoding.decode(bytes(self._image[start:end]), self._own.dtype)
            values[spec.name] = np.clip(flat, spec.low, spec.high).reshape(spec.shape)
            touched = np.zeros(spec.size, bool)
            for low, high in ranges:
                if low < end and start < high:
                    touched[max(0, low - start) // size : -(-(high - start) // size)] = True
            where[spec.name] = np.flatnonzero(touched)
            self._check(spec, flat, place)
        return values, where

    def _check(self, spec: ParameterSpec, flat: Array, place: Place) -> None:
        """What is out of range by more than the line's rounding is the host's mistake."""
        least, most = float(flat.min(initial=np.inf)), float(flat.max(initial=-np.inf))
        slack = place.encoding.scale if place.encoding.dtype != "f4" else 1e-6 * max(abs(least), abs(most))
        if not (np.isfinite(flat).all() and least >= spec.low - slack and most <= spec.high + slack):
            raise CapabilityError(f"parameter {spec.name!r}: {least:g}..{most:g} leaves {spec.low:g}..{spec.high:g}")

    def _places(self, stage: int) -> list[tuple[ParameterSpec, Place]]:
        return list(zip(self._own.stages[stage].parameters, self.layout.parameters[stage], strict=True))

    # --- queries -----------------------------------------------------------------------------------------------

    def row_bytes(self, segment: Segment) -> tuple[int, int]:
        """Bytes of a row driven into a segment, and of its answer."""
        ends = ((b, self.layout.boundaries[b].size * self._own.width(b)) for b in (segment.lo, segment.hi))
        (_, driven), (_, answered) = ends
        return driven, answered

    def run(self, segment: Segment, data: bytes, repeats: int) -> tuple[bytes, bool]:
        """Rows in the input's encoding to rows in the output's; whether an answer was cut at the encoding's end."""
        self.inputs = data
        dtype, encoding = self._own.dtype, self.layout.boundaries[segment.lo]
        rows = encoding.decode(data, dtype).reshape(-1, self._own.width(segment.lo))
        if encoding.dtype != "f4":
            rows = _unrounded(rows, self._own.boundaries[segment.lo], encoding.scale)
        elif not np.isfinite(rows).all():
            raise CapabilityError("an input is not a number")
        outputs = self._average(segment, rows, repeats)
        self.outputs, cut = self.layout.boundaries[segment.hi].encode(outputs)
        return self.outputs, cut

    def _average(self, segment: Segment, rows: Array, repeats: int) -> Array:
        if repeats == 1:
            return self._ask(segment, rows)
        if self._own.repeats:
            return self._ask(segment, rows, repeats=repeats)
        most = max(1, self._own.max_batch or 4096)
        copies = np.repeat(rows, repeats, axis=0)
        parts = [self._ask(segment, copies[i : i + most]) for i in range(0, len(copies), most)]
        return np.concatenate(parts).reshape(len(rows), repeats, -1).mean(axis=1, dtype=np.float64)

    def _ask(self, segment: Segment, rows: Array, **options: Any) -> Array:
        reply = self.device.run(segment, rows, **options)
        outputs = np.asarray(getattr(reply, "outputs", reply))
        expected = (len(rows), self._own.width(segment.hi))
        if outputs.shape != expected or outputs.dtype.kind not in "fiu":
            raise BadReply(f"the driver answered {outputs.dtype} {list(outputs.shape)}, expected {list(expected)}")
        if self.layout.boundaries[segment.hi].dtype != "f4" and not np.isfinite(outputs).all():
            raise BadReply("the driver answered NaN or infinity, which integers on the line cannot say")
        self._monitors = dict(getattr(reply, "monitors", {}) or {})
        return outputs

    # --- everything else ---------------------------------------------------------------------------------------

    def park(self) -> None:
        self.forget()
        park = getattr(self.device, "park", None)
        if park is not None:
            park()

    def maintain(self) -> None:
        maintain = getattr(self.device, "maintain", None)
        if maintain is None:
            raise CapabilityError("the driver has no maintain()")
        maintain()

    def telemetry(self) -> bytes:
        """A JSON object of named numbers (and a few words) that fits one frame; what does not fit is left out."""
        health = self.device.health()
        found: dict[str, Any] = {"ok": int(health.ok), **self._monitors}
        if health.detail:
            found["detail"] = health.detail[: self._room // 2]
        for name, value in self.device.snapshot().items():
            if isinstance(value, (bool, int, float, str, np.integer, np.floating)):
                found.setdefault(str(name), value if isinstance(value, (bool, int, str)) else float(value))
        text = b"{}"
        kept: dict[str, Any] = {}
        for name, value in found.items():
            longer = _json(kept | {name: value})
            if len(longer) <= self._room:
                kept[name], text = value, longer
        return text


def _on_line(spec: BoundarySpec, encoding: Encoding) -> BoundarySpec:
    """A boundary as seen through the line: integers on it are a converter of their own."""
    if encoding.dtype == "f4":
        return spec
    low, high = encoding.ends
    return dataclasses.replace(
        spec,
        in_step=max(spec.in_step, encoding.scale),
        out_step=max(spec.out_step, encoding.scale),
        out_low=max(spec.out_low, low),
        out_high=min(spec.out_high, high),
    )


def _unrounded(rows: Array, spec: BoundarySpec, step: float) -> Array:
    """Rounding to the line's grid may have crossed an end of the range: that is no fault of the host's."""
    if rows.min() >= spec.low and rows.max() <= spec.high:
        return rows
    inside = np.clip(rows, spec.low, spec.high)
    return np.where(np.abs(inside - rows) <= step, inside, rows)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=float).encode("utf-8")


def _manifest(capabilities: Capabilities, layout: Layout) -> bytes:
    return _json(to_json(capabilities) | {"wire": layout.to_json()})


def _span(layout: Layout, stage: int, capabilities: Capabilities) -> tuple[int, int]:
    """First byte of a stage's parameters, and the one after its last."""
    places = layout.parameters[stage]
    if not places:
        return 0, 0
    specs = capabilities.stages[stage].parameters
    ends = [p.address + s.size * p.encoding.size for p, s in zip(places, specs, strict=True)]
    return min(p.address for p in places), max(ends)
