"""Stages, boundaries, and which device drives which stage: what can be asked, in activation units.

A logical stage is one step of the network; it names the physical stages it runs on. Knows codecs and capabilities,
never tensors, queries or time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hzo_hil import structure
from hzo_hil.codec import Codec
from hzo_hil.colouring import Colouring, colouring
from hzo_hil.devices.api import BoundarySpec, Device, ParameterSpec, Segment, StageSpec
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.health import watch_of
from hzo_hil.impulses import impulses
from hzo_hil.structure import Reach

__all__ = ["Codec", "Hop", "Network", "Part", "Stage", "Tiles", "stages_of"]


@dataclass(frozen=True)
class Tiles:
    """A logical stage of `in_width` x `out_width` made of blocks of a smaller core, whose answers the host adds up.

    The core must add: outputs of blocks in one row are summed after read-out. Edge blocks are padded with zeros.
    """

    in_width: int
    out_width: int

    def __post_init__(self) -> None:
        if self.in_width < 1 or self.out_width < 1:
            raise BadInput(f"tiles of {self.in_width} x {self.out_width}: widths must be at least 1")


@dataclass(frozen=True, eq=False)
class Stage:
    """One logical stage. `index` is a physical stage (from 0) or a `Segment` of several without a boundary between.

    `leaf` is the rule for its parameters (see `hzo_hil.updates`); `twin` an `nn.Module` called as
    `twin(inputs, **parameters)`; `initial` starting values by parameter name; `codec_in`/`codec_out` translate to
    device units. Give the same device and index to several stages to re-program one chip for every layer.
    """

    device: Device
    index: int | Segment = 0
    leaf: Any = "auto"
    twin: Any = None
    initial: dict[str, Any] = field(default_factory=dict)
    codec_in: Codec = field(default_factory=Codec)
    codec_out: Codec = field(default_factory=Codec)
    tiles: Tiles | None = None
    name: str = ""

    @cached_property
    def segment(self) -> Segment:
        if isinstance(self.index, Segment):
            return self.index
        return Segment(self.index, self.index + 1)

    @cached_property
    def specs(self) -> tuple[StageSpec, ...]:
        capabilities = self.device.capabilities
        if self.segment.hi > len(capabilities.stages):
            raise CapabilityError(
                f"device {capabilities.identity!r} has {len(capabilities.stages)} stages: there is no segment"
                f" ({self.segment.lo}, {self.segment.hi}]"
            )
        return capabilities.stages[self.segment.lo : self.segment.hi]

    @cached_property
    def drive(self) -> BoundarySpec:
        return self.device.capabilities.boundaries[self.segment.lo]

    @cached_property
    def read(self) -> BoundarySpec:
        return self.device.capabilities.boundaries[self.segment.hi]

    @cached_property
    def core(self) -> tuple[int, int]:
        """(out, in) widths of one pass through the physical stages, in activations."""
        widths = []
        for ports, codec, side in (
            (self.specs[-1].out_width, self.codec_out, "outputs"),
            (self.specs[0].in_width, self.codec_in, "inputs"),
        ):
            if ports % codec.ports:
                raise CapabilityError(f"stage {self.label}: {ports} {side} cannot be read as pairs of ports")
            widths.append(ports // codec.ports)
        return widths[0], widths[1]

    @cached_property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of blocks."""
        if self.tiles is None:
            return 1, 1
        return math.ceil(self.tiles.out_width / self.core[0]), math.ceil(self.tiles.in_width / self.core[1])

    @property
    def in_width(self) -> int:
        return self.tiles.in_width if self.tiles else self.core[1]

    @property
    def out_width(self) -> int:
        return self.tiles.out_width if self.tiles else self.core[0]

    @property
    def label(self) -> str:
        return repr(
            self.name or "+".join(s.name for s in self.device.capabilities.stages[self.segment.lo : self.segment.hi])
        )

    @property
    def structure(self) -> Reach:
        if self.tiles or self.codec_in.ports != self.codec_out.ports:
            # Read ports that are not paired as the driven ones are do not answer for one activation each.
            return "dense"
        found = structure.compose(s.structure for s in self.specs)
        return found if self.codec_in.ports == 1 or found == "diagonal" else "dense"

    @property
    def linear(self) -> bool:
        """Whether the Jacobian, in activations, is the same for every input that is not clipped on the way."""
        boundaries = self.device.capabilities.boundaries
        ends = [boundaries[k] for k in range(self.segment.lo + 1, self.segment.hi)]
        return (
            all(s.linear for s in self.specs)
            # Either port of a pair has a slope of its own.
            and self.codec_in.form != "pair"
            and not any(map(math.isfinite, (v for b in ends for v in (b.low, b.high, b.out_low, b.out_high))))
            # Chips of a kind have a Jacobian each.
            and not getattr(self.device, "by_sample", False)
        )

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ParameterSpec]]:
        """Master name -> (physical stage, spec). Tiled masters have two leading axes, (rows, columns)."""
        found: dict[str, tuple[int, ParameterSpec]] = {}
        for offset, spec in enumerate(self.specs):
            for parameter in spec.parameters:
                name = parameter.name if len(self.specs) == 1 else f"{spec.name}_{parameter.name}"
                if name in found:
                    name = f"{name}_{offset}"
                shape = (*self.grid, *parameter.shape) if self.tiles else parameter.shape
                # What follows within the stage bends a sinusoid, unless it is linear.
                kept = parameter.harmonics if all(s.linear for s in self.specs[offset + 1 :]) else 0
                found[name] = (self.segment.lo + offset, replace(parameter, shape=shape, harmonics=kept))
        return found

    @cached_property
    def block_specs(self) -> dict[str, ParameterSpec]:
        """Specs of one block by master name: without the leading axes of a tiled master."""
        drop = 2 if self.tiles else 0
        return {name: replace(spec, shape=spec.shape[drop:]) for name, (_, spec) in self.parameters.items()}

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        out, width = self.core
        rows, columns = self.grid
        return tuple(
            Part(
                slice(c * width, min((c + 1) * width, self.in_width)),
                slice(r * out, min((r + 1) * out, self.out_width)),
                sign,
                (r, c) if self.tiles else None,
            )
            for r in range(rows)
            for c in range(columns)
            for sign in self.codec_in.passes
        )


@dataclass(frozen=True)
class Part:
    """One device query's share of a hop: which activations go in, which outputs it adds to, with which sign.

    Segments of several stages are made of hops with one part each (`Network.reachable`).
    """

    inputs: slice
    outputs: slice
    sign: int
    tile: tuple[int, int] | None


@dataclass(frozen=True)
class Hop:
    """A stretch of a segment that one device runs in one go: logical stages lo+1..hi. Its answer is the sum of its
    parts.
    """

    lo: int
    hi: int
    device: Device
    segment: Segment
    codec_in: Codec
    codec_out: Codec
    parts: tuple[Part, ...]
    in_ports: int


def stages_of(device: Device) -> list[Stage]:
    """Every stage of a device; stages without an accessible boundary between them become one."""
    boundaries = device.capabilities.boundaries
    last = len(boundaries) - 1
    stops = [k for k, b in enumerate(boundaries) if k in (0, last) or (b.drive and b.read)]
    return [Stage(device, lo if hi == lo + 1 else Segment(lo, hi)) for lo, hi in zip(stops, stops[1:], strict=False)]


class Network:
    """One maximal run of opaque stages. Boundaries are numbered 0..depth, stages 1..depth."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise BadInput("a network needs at least one stage")
        self.stages = tuple(stages)
        self.depth = len(stages)
        for k, stage in enumerate(self.stages):
            self._check_access(k, stage)
            if k and self.stages[k - 1].out_width != stage.in_width:
                raise BadInput(
                    f"stage {k} ({self.stages[k - 1].label}) gives {self.stages[k - 1].out_width} activations, stage"
                    f" {k + 1} ({stage.label}) takes {stage.in_width}"
                )
        self._uses = Counter(p for s in self.stages for p in _physical(s))

    def _check_access(self, k: int, stage: Stage) -> None:
        identity = stage.device.capabilities.identity
        if stage.segment.hi > len(stage.device.capabilities.stages):
            _ = stage.specs
        for spec, verb, boundary in ((stage.drive, "drive", stage.segment.lo), (stage.read, "read", stage.segment.hi)):
            if not getattr(spec, verb):
                raise CapabilityError(
                    f"stage {k + 1} ({stage.label}) needs boundary {boundary} of device {identity!r}, which the device"
                    f" cannot {verb}. Make the stages on both sides one stage (index=Segment(lo, hi)) and probe its"
                    " parameters"
                )
        if stage.codec_in.form == "two_pass" and not (len(stage.specs) == 1 and stage.specs[0].linear):
            raise BadInput(
                f"stage {stage.label}: a two_pass codec subtracts answers, which is right for linear stages only"
            )
        if stage.tiles and any(p.tile != q.tile and _overlap(p, q) for p in stage.parts for q in stage.parts):
            linear = len(stage.specs) == 1 and stage.specs[0].linear
            if not linear:
                raise BadInput(
                    f"stage {stage.label}: blocks are added up after read-out, so a tiled stage must be linear"
                )

    def width(self, boundary: int) -> int:
        return self.stages[0].in_width if boundary == 0 else self.stages[boundary - 1].out_width

    def limits(self, boundary: int) -> tuple[float, float]:
        """Drivable range at a boundary (of the stage above it), in activation units."""
        stage = self.stages[boundary]
        return stage.codec_in.limits(stage.drive.low, stage.drive.high)

    def converter_step(self, boundary: int) -> float:
        stage = self.stages[boundary]
        return stage.drive.in_step / abs(stage.codec_in.gain)

    def read_noise(self, boundary: int) -> float | None:
        stage = self.stages[boundary - 1]
        noise = stage.device.capabilities.read_noise
        return None if noise is None else noise / abs(stage.codec_out.gain)

    def structure(self, lo: int, hi: int) -> Reach:
        return structure.compose(s.structure for s in self.stages[lo:hi])

    def colouring(self, lo: int, hi: int, shared: bool = False) -> Colouring:
        """The coordinate probes that segment (lo, hi] needs; `shared`: measured once for the batch."""
        reach = self.structure(lo, hi)
        if shared and not isinstance(reach, str) and reach.uniform:
            found = impulses(reach.parts[0])
            if found is not None:
                return found
        return colouring(reach, self.width(lo))

    def linear(self, lo: int, hi: int) -> bool:
        """Whether segment (lo, hi] has one Jacobian: linear stages, with no end to the range at boundaries inside."""
        inner = (
            v
            for k in range(lo + 1, hi)
            for v in (*self.limits(k), self.stages[k - 1].read.out_low, self.stages[k - 1].read.out_high)
        )
        return all(s.linear for s in self.stages[lo:hi]) and not any(map(math.isfinite, inner))

    def reachable(self, lo: int, hi: int) -> bool:
        """Whether stages lo+1..hi can be asked in sequence without re-programming a physical stage on the way."""
        inside = self.stages[lo:hi]
        if len(inside) == 1:
            return True
        uses = Counter(p for s in inside for p in _physical(s))
        return all(n == 1 for n in uses.values()) and all(len(s.parts) == 1 for s in inside)

    @property
    def shared(self) -> bool:
        """Whether some physical stage holds several logical ones in turn."""
        return any(n > 1 for n in self._uses.values()) or any(s.grid != (1, 1) for s in self.stages)

    def _joins(self, k: int) -> bool:
        """Whether stage k+1 can follow stage k inside one query of one device."""
        left, right = self.stages[k - 1], self.stages[k]
        watch = watch_of(left.device)
        if watch is not None and watch.reference is not None:
            return False  # a gain inside a segment cannot be corrected at its end
        return (
            left.device is right.device
            and left.segment.hi == right.segment.lo
            and left.codec_out == right.codec_in
            and left.codec_out.form == "plain"
            and left.codec_in.form != "two_pass"
            and not left.tiles
            and not right.tiles
        )

    def route(self, lo: int, hi: int, whole: bool = True) -> tuple[Hop, ...]:
        """The hops of segment (lo, hi]; `whole=False` stops at every boundary."""
        return tuple(self._hops(lo, hi, whole))

    def _hops(self, lo: int, hi: int, whole: bool) -> Iterator[Hop]:
        start = lo
        for k in range(lo + 1, hi + 1):
            if k < hi and whole and self._joins(k) and self.reachable(start, k + 1):
                continue
            first, last = self.stages[start], self.stages[k - 1]
            parts = first.parts
            if k - start > 1:
                parts = (Part(slice(0, first.in_width), slice(0, last.out_width), 1, None),)
            segment = Segment(first.segment.lo, last.segment.hi)
            ports = first.specs[0].in_width
            yield Hop(start, k, first.device, segment, first.codec_in, last.codec_out, parts, ports)
            start = k

    def forward_hops(self, inner: bool, lo: int = 0, hi: int | None = None) -> list[tuple[Hop, tuple[int, ...]]]:
        """The hops of a forward pass, or of stages lo+1..hi, and, for each, the device boundaries tapped on the way;
        `inner`: activations are wanted at every boundary.
        """
        hops: list[tuple[Hop, tuple[int, ...]]] = []
        for hop in self.route(lo, self.depth if hi is None else hi):
            inside = range(hop.lo + 1, hop.hi)
            if not inner or not inside:
                hops.append((hop, ()))
            elif hop.device.capabilities.taps:
                hops.append((hop, tuple(self.stages[k].segment.lo for k in inside)))
            else:
                hops += [(h, ()) for h in self.route(hop.lo, hop.hi, whole=False)]
        return hops

    def boundary_of(self, hop: Hop, physical: int) -> int:
        """The logical boundary inside a hop that a device's own boundary is."""
        return next(k for k in range(hop.lo + 1, hop.hi + 1) if self.stages[k - 1].segment.hi == physical)

    @property
    def devices(self) -> list[Device]:
        found: list[Device] = []
        for stage in self.stages:
            if not any(stage.device is d for d in found):
                found.append(stage.device)
        return found


def _physical(stage: Stage) -> list[tuple[int, int]]:
    return [(id(stage.device), p) for p in range(stage.segment.lo, stage.segment.hi)]


def _overlap(p: Part, q: Part) -> bool:
    return p.outputs.start < q.outputs.stop and q.outputs.start < p.outputs.stop
