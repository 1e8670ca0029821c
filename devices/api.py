"""The device contract: what a driver declares and the few calls it answers.

A driver sees device units only (volts, phases, amperes or plain numbers), NumPy arrays only, and is
called from one thread, in order. It knows nothing of losses, targets or probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import CapabilityError

Array = NDArray[Any]
Range = tuple[float, float]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter array of a stage, in device units (phases in rad, weights as numbers).

    `low`/`high` bound each value; `period` (same unit) marks a value that wraps instead; `edge` says
    what brings a trained value back into the range. `levels` lists every value the converter can
    produce, ascending (None: no converter). `slew` is the largest change of a value in one
    write; 0 means no limit. `harmonics` h above 0 promises that with all else held every output is a trigonometric
    polynomial of degree h at most in one value of `period` (a phase that the detected field is linear in: 1); 0:
    nothing is promised.
    """

    name: str
    shape: tuple[int, ...]
    low: float = -np.inf
    high: float = np.inf
    period: float = 0.0
    edge: Literal["clip", "wrap", "reflect"] = "clip"
    levels: tuple[float, ...] | None = None
    slew: float = 0.0
    harmonics: int = 0

    def __post_init__(self) -> None:
        if self.harmonics < 0 or (self.harmonics and not self.period > 0):
            raise CapabilityError(
                f"parameter {self.name!r}: harmonics {self.harmonics} must be 0 (unknown) or positive, and then needs"
                " a period above 0"
            )
        if not self.low < self.high:
            raise CapabilityError(f"parameter {self.name!r}: low {self.low} is not below high {self.high}")
        if self.edge == "wrap" and not self.period > 0:
            raise CapabilityError(f"parameter {self.name!r}: edge 'wrap' needs a period above 0")
        if self.edge == "reflect" and not np.isfinite(self.high - self.low):
            raise CapabilityError(f"parameter {self.name!r}: edge 'reflect' needs finite low and high")
        if self.levels is not None and (len(self.levels) < 2 or np.any(np.diff(self.levels) <= 0)):
            raise CapabilityError(f"parameter {self.name!r}: levels must ascend and be at least two")
        if self.slew < 0:
            raise CapabilityError(f"parameter {self.name!r}: slew must be 0 (no limit) or positive")

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class ChannelLimit:
    """A limit across the channels of a stage: scale * sum(|value|**power) over `parameters` stays at or below `high`.

    Heaters of resistance R driven by volts: power 2, scale 1/R, high in watts. `unit` is for messages.
    """

    name: str
    parameters: tuple[str, ...]
    high: float
    power: float = 1.0
    scale: float = 1.0
    unit: str = ""

    def __post_init__(self) -> None:
        if not (self.parameters and self.high > 0 and self.power > 0 and self.scale > 0):
            raise CapabilityError(f"limit {self.name!r}: needs parameters, and high, power and scale above 0")

    def total(self, values: Mapping[str, Array]) -> float:
        return self.scale * sum(float((np.abs(values[n]) ** self.power).sum()) for n in self.parameters)


@dataclass(frozen=True)
class Local:
    """A Jacobian that reaches as far as a convolution: flat values [channels x shape], channels first, as in torch.

    One or two spatial axes. Output position o of an axis sees the inputs o * stride - padding + k * dilation for
    k = 0..kernel - 1, of the channels in its group; those beyond the ends are nothing, or with `circular` the values at
    the other end. Weights need not be alike at all positions: what is declared is the reach, so a whole residual block
    is one too (two convolutions of 3, the first of stride 2: kernel 7, stride 2, padding 3). `shape`: of the input.
    `uniform`: they are alike, one kernel meets every position, as on a core that is handed patch after patch.
    """

    in_channels: int
    out_channels: int
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    circular: bool = False
    uniform: bool = False

    @classmethod
    def conv(
        cls,
        in_channels: int,
        out_channels: int,
        shape: Sequence[int],
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        circular: bool = False,
        uniform: bool = False,
    ) -> Local:
        """As torch's `Conv1d` and `Conv2d` name it: one number stands for every axis.

        >>> Local.conv(16, 32, (32, 32), 3, stride=2, padding=1).out_shape
        (16, 16)
        """
        axes = len(tuple(shape))
        kernel, stride, padding, dilation = (
            (value,) * axes if isinstance(value, int) else tuple(value) for value in (kernel, stride, padding, dilation)
        )
        return cls(
            in_channels, out_channels, tuple(shape), kernel, stride, padding, dilation, groups, circular, uniform
        )

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 2):
            raise CapabilityError(f"local structure: shape {list(self.shape)} has {len(self.shape)} axes, not 1 or 2")
        for name, least in (("shape", 1), ("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            values = getattr(self, name)
            if len(values) != len(self.shape) or min(values) < least:
                raise CapabilityError(
                    f"local structure: {name} {list(values)} needs {len(self.shape)} whole numbers of at least {least},"
                    " one an axis"
                )
        if min(self.in_channels, self.out_channels, self.groups) < 1:
            raise CapabilityError("local structure: channels and groups must be at least 1")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise CapabilityError(
                f"local structure: {self.groups} groups do not divide {self.in_channels} channels in and"
                f" {self.out_channels} out"
            )
        if min(self.out_shape) < 1:
            raise CapabilityError(
                f"local structure: a kernel of {list(self.kernel)} with dilation {list(self.dilation)} does not fit on"
                f" {list(self.shape)} with padding {list(self.padding)}"
            )
        if self.circular and any(p > n for p, n in zip(self.padding, self.shape, strict=True)):
            raise CapabilityError(f"local structure: circular padding {list(self.padding)} is wider than the input")

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        axes = zip(self.shape, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    @property
    def widths(self) -> tuple[int, int]:
        """Flat values (in, out)."""
        return self.in_channels * math.prod(self.shape), self.out_channels * math.prod(self.out_shape)

    def inputs_of(self, output: int) -> Array:
        """The flat inputs that one flat output may depend on, ascending.

        >>> Local.conv(2, 2, (5,), 3, padding=1, groups=2).inputs_of(9).tolist()
        [8, 9]
        """
        window = self.window(output)
        return np.unique(window[window >= 0])

    def window(self, output: int) -> Array:
        """The flat inputs that one flat output sees, by channel and tap; -1 for those beyond the ends.

        >>> Local.conv(1, 1, (5,), 3, padding=1).window(0).tolist()
        [-1, 0, 1]
        """
        channel, *place = (int(i) for i in np.unravel_index(output, (self.out_channels, *self.out_shape)))
        size = self.in_channels // self.groups
        first = channel * self.groups // self.out_channels * size
        axes = [np.arange(first, first + size), *(self._seen(k)[o] for k, o in enumerate(place))]
        grid = np.ix_(*axes)
        flat = np.ravel_multi_index([np.maximum(axis, 0) for axis in grid], (self.in_channels, *self.shape))
        return np.where(np.logical_and.reduce(np.broadcast_arrays(*(axis >= 0 for axis in grid))), flat, -1).ravel()

    def alike(self, output: int) -> Array:
        """Flat outputs of the same channel, this one among them, that see as much through the same taps: a `uniform`
        stage treats them alike.

        >>> Local.conv(1, 1, (5,), 3, padding=1).alike(1).tolist()
        [1, 2, 3]
        """
        channel, *place = (int(i) for i in np.unravel_index(output, (self.out_channels, *self.out_shape)))
        axes = [np.array([channel])]
        for k, o in enumerate(place):
            inside = self._seen(k) >= 0
            axes.append(np.flatnonzero((inside == inside[o]).all(axis=1)))
        return np.ravel_multi_index(np.ix_(*axes), (self.out_channels, *self.out_shape)).ravel()

    def _seen(self, k: int) -> Array:
        """Of axis k of space, the places [output, tap] that are seen; -1 beyond the ends."""
        size = self.shape[k]
        seen = np.arange(self.out_shape[k])[:, None] * self.stride[k] - self.padding[k]
        seen = seen + np.arange(self.kernel[k]) * self.dilation[k]
        return seen % size if self.circular else np.where((seen >= 0) & (seen < size), seen, -1)


Structure = Literal["dense", "diagonal"] | Local


@dataclass(frozen=True)
class StageSpec:
    """The smallest unit that owns parameters. Widths count real numbers.

    `structure` is that of its Jacobian: `dense`, `diagonal` or a `Local` reach; `linear` says that the Jacobian is the
    same for every input. What is declared is not probed, so a false word here makes gradients wrong without a sign of
    it; `hzo-hil device check` tries them. A stage's function includes its converters.
    """

    name: str
    in_width: int
    out_width: int
    parameters: tuple[ParameterSpec, ...] = ()
    structure: Structure = "dense"
    linear: bool = False
    limits: tuple[ChannelLimit, ...] = ()

    def __post_init__(self) -> None:
        if self.in_width < 1 or self.out_width < 1:
            raise CapabilityError(f"stage {self.name!r}: widths must be at least 1")
        if self.structure == "diagonal" and self.in_width != self.out_width:
            raise CapabilityError(f"stage {self.name!r}: a diagonal stage has equal widths")
        if isinstance(self.structure, Local) and self.structure.widths != (self.in_width, self.out_width):
            inside, outside = self.structure.widths
            raise CapabilityError(
                f"stage {self.name!r}: its local structure takes {inside} values (channels x shape) and gives"
                f" {outside}, the stage takes {self.in_width} and gives {self.out_width}"
            )
        names = [p.name for p in self.parameters]
        if len(set(names)) != len(names):
            raise CapabilityError(f"stage {self.name!r}: parameter names repeat: {names}")
        for limit in self.limits:
            if unknown := set(limit.parameters) - set(names):
                raise CapabilityError(f"stage {self.name!r}: limit {limit.name!r} names no parameter: {unknown}")


@dataclass(frozen=True)
class BoundarySpec:
    """A place between stages, in device units.

    `drive`: activations may be injected here; `read`: they may be read here. `low`/`high` bound what
    may be driven. `in_step` is the input converter's step (0: none). `out_low`/`out_high` are the
    read-out's ends: an answer at an end is counted as saturated (a lower end of exactly 0 is not:
    dark is a fair reading of an intensity).
    """

    drive: bool = True
    read: bool = True
    low: float = -np.inf
    high: float = np.inf
    in_step: float = 0.0
    out_low: float = -np.inf
    out_high: float = np.inf
    out_step: float = 0.0


@dataclass(frozen=True)
class Capabilities:
    """What a device is and can do. `boundaries` has one entry more than `stages`.

    Seconds are declared costs: `latency_s` per call, `query_s` per stage evaluation, `settling_s` per
    write. `longest_call_s`: no call takes longer; a device reached over a wire that is silent for more counts as hung.
    `max_batch` (rows) and `max_bytes` (input bytes of a call) of 0 mean no limit. The
    features a driver does not declare are never asked of it: `taps` (read inner boundaries within one query),
    `repeats` (average in the device), `keyed` (accepts noise keys; simulations), `virtual_time`
    (its seconds are declared, not measured).
    """

    identity: str
    stages: tuple[StageSpec, ...]
    boundaries: tuple[BoundarySpec, ...]
    dtype: Literal["float32", "float64"] = "float32"
    max_batch: int = 0
    max_bytes: int = 0
    latency_s: float = 0.0
    query_s: float = 0.0
    settling_s: float = 0.0
    longest_call_s: float = 10.0
    taps: bool = False
    repeats: bool = False
    keyed: bool = False
    virtual_time: bool = False
    read_noise: float | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise CapabilityError(f"device {self.identity!r} declares no stages")
        if len(self.boundaries) != len(self.stages) + 1:
            raise CapabilityError(
                f"device {self.identity!r} declares {len(self.stages)} stages and {len(self.boundaries)} boundaries:"
                " there is one boundary more than stages"
            )
        for left, right in zip(self.stages, self.stages[1:], strict=False):
            if left.out_width != right.in_width:
                raise CapabilityError(
                    f"device {self.identity!r}: stage {left.name!r} gives {left.out_width} values,"
                    f" stage {right.name!r} takes {right.in_width}"
                )
        if not self.boundaries[0].drive or not self.boundaries[-1].read:
            raise CapabilityError(
                f"device {self.identity!r}: its first boundary must be drivable and its last readable"
            )
        if self.max_batch < 0 or self.max_bytes < 0:
            raise CapabilityError(f"device {self.identity!r}: max_batch and max_bytes are 0 (no limit) or positive")
        if min(self.latency_s, self.query_s, self.settling_s) < 0 or not self.longest_call_s > 0:
            raise CapabilityError(
                f"device {self.identity!r}: declared seconds are not negative, longest_call_s above 0"
            )
        if self.longest_call_s < self.latency_s:
            raise CapabilityError(
                f"device {self.identity!r}: contradicts itself: a call takes latency_s {self.latency_s:g}, but none"
                f" longer than longest_call_s {self.longest_call_s:g}"
            )

    def width(self, boundary: int) -> int:
        """Real numbers at a boundary, 0..len(stages)."""
        return self.stages[0].in_width if boundary == 0 else self.stages[boundary - 1].out_width


@dataclass(frozen=True, order=True)
class Segment:
    """Stages lo+1..hi (1-based), driven at boundary lo and read at boundary hi."""

    lo: int
    hi: int

    def __post_init__(self) -> None:
        if not 0 <= self.lo < self.hi:
            raise CapabilityError(f"segment ({self.lo}, {self.hi}] is empty or starts before 0")

    def __len__(self) -> int:
        return self.hi - self.lo


@dataclass
class Reply:
    """Outputs `[batch, width]` at the segment's end; `taps` by boundary; named scalars to keep with the run.

    `seconds`: how long the device worked on it, where it says so (0: unknown).
    """

    outputs: Array
    taps: Mapping[int, Array] = field(default_factory=dict)
    monitors: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a boundary's values. `reach` (bool `[out, in]`): which outputs may depend on which inputs. `colours`
    (int `[in]`): inputs of one colour share no output; -1: no output depends on it.
    """

    reach: Array
    colours: Array

    @property
    def count(self) -> int:
        return int(self.colours.max(initial=-1)) + 1


@dataclass(frozen=True, eq=False)
class Probes:
    """Probes of a batch, for a device that moves its inputs and weighs its answers itself.

    Every sample of `inputs` `[samples, width]` is asked once for each combination of colours, one of each axis, first
    axis slowest, with all inputs of these colours moved up by `step`; then, `paired`, as often with them moved down,
    else once as it is, unless the answer to that is known: `reference` `[samples, outputs]`. Wanted is `[samples,
    width]`: for each input, how the outputs that it reaches, times `weights` `[samples, outputs]`, add up in the row
    moved up, less the same in the other one, over how far apart the two inputs are. Values lie flat, first axis
    slowest. A keyed device counts keys from `key`: sample by sample the rows as `run` would be sent them, in pairs that
    alternate (+ - - +), or the unmoved row first.
    """

    segment: Segment
    inputs: Array
    axes: tuple[Axis, ...]
    step: float
    paired: bool
    weights: Array
    reference: Array | None = None
    key: int = 0

    @property
    def colours(self) -> int:
        return math.prod(axis.count for axis in self.axes)

    @property
    def rows(self) -> int:
        """Of one sample."""
        return 2 * self.colours if self.paired else self.colours + (self.reference is None)


@dataclass(frozen=True)
class Health:
    ok: bool
    detail: str = ""


@runtime_checkable
class Device(Protocol):
    """What a lab's driver implements. Inputs and outputs are C-contiguous `[batch, width]` arrays.

    `run` is called with the keywords a driver declared (`taps`, `repeats`, `keyed`) and no others, so that the
    smallest driver's `run(segment, inputs)` is enough. Stage indices count from 0 in `write` and `read`.
    `write` receives every parameter of the stage; `where` (parameter name -> flat indices) lists what
    changed, for drivers that can write single values. A keyed device also gets `key` in `write`. Three methods are
    optional and looked for: `park()` brings the device to its safe state, `maintain()` re-locks or re-biases it, and
    `run_probes(probes)` answers `Probes` as they ask, so that neither rows nor answers travel (None: not now). A
    simulation in torch may have an attribute `place`, a torch device: then `run` and `run_probes` take tensors there as
    they take arrays, and answer with tensors, whose values the host looks at. A simulation that drifts may have an
    attribute `virtual_clock`, plain data that can be set again: where its own time stands, kept with a run and restored
    when it is resumed.
    """

    @property
    def capabilities(self) -> Capabilities: ...
    def open(self) -> None: ...
    def run(self, segment: Segment, inputs: Array) -> Reply: ...
    def write(self, stage: int, parameters: Mapping[str, Array], where: Mapping[str, Array] | None = None) -> None: ...
    def read(self, stage: int) -> Mapping[str, Array]: ...
    def snapshot(self) -> Mapping[str, Any]: ...
    def health(self) -> Health: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Query:
    """One call as dispatch hands it to a link: a batch of rows through one segment.

    `samples` (int `[batch]`): the minibatch sample each row belongs to; only for a pool of different chips, which keeps
    all rows of a sample on one of them (its attribute `by_sample` is true).
    """

    segment: Segment
    inputs: Array
    taps: Sequence[int] = ()
    repeats: int = 1
    keys: Array | None = None
    samples: Array | None = None

    def run_on(self, device: Device) -> Reply:
        """Ask a blocking driver, naming only what the query uses: a driver need not take what it did not declare."""
        options: dict[str, Any] = {}
        if self.taps:
            options["taps"] = tuple(self.taps)
        if self.repeats != 1:
            options["repeats"] = self.repeats
        if self.keys is not None:
            options["keys"] = self.keys
        return device.run(self.segment, self.inputs, **options)


@runtime_checkable
class Pipelined(Protocol):
    """A device that keeps several queries in flight and may answer in any order.

    `poll` waits at most `timeout` seconds and returns what has arrived, an exception in place of a
    reply where a query failed. `cancel` forgets every outstanding ticket.
    """

    window: int

    def submit(self, query: Query) -> int: ...
    def poll(self, timeout: float) -> list[tuple[int, Reply | Exception]]: ...
    def cancel(self) -> None: ...
