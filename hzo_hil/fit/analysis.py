"""From answers to numbers: one estimator after the other, each with what those before it found. Asks nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import BoundarySpec
from hzo_hil.devicesections import DeviceSection
from hzo_hil.fit import spread
from hzo_hil.fit.converter_findings import Input, input_findings, output_findings
from hzo_hil.fit.drift import Drift, Watch, follow
from hzo_hil.fit.estimate import Estimate, normal
from hzo_hil.fit.findings import Finding, gain_findings, noise_findings
from hzo_hil.fit.judged import Verdict, judge
from hzo_hil.fit.look import rough_gain
from hzo_hil.fit.output import Output, output_of
from hzo_hil.fit.picture import Picture, ramp_of, regained
from hzo_hil.fit.rows import Floats, Rows
from hzo_hil.fit.stairs import Ramp, find_bound, find_step, quantised, smallest_step
from hzo_hil.fit.target import Target

_SMALL = 16  # steps of the read-out: answers beyond are no use for the noise, since their own error counts there


@dataclass(frozen=True)
class Analysis:
    """`watched_s`: device seconds between the first and the last query of the gain."""

    findings: list[Finding]
    verdicts: list[Verdict]
    watched_s: float


def analysed(
    target: Target, rows: Rows, section: DeviceSection, ports: Sequence[BoundarySpec], wander: bool,
    rng: np.random.Generator,
) -> Analysis:  # fmt: skip
    """`ports`: of the device before and behind the stage. `wander`: a laser's wander is looked for as well."""
    into, out = ports
    now, driven = _input(target, rows, into.in_step)
    seen = output_of(now)
    now = _read_out(now, seen)
    watch = _watch(now)
    drift = follow(watch, section.wander_period_s if wander else None) if watch.span_s > 0 else _timeless(watch)
    noise = _noise(target, now, seen, drift)
    out = _before_the_gain(out, drift.power.value)
    findings = [
        *gain_findings(section, watch, drift, seen, wander),
        *noise_findings(target, noise, seen, watch, out),
        *input_findings(driven, target.options, into),
        *output_findings(seen, target.options, out, not now.censored, float(np.abs(seen.values).max())),
    ]
    verdicts = judge(now, seen, _variance(target, now, noise), noise.error, drift.within, rng)
    return Analysis(findings, verdicts, watch.span_s)


# --- input ---------------------------------------------------------------------------------------------------------


def _input(target: Target, rows: Rows, declared: float) -> tuple[Picture, Input]:
    """The picture with what the input converter does to it, and what was measured of that."""
    now = _first(target, rows)
    end = find_bound(ramp_of(now))
    if end is not None:
        now = regained(replace(now, bound=end.value))
    for _ in range(2):  # the second time with the variance that is left
        ramp = _below(ramp_of(now), 0.97 * end.value if end is not None else math.inf)
        smallest, step = smallest_step(ramp), find_step(ramp)
        if step is None:
            # What is too fine to be seen is taken as declared.
            now = regained(replace(now, step=declared if declared < smallest else 0.0))
            break
        bound = round(end.value / step.value) * step.value if end is not None else math.inf
        now = regained(replace(now, step=step.value, bound=bound, sure=_sure(now, step)))
    return now, Input(step, end, smallest, target.reach, target.signed)


def _first(target: Target, rows: Rows) -> Picture:
    """As if there were no converters."""
    largest, blocks = float(np.abs(rows.answers).max()), int(rows.block.max()) + 1
    now = Picture(rows, target.degree, target.output_low == 0, np.ones(blocks), 0.0, largest)
    rough = rough_gain(rows.answers, now.expected, rows.drive)
    dark = float(np.mean(rows.answers[rows.drive == 0] ** 2))
    return regained(replace(now, gains=np.full(blocks, rough), dark=dark / rough**2, largest=largest / rough))


def _below(ramp: Ramp, end: float) -> Ramp:
    kept = np.abs(ramp.drive) < end
    return Ramp(ramp.drive[kept], ramp.seen[kept], ramp.variance[kept], ramp.degree)


def _sure(now: Picture, step: Estimate) -> NDArray[np.bool_]:
    """Rows `[rows]` whose input code is the same at both ends of the step's interval."""
    ends = ((step.low, -1e-6), (step.high, 1e-6))  # and with a float32 converter's rounding
    low, high = (np.rint(quantised(now.rows.drive, s * (1 + e), now.bound) / s) for s, e in ends)
    return np.asarray(low == high)


# --- output, gain, noise -------------------------------------------------------------------------------------------


def _read_out(now: Picture, seen: Output) -> Picture:
    """With what a converter of the output adds to the variance, and without what it does to the gains."""
    now = replace(now, dark=max(now.dark, seen.step.value**2 / 12))
    now = regained(now) if now.censored else now
    assert now.raw is not None
    return replace(now, raw=now.raw / seen.bias, gains=now.gains / seen.bias)


def _before_the_gain(port: BoundarySpec, power: float) -> BoundarySpec:
    """A device declares what it answers, after the gain; the simulator's options are before it."""
    return replace(port, out_low=port.out_low / power, out_high=port.out_high / power, out_step=port.out_step / power)


def _watch(now: Picture) -> Watch:
    """Gains of the blocks as measured, with the rows that made them."""
    assert now.raw is not None and now.chance is not None
    expected, block = now.expected, now.rows.block
    weight = np.where(now.usable(expected), expected**2, 0).sum(axis=1)
    kept = np.bincount(block, weight, len(now.raw)) > 0
    number = np.cumsum(kept) - 1
    those = weight > 0
    return Watch(now.raw[kept], now.chance[kept], now.rows.seconds[those], weight[those], number[block[those]])


def _timeless(watch: Watch) -> Drift:
    """Of a device whose time does not pass: the mean gain."""
    weight = 1 / watch.variance
    power = normal(float((weight * watch.gain).sum() / weight.sum()), 1 / math.sqrt(weight.sum()))
    none = Estimate(0.0, 0.0, math.inf)
    return Drift(power, none, none, None, 0.0, False)


def _noise(target: Target, now: Picture, seen: Output, drift: Drift) -> spread.Noise:
    rows, expected = now.rows, now.expected
    used = ~rows.held if now.sure is None else ~rows.held & now.sure
    follows = target.shot_per_hertz > 0
    if follows:
        chosen = used[:, None] & (np.abs(expected) < 0.85 * now.largest)
    elif seen.step.value:
        chosen = used[:, None] & (np.abs(expected) < min(_SMALL * seen.step.value, 0.85 * now.largest))
    else:
        chosen = np.broadcast_to((used & (rows.drive == 0))[:, None], expected.shape)
    extra = rows.scatter + expected**2 * (seen.slope_error**2 if seen.step.value else drift.within)
    end = seen.end.value if seen.end is not None and seen.step.value else math.inf
    low = 0.0 if now.censored else -end
    share = np.ones_like(expected) if seen.step.value else 1 - now.leverage(expected)
    if not follows:
        extra = extra + target.response.dark * share
        share = share * target.response.noise_gain**2
    those = spread.readings(
        seen.values[chosen], expected[chosen], extra[chosen], seen.step.value, low, end, share[chosen]
    )
    if follows:
        return spread.following_noise(
            those, target.dark_variance, target.shot_per_hertz, target.noise_gain, math.sqrt(now.dark)
        )  # fmt: skip
    return spread.plain_noise(those, float(np.abs(seen.values).max()))


def _variance(target: Target, now: Picture, noise: spread.Noise) -> Floats:
    """By the fit, of answers `[rows, out]`, without converters and without what is `scatter`."""
    plain = noise.std.value**2 * target.response.noise_gain**2
    if noise.bandwidth is None:
        return np.broadcast_to(plain + target.response.dark, now.expected.shape)
    band = noise.bandwidth.value
    return np.asarray(plain + target.dark_variance(band) + target.shot_per_hertz * band * np.maximum(now.expected, 0))
