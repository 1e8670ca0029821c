"""Parameters of a configuration, each found or with the reason why not: those of the gain and of the noise. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from hzo_hil.devices.api import BoundarySpec
from hzo_hil.devicesections import DeviceSection
from hzo_hil.fit.drift import Drift, Watch
from hzo_hil.fit.estimate import Estimate, widened
from hzo_hil.fit.lattice import FLOAT32
from hzo_hil.fit.output import Output
from hzo_hil.fit.spread import Noise
from hzo_hil.fit.target import Target

Place = Literal["device", "options", "derived"]


@dataclass(frozen=True)
class Finding:
    """One parameter. `estimate` None: not identified, for the `reason`. `setting`: what the fitted configuration gets
    (None: what CONFIG has). `place`: a field of the device, one of its options, or derived and in no file."""

    name: str
    place: Place
    estimate: Estimate | None
    before: Any
    setting: Any = None
    declared: float | None = None
    unit: str = ""
    reason: str = ""
    note: str = ""


def found(name: str, place: Place, estimate: Estimate, before: Any, **more: Any) -> Finding:
    return Finding(name, place, estimate, before, setting=more.pop("setting", estimate.value), **more)


def gain_findings(section: DeviceSection, watch: Watch, drift: Drift, seen: Output, wander: bool) -> list[Finding]:
    before = {
        n: getattr(section, n, d) for n, d in (("power", 1.0), ("power_drift_std", 0.0), ("power_drift_tau_s", 10.0))
    }
    power = widened(drift.power, math.hypot(_common_error(watch, seen), 2 * FLOAT32))
    note = "and whatever else scales all answers; a mean over the time watched"
    rows = [found("power", "device", power, before["power"], note=note)]
    if not watch.span_s:
        reason = "the device's declared time does not pass (query_s is 0)"
        rows += [Finding(n, "device", None, before[n], reason=reason) for n in ("power_drift_std", "power_drift_tau_s")]
    elif not drift.seen:
        reason = f"no drift seen in {watch.span_s:.3g} s: watch it for longer (--seconds, --queries), if you expect any"
        rows.append(
            found("power_drift_std", "device", drift.std, before["power_drift_std"], setting=0.0, note="none seen")
        )
        rows.append(Finding("power_drift_tau_s", "device", None, before["power_drift_tau_s"], unit="s", reason=reason))
    else:
        note = ""
        if not math.isfinite(drift.tau_s.high):
            note = f"watched for {watch.span_s:.3g} s only: drift may be larger and slower"
        rows.append(found("power_drift_std", "device", drift.std, before["power_drift_std"], note=note))
        rows.append(found("power_drift_tau_s", "device", drift.tau_s, before["power_drift_tau_s"], unit="s", note=note))
    if wander:
        rows.append(_wander_finding(section, watch, drift))
    return rows


def _common_error(watch: Watch, seen: Output) -> float:
    """Relative error of all gains alike: what a coarse converter misses does not average over equal questions."""
    independent = 1 / (watch.gain**2 / watch.variance).sum()
    return math.sqrt(max(seen.slope_error**2 - independent, 0.0))


def _wander_finding(section: DeviceSection, watch: Watch, drift: Drift) -> Finding:
    if drift.wander is None or watch.span_s < section.wander_period_s / 2:
        reason = f"watched for {watch.span_s:.3g} s of a wander_period_s of {section.wander_period_s:g}: at least half"
        return Finding("laser_wander", "device", None, section.laser_wander, reason=reason)
    return found(
        "laser_wander", "device", drift.wander, section.laser_wander, note=f"period {section.wander_period_s:g} s"
    )


def noise_findings(target: Target, noise: Noise, seen: Output, watch: Watch, out: BoundarySpec) -> list[Finding]:
    name = target.noise_option
    if name is None:
        reason = f"a chip of kind {target.section.kind!r} has no option for plain noise"
        return [Finding("noise_std", "options", None, None, reason=reason)]
    common = seen.slope_error if seen.step.value else float(1 / math.sqrt((watch.gain**2 / watch.variance).sum()))
    before = target.options[name]
    if noise.bandwidth is not None:
        return [found(name, "options", widened(noise.std, common), before), _bandwidth_finding(target, noise)]
    std = widened(noise.std, common)
    if seen.hidden and out.out_step:
        std = Estimate(std.value, math.sqrt(max(std.low**2 - out.out_step**2 / 12, 0.0)), std.high)
    physical = math.sqrt(float(target.response.dark.mean()))
    note = f"besides the {physical:.3g} that CONFIG's other options give" if physical else ""
    if not noise.seen:
        note = "none seen: " + (
            f"CONFIG's other options alone give {physical:.3g}"
            if physical
            else "a converter's step or rounding hides what is below the upper end"
        )
    return [found(name, "options", std, before, note=note)]


def _bandwidth_finding(target: Target, noise: Noise) -> Finding:
    """Of the noise; where CONFIG's receiver integrates, that time stands for it."""
    assert noise.bandwidth is not None
    band, note = noise.bandwidth, "" if noise.seen else "no growth of the noise with the signal was seen"
    if not target.options.get("integration_s", 0.0):
        return found("bandwidth", "options", band, target.options.get("bandwidth", 0.0), unit="Hz", note=note)
    times = (1 / (2 * b) if b > 0 else math.inf for b in (band.value, band.high, band.low))
    return found("integration_s", "options", Estimate(*times), target.options["integration_s"], unit="s", note=note)
