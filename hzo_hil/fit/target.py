"""The simulator that is fitted: its options, the stage that is measured, and the values written to both.

A stage can be measured where its answer, without noise and converters, grows as its input (or as its square): then a
query is a pattern p times an amplitude v, and the answer v^degree times the answer to p. How it answers is worked out
in `response`. Asks no device anything but its capabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import constants

from hzo_hil.devices.api import BoundarySpec, Capabilities, Segment
from hzo_hil.devices.errors import CapabilityError, ConfigError
from hzo_hil.devicesections import DeviceSection
from hzo_hil.fit.response import NOISE, Response, Simulator, degree_of, response_of
from hzo_hil.simulators import chip
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.model import StageModel

Array = NDArray[Any]

PATTERNS = 256
"""Different patterns of inputs; a query is one of them times an amplitude."""


@dataclass(frozen=True)
class Target:
    """One stage of the simulator, at `values`.

    `patterns` `[patterns, in]` of inputs, which it answers by `response`; `reach` largest amplitude to drive; `signed`
    whether it may be negative; `loud` the patterns with the largest answers.
    """

    section: DeviceSection
    options: Mapping[str, Any]
    stage: int
    model: StageModel
    values: Mapping[str, Array]
    patterns: Array
    response: Response
    degree: int
    reach: float
    signed: bool

    @property
    def segment(self) -> Segment:
        return Segment(self.stage, self.stage + 1)

    @property
    def loud(self) -> Array:
        largest = np.abs(self.response.pull).max(axis=1)
        return np.argsort(-largest, kind="stable")[: max(8, len(largest) // 8)]

    @property
    def noise_option(self) -> str | None:
        return next((n for n in NOISE if n in self.options), None)

    @property
    def output_low(self) -> float:
        """0 where nothing negative can be read."""
        return 0.0 if self.model.output.low == 0 else -math.inf

    # --- noise that follows the signal -----------------------------------------------------------------------------

    @property
    def follower(self) -> Detector | None:
        """The detector whose noise grows with the answer and tells of its bandwidth; None where there is none."""
        return following(self.model)

    @property
    def noise_gain(self) -> float:
        return float(np.sqrt(np.mean(self.response.noise_gain**2)))

    def dark_variance(self, bandwidth: float) -> float:
        """Of a dark answer of the follower, from a noise bandwidth in Hz; in output units squared."""
        assert self.follower is not None
        bare = replace(
            self.follower,
            noise_std=0.0,
            bandwidth=bandwidth,
            integration_s=0.0,
            read_after_s=0.0,
            statistics="gaussian",
        )
        return (bare.dark_std * self.noise_gain) ** 2

    @property
    def shot_per_hertz(self) -> float:
        """Variance that an answer of 1 adds for each Hz of noise bandwidth; 0 where noise does not follow."""
        if self.follower is None:
            return 0.0
        return 2 * constants.e * self.noise_gain / (self.follower.responsivity * self.follower.full_scale)


def following(model: StageModel) -> Detector | None:
    detector: Detector | None = getattr(model, "detector", None)
    if detector is None or detector.kind != "intensity" or detector.read_after_s:
        return None
    # A pair of diodes reads a difference: its noise follows the sum, which is not the answer.
    return detector if model.output.low == 0 else None


# --- choosing ------------------------------------------------------------------------------------------------------


def target_for(section: DeviceSection, caps: Capabilities, seed: int, rng: np.random.Generator) -> Target:
    """The first stage of CONFIG's chip (those with parameters first) that `caps` lets us measure.

    Raises ConfigError for a CONFIG that describes no simulated chip, CapabilityError where the device has another shape
    or no stage can be measured.
    """
    if section.kind is None:
        raise ConfigError(
            "CONFIG describes no simulated chip: it needs `kind` (and preset, options, seed) to start from"
        )
    chosen = section.seed if section.seed is not None else seed
    try:
        options = chip.options_of(section.kind, section.preset, **section.options)
        models = chip.build(section.kind, section.preset, chosen, **section.options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"device of kind {section.kind!r}: {error}") from error
    check_shapes(models, caps)
    reasons = []
    for stage in sorted(range(len(models)), key=lambda k: not models[k].parameters):
        reason = _unreachable(caps, stage) or _unlike(models[stage], options)
        if not reason:
            found = _target(section, options, chosen, stage, models[stage], caps, rng)
            if isinstance(found, Target):
                return found
            reason = found
        reasons.append(f"stage {stage} ({models[stage].name!r}): {reason}")
    raise CapabilityError(
        f"no stage of device {caps.identity!r} can be fitted:\n  "
        + "\n  ".join(reasons)
        + "\nfitting needs a stage driven and read by itself whose answer is proportional to its input or to its square"
    )


def check_shapes(models: list[StageModel], caps: Capabilities) -> None:
    """CapabilityError unless the device has the simulator's stages, widths and parameters."""
    if len(models) != len(caps.stages):
        raise CapabilityError(
            f"CONFIG has {len(models)} stages, device {caps.identity!r} has {len(caps.stages)}"
            f" ({', '.join(s.name for s in caps.stages)}): give the CONFIG of the same chip"
        )
    for stage, (model, spec) in enumerate(zip(models, caps.stages, strict=True)):
        at = f"stage {stage} ({model.name!r} in CONFIG, {spec.name!r} of device {caps.identity!r})"
        ours, theirs = (model.in_width, model.out_width), (spec.in_width, spec.out_width)
        if ours != theirs:
            raise CapabilityError(
                f"{at}: {ours[0]} inputs and {ours[1]} outputs in CONFIG, {theirs[0]} and {theirs[1]} on the device"
            )
        wanted = {p.name: p.shape for p in model.parameters}
        given = {p.name: p.shape for p in spec.parameters}
        if wanted != given:
            raise CapabilityError(f"{at}: parameters {wanted} in CONFIG, {given} on the device")


def _unreachable(caps: Capabilities, stage: int) -> str:
    if not caps.boundaries[stage].drive:
        return f"boundary {stage} before it cannot be driven"
    if not caps.boundaries[stage + 1].read:
        return f"boundary {stage + 1} behind it cannot be read"
    into = caps.boundaries[stage]
    if not (into.low <= 0 < into.high):
        return f"boundary {stage} takes {into.low:g} to {into.high:g}: dark (0) and bright must both be within"
    return ""


def _unlike(model: StageModel, options: Mapping[str, Any]) -> str:
    if isinstance(model, EmulatedLinear) and model.activation != "none":
        return f"its converter and noise lie before the activation {model.activation!r}"
    for name in ("in_format", "accumulate_format"):
        if options.get(name, "float") != "float":
            return f"{name} {options[name]!r} rounds numbers on the way"
    if options.get("partial_sums") == "digital":
        return "partial_sums are digital: its converters lie before the sum that is read"
    return ""


def _target(
    section: DeviceSection, options: Mapping[str, Any], seed: int, stage: int, model: StageModel, caps: Capabilities,
    rng: np.random.Generator,
) -> Target | str:  # fmt: skip
    into = caps.boundaries[stage]
    signed = model.input.low < 0 and into.low < 0
    reach = _reach(into, model, signed)
    simulator = Simulator(section, options, seed, stage)
    values = _values(simulator.clean, model, caps, stage, reach, rng)
    patterns = _patterns(model.in_width, signed, rng).astype(caps.dtype)
    degree = degree_of(simulator, values, patterns[:16].astype(np.float64), signed)
    if degree is None:
        return "its answer is proportional neither to its input nor to the square of it"
    safe = min(reach, model.input.high)  # where CONFIG's own input converter does not cut
    found = response_of(simulator, values, patterns.astype(np.float64), degree, safe, following(model) is not None)
    return Target(section, options, stage, model, values, patterns, found, degree, reach, signed)


def _reach(into: BoundarySpec, model: StageModel, signed: bool) -> float:
    """The declared range; where it has no end, beyond the end that CONFIG knows, so that it shows; else 1."""
    declared = min(abs(into.low), into.high) if signed else into.high
    if math.isfinite(declared):
        return float(declared)
    return 1.25 * model.input.high if math.isfinite(model.input.high) else 1.0


def _values(
    clean: StageModel, model: StageModel, caps: Capabilities, stage: int, reach: float, rng: np.random.Generator
) -> dict[str, Array]:
    """Values to write, the same on both, as the device's precision holds them.

    A matrix that may be of any size is made large enough for answers to pass the end of the read-out.
    """
    spec, boundary = caps.stages[stage], caps.boundaries[stage + 1]
    values = dict(clean.initial(rng))
    ends = [e for e in (boundary.out_high, model.output.high) if math.isfinite(e)]
    if isinstance(model, EmulatedLinear) and ends:
        largest = reach * float(np.abs(values["weight"]).sum(axis=1).max())
        room = model.weight_bound / max(float(np.abs(values["weight"]).max()), 1e-30)
        values["weight"] = values["weight"] * min(max(1.0, 2 * max(ends) / largest), room)
    held = {name: value.astype(caps.dtype).astype(np.float64) for name, value in values.items()}
    for limit in spec.limits:
        if (total := limit.total(held)) > limit.high:
            raise CapabilityError(
                f"stage {stage} ({spec.name!r}): the values that fitting writes come to {total:.3g} {limit.unit} of"
                f" {limit.name!r}, at most {limit.high:g} are allowed"
            )
    return held


def _patterns(width: int, signed: bool, rng: np.random.Generator) -> Array:
    """`[patterns, width]` of -1 and 1, or of 0 and 1, none of them all 0."""
    drawn = rng.integers(0, 2, (PATTERNS, width)).astype(np.float64)
    if signed:
        return 2 * drawn - 1
    drawn[np.arange(PATTERNS), rng.integers(0, width, PATTERNS)] = 1
    return drawn
