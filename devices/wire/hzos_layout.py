"""How numbers lie in HZO-S/1's frames: the part "wire" of a device's manifest, read, checked and made.

Both ends share it, so that neither guesses. A number on the line is an integer times a scale, or a float; rows lie one
after the other, parameters at their addresses. Knows no frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, Segment
from hzo_hil.devices.errors import CapabilityError

SIZES = {"i1": 1, "i2": 2, "f4": 4}
MOST_SEGMENTS = 16
MOST_ADDRESS = 1 << 32
FEATURES = ("park", "maintain", "apply")


@dataclass(frozen=True)
class Encoding:
    """A number q on the line means q * scale; `dtype` is i1, i2 or f4, little endian."""

    dtype: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.dtype not in SIZES:
            raise CapabilityError(f"numbers on the line are {', '.join(SIZES)}, not {self.dtype!r}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise CapabilityError(f"the scale of a number on the line is above 0, not {self.scale!r}")

    @property
    def size(self) -> int:
        return SIZES[self.dtype]

    @property
    def ends(self) -> tuple[float, float]:
        """Least and greatest value that can be said."""
        if self.dtype == "f4":
            most = float(np.finfo(np.float32).max) * self.scale
            return -most, most
        bits = 8 * self.size - 1
        return -(2**bits) * self.scale, (2**bits - 1) * self.scale

    def encode(self, values: Array) -> tuple[bytes, bool]:
        """The bytes of `values`, and whether one of them was cut at an end of an integer's range."""
        scaled = values if self.scale == 1.0 else np.asarray(values, np.float64) / self.scale
        if self.dtype == "f4":
            return np.ascontiguousarray(scaled, "<f4").tobytes(), False
        whole = np.rint(scaled)
        bits = 8 * self.size - 1
        low, high = -(2**bits), 2**bits - 1
        cut = bool(whole.size and (whole.min() < low or whole.max() > high))
        if cut:
            whole = np.clip(whole, low, high)
        return whole.astype("<" + self.dtype).tobytes(), cut

    def decode(self, data: bytes, dtype: str) -> Array:
        """A flat array of the numbers in `data`, as float32 or float64."""
        found = np.frombuffer(data, "<" + self.dtype)
        return found.astype(dtype) if self.scale == 1.0 else (found * np.float64(self.scale)).astype(dtype)


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in region 2, and how."""

    address: int
    encoding: Encoding


@dataclass(frozen=True)
class Layout:
    """The manifest's "wire". `rows`: most a RUN; `segments` are numbered by their order; `repeats`: averaged there."""

    segments: tuple[Segment, ...]
    rows: int
    boundaries: tuple[Encoding, ...]
    parameters: tuple[tuple[Place, ...], ...]
    repeats: bool = False
    features: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "segments": [[s.lo, s.hi] for s in self.segments],
            "rows": self.rows,
            "boundaries": [{"dtype": e.dtype, "scale": e.scale} for e in self.boundaries],
            "parameters": [
                [{"address": p.address, "dtype": p.encoding.dtype, "scale": p.encoding.scale} for p in stage]
                for stage in self.parameters
            ],
            "repeats": self.repeats,
            "features": list(self.features),
        }

    def index(self, segment: Segment) -> int:
        if segment in self.segments:
            return self.segments.index(segment)
        offered = ", ".join(f"{s.lo}..{s.hi}" for s in self.segments)
        raise CapabilityError(
            f"the device offers no segment from boundary {segment.lo} to {segment.hi} over its serial line, which has"
            f" room for {MOST_SEGMENTS}; it offers {offered}. Ask for one of these, or serve it over zmq+tcp"
        )

    @property
    def size(self) -> int:
        """Bytes of region 2 as far as the last parameter's address."""
        return max((p.address for stage in self.parameters for p in stage), default=0)


def layout_from(wire: Any, capabilities: Capabilities) -> Layout:
    """Raises CapabilityError, naming the field, for a description that is incomplete or contradicts the device's."""
    if not isinstance(wire, Mapping):
        raise CapabilityError('the manifest lacks the object "wire": how its numbers lie in serial frames')
    stages, ends = capabilities.stages, len(capabilities.boundaries)
    try:
        segments = tuple(Segment(int(lo), int(hi)) for lo, hi in wire["segments"])
        boundaries = tuple(_encoding(b) for b in wire["boundaries"])
        parameters = tuple(tuple(Place(int(p["address"]), _encoding(p)) for p in stage) for stage in wire["parameters"])
        rows = int(wire["rows"])
    except CapabilityError as error:
        raise CapabilityError(f"wire: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CapabilityError(f"wire: lacks or garbles {error}") from error
    if not 1 <= len(segments) <= MOST_SEGMENTS or any(s.hi >= ends for s in segments):
        raise CapabilityError(f"wire, segments: 1 to {MOST_SEGMENTS} of {len(stages)} stages, not {segments}")
    if len(boundaries) != ends:
        raise CapabilityError(f"wire, boundaries: {len(boundaries)} encodings for {ends} boundaries")
    if [len(p) for p in parameters] != [len(s.parameters) for s in stages]:
        raise CapabilityError("wire, parameters: one list a stage, with one place for each of its parameters")
    if rows < 1:
        raise CapabilityError(f"wire, rows: a RUN carries at least one row, not {rows}")
    _check_places(parameters, capabilities)
    features = tuple(f for f in wire.get("features", ()) if f in FEATURES)
    return Layout(segments, rows, boundaries, parameters, wire.get("repeats") is True, features)


def _encoding(raw: Any) -> Encoding:
    return Encoding(str(raw["dtype"]), float(raw.get("scale", 1.0)))


def _check_places(parameters: Sequence[Sequence[Place]], capabilities: Capabilities) -> None:
    """No two parameters share a byte."""
    used: list[tuple[int, int, str]] = []
    for stage, places in zip(capabilities.stages, parameters, strict=True):
        for spec, place in zip(stage.parameters, places, strict=True):
            end = place.address + spec.size * place.encoding.size
            used.append((place.address, end, f"{stage.name}.{spec.name}"))
    used.sort()
    if used and (used[0][0] < 0 or used[-1][1] > MOST_ADDRESS):
        raise CapabilityError(f"wire, parameters: {used[-1][2]} does not lie within 32 bits of address")
    for (_, end, left), (start, _, right) in zip(used, used[1:], strict=False):
        if start < end:
            raise CapabilityError(f"wire, parameters: {left} and {right} overlap at address {start}")


def layout_for(capabilities: Capabilities, mtu: int, encoding: str, features: Sequence[str]) -> Layout:
    """A layout for a device served from Python: `encoding` i1, i2 or f4 for everything that crosses the line.

    Integers take their scale from the declared ranges, so a range that is not finite is a CapabilityError.
    """
    boundaries = tuple(
        _scaled(encoding, (b.low, b.high, b.out_low, b.out_high), f"boundary {i}")
        for i, b in enumerate(capabilities.boundaries)
    )
    room = mtu - 12
    widest = max(capabilities.width(i) * e.size for i, e in enumerate(boundaries))
    if widest > room:
        raise CapabilityError(
            f"device {capabilities.identity!r}: one row takes {widest} bytes as {encoding}, a frame of {mtu} carries"
            f" {room}. Serve it with a smaller encoding (i2, i1) or a larger mtu (at most 512), or over zmq+tcp"
        )
    address, stages = 0, []
    for stage in capabilities.stages:
        places = []
        for spec in stage.parameters:
            code = _scaled(encoding, (spec.low, spec.high), f"parameter {stage.name}.{spec.name}")
            places.append(Place(address, code))
            address += -(-spec.size * code.size // 4) * 4
        stages.append(tuple(places))
    rows = min(room // widest, capabilities.max_batch or room)
    return Layout(_segments(capabilities), rows, boundaries, tuple(stages), True, tuple(features))


def _scaled(dtype: str, limits: Sequence[float], what: str) -> Encoding:
    if dtype == "f4":
        return Encoding(dtype)
    finite = [abs(v) for v in limits if math.isfinite(v)]
    if len(finite) < 2 or not max(finite) > 0:
        raise CapabilityError(
            f"{what} declares no finite range, so integers on the line have no scale. Declare low and high (out_low and"
            " out_high for what is read), or serve it as f4"
        )
    return Encoding(dtype, max(finite) / (2 ** (8 * SIZES[dtype] - 1) - 1))


def _segments(capabilities: Capabilities) -> tuple[Segment, ...]:
    """All that can be driven and read; where there are too many, single stages and the longest come first."""
    count = len(capabilities.stages)
    able = [
        Segment(lo, hi)
        for lo in range(count)
        for hi in range(lo + 1, count + 1)
        if capabilities.boundaries[lo].drive and capabilities.boundaries[hi].read
    ]
    wanted = sorted(able, key=lambda s: (len(s) not in (1, count), -len(s), s))
    return tuple(sorted(wanted[:MOST_SEGMENTS]))
