"""From measured steps and ends to bits and bounds of converters. Pure. 0 bits stand for no converter here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hzo_hil.devices.api import BoundarySpec
from hzo_hil.fit.estimate import Estimate, exactly
from hzo_hil.fit.findings import Finding, found
from hzo_hil.fit.output import Output


def codes_of(bits: int, signed: bool) -> int:
    """Largest code of a converter: a signed one has as many below 0."""
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


def bits_for(top: float, signed: bool) -> int:
    """Fewest bits whose largest code is at least `top`."""
    bits = 2
    while codes_of(bits, signed) < top and bits < 24:
        bits += 1
    return bits


# --- input ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """Measured at the input: `step` None: none seen above `smallest`; `end` None: none up to `reach`."""

    step: Estimate | None
    end: Estimate | None
    smallest: float
    reach: float
    signed: bool


def input_findings(seen: Input, options: Mapping[str, Any], port: BoundarySpec) -> list[Finding]:
    """The step is measured; bits follow from it and from the end seen, or else the end of what can be driven."""
    bits_before, bound_before = options.get("in_bits") or 0, options.get("in_bound", math.inf)
    declared_end = port.high if math.isfinite(port.high) else None
    if seen.step is None:
        return _no_input_step(seen, bits_before, bound_before, port, declared_end)
    step = found("in_step", "derived", seen.step, None, declared=port.in_step)
    codes = round(seen.end.value / seen.step.value) if seen.end is not None else 0.97 * seen.reach / seen.step.value
    bits = bits_for(codes, seen.signed)
    bound = seen.step * codes_of(bits, seen.signed)
    if seen.end is None and bound.value > 1.03 * seen.reach:
        reason = f"no end was seen up to {seen.reach:g}: {bits} bits are the fewest that cover it"
        kept = f"no end was seen up to {seen.reach:g}: set so that {bits} bits give the step measured"
        return [
            step,
            Finding("in_bits", "options", None, bits_before, bits, reason=reason),
            Finding("in_bound", "options", None, bound_before, bound.value, declared_end, reason=kept),
        ]
    note = "in_step times the largest code"
    if seen.end is not None and abs(bound.value / seen.end.value - 1) > 0.02:
        note = f"inputs end at {seen.end.value:.4g}, which is no end of a converter of {bits} bits; the step is kept"
    return [
        step,
        found("in_bits", "options", exactly(bits), bits_before, setting=bits),
        found("in_bound", "options", bound, bound_before, declared=declared_end, note=note),
    ]


def _no_input_step(
    seen: Input, bits: int, bound: float, port: BoundarySpec, declared_end: float | None
) -> list[Finding]:
    none = f"no step above {seen.smallest:.3g} was seen"
    finding = [found("in_step", "derived", Estimate(0.0, 0.0, seen.smallest), None, declared=port.in_step, note=none)]
    kept, reason = _hidden_bits(seen, bits, bound, port)
    finding.append(Finding("in_bits", "options", None, bits, kept, reason=f"{none}: {reason}"))
    if seen.end is not None:
        return [*finding, found("in_bound", "options", seen.end, bound, declared=declared_end)]
    reason = f"answers grow up to the end of what can be driven ({seen.reach:g})"
    setting = None if bound >= seen.reach and (math.isfinite(bound) or not kept) else seen.reach
    return [*finding, Finding("in_bound", "options", None, bound, setting, declared_end, reason=reason)]


def _hidden_bits(seen: Input, bits: int, bound: float, port: BoundarySpec) -> tuple[int, str]:
    """Bits for a converter that may be there all the same, and why."""
    if bits and bound / codes_of(bits, seen.signed) < seen.smallest:
        return bits, "CONFIG's bits would be hidden, and stay"
    if 0 < port.in_step < seen.smallest:
        declared = bits_for(round(seen.reach / port.in_step), seen.signed)
        return declared, f"the device declares {port.in_step:.3g}, which would be hidden"
    return 0, "a finer converter cannot be told from none"


# --- output --------------------------------------------------------------------------------------------------------


def output_findings(
    seen: Output, options: Mapping[str, Any], port: BoundarySpec, signed: bool, largest: float
) -> list[Finding]:
    bits_before, bound_before = options.get("out_bits") or 0, options.get("out_bound", math.inf)
    declared_end = port.out_high if math.isfinite(port.out_high) else None
    short = f"answers reach {largest:.3g} at most, and no end was seen"
    if not seen.step.value:
        bits = found("out_bits", "options", exactly(0), bits_before, setting=0, note="answers lie on no grid")
        if seen.hidden:
            hidden = "the gain changes, and no grid was seen within single rows"
            bits = Finding("out_bits", "options", None, bits_before, reason=hidden)
        if seen.end is None:
            setting = None if bound_before >= largest else math.inf
            return [bits, Finding("out_bound", "options", None, bound_before, setting, declared_end, reason=short)]
        return [bits, found("out_bound", "options", seen.end, bound_before, declared=declared_end)]
    step = found("out_step", "derived", seen.step, None, declared=port.out_step)
    if seen.top is None:
        return [step, *_open_output(seen, bits_before, bound_before, port, signed, declared_end, short)]
    bits_found = bits_for(seen.top, signed)
    bound = seen.step * codes_of(bits_found, signed)
    note = "out_step times the largest code"
    if codes_of(bits_found, signed) != seen.top:
        note = f"answers end at code {seen.top}, which is no end of a converter of {bits_found} bits; the step is kept"
    return [
        step,
        found("out_bits", "options", exactly(bits_found), bits_before, setting=bits_found),
        found("out_bound", "options", bound, bound_before, declared=declared_end, note=note),
    ]


def _open_output(
    seen: Output, bits: int, bound: float, port: BoundarySpec, signed: bool, declared_end: float | None, short: str
) -> list[Finding]:
    """A step but no end: bits as CONFIG or the data sheet say, and the bound that gives the step."""
    reached = bits_for(round(float(abs(seen.values).max()) / seen.step.value), signed)
    kept, source = bits, "CONFIG"
    if not kept and declared_end is not None and port.out_step:
        kept, source = bits_for(round(declared_end / port.out_step), signed), "the device's declaration"
    if kept < reached:
        kept, source = reached, "the answers seen, at least"
    setting = seen.step.value * codes_of(kept, signed)
    return [
        Finding("out_bits", "options", None, bits, kept, reason=f"{short}: {kept} bits are from {source}"),
        Finding(
            "out_bound", "options", None, bound, setting, declared_end,
            reason=f"{short}: set so that {kept} bits give the step measured",
        ),
    ]  # fmt: skip
