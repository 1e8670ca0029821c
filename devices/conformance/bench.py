"""The device under test with the kit's own handling of it: asks, writes, counts, and keeps its noise.

Uses only what every device has (open, run, write, read, snapshot, health, close) and the keywords it declared.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Capabilities, Device, Segment
from hzo_hil.devices.conformance import values
from hzo_hil.devices.conformance.likeness import Likeness, compare
from hzo_hil.devices.conformance.values import Values

Array = NDArray[Any]
ROUNDING = {"float32": 1e-5, "float64": 1e-11}
"""What batches of other sizes may differ by, relative to the largest answer, on a device without noise."""


class Fault(Exception):
    """A check failed: what was seen, and what to change."""

    def __init__(self, detail: str, change: str) -> None:
        super().__init__(detail)
        self.detail, self.change = detail, change


class NotJudged(Fault):
    """A check could not look at what it is for, because something simpler is wrong."""


class Skip(Exception):
    """An optional check does not apply; the text names the capability that is missing."""


@dataclass(frozen=True)
class Passed:
    """`advice`: something worth changing although nothing is wrong."""

    detail: str
    advice: str = ""


@dataclass
class Noise:
    """Of one segment: `std` at fixed input, the largest answer, and the answers themselves `[shot, row, column]`."""

    std: float
    scale: float
    answers: Array
    inputs: Array


@dataclass
class Bench:
    opener: Callable[[], Device]
    seed: int = 0
    budget_rows: int = 100_000
    quick: bool = False
    rows_asked: int = 0
    calls: int = 0
    longest_s: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    noise: dict[Segment, Noise] = field(default_factory=dict)
    held: dict[int, Values] = field(default_factory=dict)
    write_miss: float = 0.0  # what writing the same again may change an answer by, once seen to be noisy
    device: Any = None
    caps: Any = None

    # --- the device itself ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open a device and choose what to ask of it. Raises what the driver raises."""
        self.device = self.opener()
        self.device.open()
        self.caps = self.device.capabilities
        if not isinstance(self.caps, Capabilities):
            raise Fault(f"capabilities is a {type(self.caps).__name__}", "return a hzo_hil.devices.api.Capabilities")
        self.segments = _segments(self.caps, 3 if self.quick else 6)
        self.rows = 4 if self.quick else 6
        self.shots = _shots(self.budget_rows, self.rows * len(self.segments), self.quick)
        rng = self.rng("base values")
        self.found = [self._found(k) for k in range(len(self.caps.stages))]
        self.base = [values.parameters(s, rng) for s in self.caps.stages]

    def reopen(self, fresh: bool) -> None:
        """Close; open the same object again, or a new one. What it holds is unknown until it is written."""
        self.device.close()
        if fresh:
            self.device = self.opener()
        self.device.open()
        self.held.clear()

    def finish(self) -> None:
        """Put back what the device held before, where it could be read, and close."""
        for stage, before in enumerate(self.found):
            if before:
                with suppress(Exception):
                    self.write(stage, {n: np.asarray(v, dtype=np.float64) for n, v in before.items()})
        with suppress(Exception):
            self.device.close()

    def _found(self, stage: int) -> Mapping[str, Array] | None:
        try:
            return dict(self.device.read(stage))
        except Exception:  # noqa: BLE001 - a stage that was never written may refuse; writing is judged elsewhere
            return None

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, zlib.crc32(name.encode())))

    # --- asking --------------------------------------------------------------------------------------------------

    def raw(self, segment: Segment, inputs: Array, **options: Any) -> Any:
        """One call, as the host makes it; the reply untouched."""
        if self.caps.keyed and "keys" not in options:
            options["keys"] = np.arange(len(inputs), dtype=np.uint64)
        begun = time.perf_counter()
        try:
            return self.device.run(segment, inputs, **options)
        finally:
            self.longest_s = max(self.longest_s, time.perf_counter() - begun)
            self.calls += 1
            self.rows_asked += len(inputs) if np.ndim(inputs) else 0

    def reply(
        self,
        segment: Segment,
        inputs: Array,
        shot: int = 0,
        ids: Any = None,
        taps: Sequence[int] = (),
        repeats: int = 1,
    ) -> dict[int, Array]:
        """Answers by boundary, float64 copies of the right shape. Raises NotJudged where they are not.

        Batches are split as declared. `ids` and `shot` name the noise of rows on a keyed device: the same names, the
        same noise.
        """
        ids = np.arange(len(inputs)) if ids is None else np.asarray(ids)
        options: dict[str, Any] = {}
        if taps:
            options["taps"] = tuple(taps)
        if repeats > 1:
            options["repeats"] = repeats
        parts: list[dict[int, Array]] = []
        size = batch_limit(self.caps, segment, repeats)
        for start in range(0, len(inputs), size):
            rows = np.array(inputs[start : start + size], order="C")  # a driver may spoil them
            if self.caps.keyed:
                options["keys"] = (ids[start : start + size] + (shot + 1) * (1 << 20)).astype(np.uint64)
            found = self.raw(segment, rows, **options)
            parts.append(self._read(found, segment, len(rows), taps))
        return {b: np.concatenate([p[b] for p in parts]) for b in parts[0]}

    def ask(self, segment: Segment, inputs: Array, shot: int = 0, ids: Any = None, repeats: int = 1) -> Array:
        return self.reply(segment, inputs, shot, ids, (), repeats)[segment.hi]

    def asking(self, segment: Segment, inputs: Array, ids: Any = None) -> Callable[[int], Array]:
        """The same question, to be asked by shot."""
        return lambda shot: self.ask(segment, inputs, shot, ids)

    def _read(self, found: Any, segment: Segment, rows: int, taps: Sequence[int]) -> dict[int, Array]:
        outputs = getattr(found, "outputs", None)
        answers = {segment.hi: outputs} | {t: getattr(found, "taps", {}).get(t) for t in taps}
        for boundary, answer in answers.items():
            shape = (rows, self.caps.width(boundary))
            if not isinstance(answer, np.ndarray) or answer.shape != shape or answer.dtype.kind not in "fiu":
                raise NotJudged(
                    f"not judged: {rows} rows through {name(segment)} gave {described(answer)} at boundary {boundary},"
                    f" not numbers {list(shape)}",
                    "see shapes and dtypes",
                )
        return {b: np.array(a, dtype=np.float64) for b, a in answers.items()}

    # --- comparing -----------------------------------------------------------------------------------------------

    def inputs(self, segment: Segment, rng: np.random.Generator, rows: int = 0) -> Array:
        spec = self.caps.boundaries[segment.lo]
        return values.inputs(spec, rows or self.rows, self.caps.width(segment.lo), rng, self.caps.dtype)

    def exact(self, segment: Segment) -> bool:
        """Whether one shot tells all: nothing was seen to scatter, or the noise of a row is named by its key."""
        if self.caps.keyed:
            return True
        noise = self.noise_of(segment)
        return noise.std <= self.rounding(segment)

    def rounding(self, segment: Segment) -> float:
        return ROUNDING[self.caps.dtype] * max(self.noise_of(segment).scale, 1e-30)

    def noise_of(self, segment: Segment) -> Noise:
        """Measured on first use: the same rows in call after call, after one call that does not count."""
        if segment not in self.noise:
            rows = self.inputs(segment, self.rng(f"noise {name(segment)}"))
            self.ready()
            self.ask(segment, rows)
            answers = np.stack([self.ask(segment, rows, shot) for shot in range(2 * self.shots)])
            std = math.sqrt(float(answers.var(axis=0, ddof=1).mean()))
            self.noise[segment] = Noise(std, float(np.abs(answers).max(initial=0.0)), answers, rows)
        return self.noise[segment]

    def sample(self, segment: Segment, ask: Callable[[int], Array]) -> Array:
        """`ask(shot)` as often as the noise of the segment makes it worth: `[shot, row, column]`.

        Something else is asked first: whether the same may be asked twice is judged by a check of its own.
        """
        exact = self.exact(segment)
        self.ask(segment, self.inputs(segment, self.rng("something else"), 1))
        return np.stack([ask(shot) for shot in range(1 if exact else self.shots)])

    def interleaved(self, segment: Segment, *asks: Callable[[int], Array]) -> list[Array]:
        """A sample for each of `asks`, taken in turn, so that slow drift moves all of them alike."""
        exact = self.exact(segment)
        found: list[list[Array]] = [[] for _ in asks]
        for shot in range(1 if exact else self.shots):
            for kept, ask in zip(found, asks, strict=True):
                kept.append(ask(shot))
        return [np.stack(kept) for kept in found]

    def alike(self, segment: Segment, a: Array, b: Array, tests: int = 0) -> Likeness:
        """`tests`: comparisons in the same check; 0: one a segment."""
        codes = any(s.in_step or s.out_step for s in self.caps.boundaries[segment.lo : segment.hi + 1])
        return compare(a, b, rounding=self.rounding(segment), codes=codes, tests=tests or len(self.segments))

    def rewritten_alike(self, segment: Segment, a: Array, b: Array, tests: int = 0) -> Likeness:
        """Where the device was written in between, what writes miss by is allowed as well."""
        like = self.alike(segment, a, b, tests)
        off = float(np.sqrt(np.mean((b.mean(0) - a.mean(0)) ** 2)))
        return replace(like, alike=like.alike or off <= self.write_miss)

    # --- writing -------------------------------------------------------------------------------------------------

    def write(self, stage: int, wanted: Values, where: Mapping[str, Array] | None = None, shot: int = 0) -> None:
        """All of a stage, in as many steps as its slew limits ask for, settled."""
        spec = self.caps.stages[stage]
        held = self.held.get(stage)
        if held is None and any(p.slew for p in spec.parameters):
            held = self._found(stage)  # type: ignore[assignment]
        options: dict[str, Any] = {"key": stage + 1 + 1000 * shot} if self.caps.keyed else {}
        if where is not None:
            options["where"] = where
        for step in values.steps(spec, held, wanted):
            self.device.write(stage, {n: v.astype(self.caps.dtype) for n, v in step.items()}, **options)
            if self.caps.settling_s and not self.caps.virtual_time:
                time.sleep(self.caps.settling_s)
        self.held[stage] = dict(wanted)

    def ready(self, again: bool = False) -> None:
        """Every stage holds its base values. `again`: write them whatever was written before."""
        for stage, wanted in enumerate(self.base):
            held = self.held.get(stage)
            if wanted and (again or held is None or any(not np.array_equal(held[n], wanted[n]) for n in wanted)):
                self.write(stage, wanted)

    def segment_of(self, stage: int) -> Segment:
        """The shortest segment the kit asks that runs a stage (from 0)."""
        return min((s for s in _all_segments(self.caps) if s.lo <= stage < s.hi), key=len)

    def written_stages(self) -> list[int]:
        """Stages that have parameters; at most four of them when quick, eight otherwise."""
        stages = [k for k, s in enumerate(self.caps.stages) if s.parameters]
        return _spread(stages, 4 if self.quick else 8)


def name(segment: Segment) -> str:
    return f"stages {segment.lo + 1}..{segment.hi}" if len(segment) > 1 else f"stage {segment.hi}"


def described(answer: Any) -> str:
    if isinstance(answer, np.ndarray):
        return f"{answer.dtype} {list(answer.shape)}"
    return "nothing" if answer is None else f"a {type(answer).__name__}"


def batch_limit(caps: Capabilities, segment: Segment, repeats: int = 1) -> int:
    """Rows a call may carry."""
    limits = [1 << 16]
    if caps.max_batch:
        limits.append(max(1, caps.max_batch // repeats))
    if caps.max_bytes:
        limits.append(max(1, caps.max_bytes // (caps.width(segment.lo) * np.dtype(caps.dtype).itemsize)))
    return min(limits)


def _all_segments(caps: Capabilities) -> list[Segment]:
    """Between neighbouring stops; then the whole device, if that is another."""
    found = []
    for lo, spec in enumerate(caps.boundaries[:-1]):
        reads = [hi for hi in range(lo + 1, len(caps.boundaries)) if caps.boundaries[hi].read]
        if spec.drive and reads:
            found.append(Segment(lo, reads[0]))
    whole = Segment(0, len(caps.stages))
    return found if whole in found else [*found, whole]


def _segments(caps: Capabilities, most: int) -> list[Segment]:
    *short, whole = _all_segments(caps)
    return [*_spread(short, most - 1), whole]


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, evenly, ends included."""
    if len(items) <= most:
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, most)]


def _shots(budget: int, rows: int, quick: bool) -> int:
    """Shots a sample: what the budget allows of about 60 samples, from 8 to 16 (12 when quick)."""
    return int(np.clip(budget // (60 * rows), 8, 12 if quick else 16))
