"""A calibration as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hzo_hil.calibration import Calibration, Measured


def calibration_table(found: Calibration) -> str:
    """Figures with their 95 % intervals, for people."""
    lines = [
        f"devices      {', '.join(found.devices)}",
        f"asked        {found.queries:,} queries, {found.writes} writes, after two forward passes of {found.rows} rows",
        "",
        f"{'stage':>5}{'read noise':>26}{'gain':>26}{'curvature per eps^2':>28}{'likeness':>10}{'step':>10}",
    ]
    for number, s in enumerate(found.stages, start=1):
        lines.append(
            f"{number:>5}{_with(s.noise):>26}{_with(s.gain):>26}{_with(s.curvature):>28}{s.likeness:>10.2f}"
            f"{s.out_step:>10.3g}"
        )
    rows: Mapping[str, Any] = {
        "noise growth": _with(found.noise_growth) + " variance per squared amplitude",
        "carried": _with(found.carried) + " of a stage's noise variance flows on inside a segment",
        "bending": _with(found.bending) + " of later stages' curvature adds to a segment's",
        "alignment": _with(found.alignment) + " cosine between truncation and what is truncated",
        "call": _with(found.call_s) + " s",
        "evaluation": _with(found.evaluation_s) + " s a stage and row",
        "write": _with(found.settling_s) + " s",
        "drift": f"{_with(found.drift)} per {found.drift_unit}",
    }
    lines += ["", *(f"{name:<13}{value}" for name, value in rows.items())]
    return "\n".join(lines + [f"warning: {text}" for text in found.warnings()])


def _with(m: Measured) -> str:
    if m.low == m.value == m.high:
        return f"{m.value:.3g}"
    return f"{m.value:.3g} ({m.low:.2g}..{m.high:.2g})"
