"""A fit as text for people, as plain data, and as a configuration that opens the fitted simulator. Asks no device."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hzo_hil.devices.errors import BadInput
from hzo_hil.devicesections import DeviceSection
from hzo_hil.fit.asking import PURPOSE
from hzo_hil.fit.findings import Finding
from hzo_hil.fit.procedure import Fit

NAMES = (
    "power", "power_drift_std", "power_drift_tau_s", "laser_wander", "noise_std", "read_noise_std", "bandwidth",
    "integration_s",    "in_bits", "in_bound", "out_bits", "out_bound",
)  # fmt: skip
"""Every parameter that can be fitted. Which of them a device has depends on its kind."""


def check_names(only: Collection[str]) -> None:
    if unknown := sorted(set(only) - set(NAMES)):
        raise BadInput(
            f"--only: nothing called {', '.join(map(repr, unknown))} is fitted; choose from {', '.join(NAMES)}"
        )


def check_free(path: Path, force: bool) -> None:
    """BadInput where a file would be overwritten, or could not be written."""
    if path.exists() and not force:
        raise BadInput(f"{path} exists: --force overwrites it, or give another name (--out, --report)")
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"{path} cannot be written: its folder is not there, or it is a folder itself")


def chosen(fit: Fit, only: Collection[str]) -> list[Finding]:
    """Those asked for; steps, of which bits and bounds are made, stay with them."""
    follows = {"in_step": {"in_bits", "in_bound"}, "out_step": {"out_bits", "out_bound"}}
    return [f for f in fit.findings if not only or follows.get(f.name, {f.name}) & set(only)]


# --- a configuration -----------------------------------------------------------------------------------------------


def as_yaml(section: DeviceSection, seed: int, fit: Fit, findings: Collection[Finding]) -> str:
    """CONFIG with what was fitted, and comments that say how well; `open_device` reads it."""
    fields = section.model_dump(mode="json", exclude_unset=True)
    fields.setdefault("seed", seed)
    options = dict(section.options)
    notes: dict[str, str] = {}
    for finding in findings:
        if finding.place == "derived":
            continue
        notes[finding.name] = comment(finding)
        if finding.setting is not None:
            none = finding.name.endswith("_bits") and not finding.setting
            (options if finding.place == "options" else fields)[finding.name] = (
                None if none else _rounded(finding.setting)
            )
    fields.pop("options", None)
    account = fit.ledger.accounts[PURPOSE]
    drifts = fields.get("power_drift_std") or fields.get("laser_wander")
    if drifts and not (fields.get("query_s") or fields.get("settling_s")):
        fields["query_s"] = _rounded(fit.watched_s / account.queries)
        notes["query_s"] = "what a query took: a simulated power drifts with the device's work"
    head = (
        f"Fitted by `hzo-hil device fit` to {fit.identity}, on stage {fit.target.stage} ({fit.target.model.name}), with"
        f" {account.queries:,} queries. Brackets are 95 % intervals."
    )
    lines = _comment(head)
    if not fit.good:
        lines += _comment("BAD FIT: the device does not answer as this simulator does. " + verdicts(fit))
    for name, value in fields.items():
        lines += _entry(name, value, notes.pop(name, ""), "")
    lines.append("options:" if options else "options: {}")
    for name, value in options.items():
        lines += _entry(name, value, notes.pop(name, ""), "  ")
    for name, text in notes.items():  # not identified, and not in CONFIG either
        lines += _comment(f"{name}: {text}")
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any, note: str, indent: str) -> list[str]:
    import yaml

    flow = isinstance(value, (list, dict))
    text = yaml.safe_dump(
        [value] if not flow else value, default_flow_style=True, width=10_000, sort_keys=False
    ).strip()
    return [*_comment(note, indent), f"{indent}{name}: {text if flow else text[1:-1]}"]


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 116, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ") if text else []


def comment(finding: Finding) -> str:
    """In words, what is known of a parameter."""
    if finding.estimate is None:
        return f"not identified: {finding.reason}"
    note = f"; {finding.note}" if finding.note else ""
    return f"{_interval(finding)}{_unit(finding)} (CONFIG: {_short(finding.before)}){note}"


def _rounded(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) else value


# --- tables --------------------------------------------------------------------------------------------------------


def table(fit: Fit, findings: Collection[Finding]) -> str:
    rows = [("parameter", "fitted", "95 % interval", "CONFIG", "declared", "")]
    for f in findings:
        value = "-" if f.estimate is None else _short(f.setting) + _unit(f)
        interval = "not identified" if f.estimate is None else _interval(f)
        rows.append((f.name, value, interval, _short(f.before), _short(f.declared), f.reason or f.note))
    wide = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, wide, strict=False)), row[5]]).rstrip() for row in rows]
    account = fit.ledger.accounts[PURPOSE]
    lines += [
        "",
        f"{fit.identity}, stage {fit.target.stage} ({fit.target.model.name}): {account.queries:,} queries in"
        f" {account.calls:,} calls, {account.writes} writes, {account.device_seconds:.4g} device seconds"
        f" (purpose {PURPOSE}); watched for {fit.watched_s:.4g} s",
        *(v.text() for v in fit.verdicts),
    ]
    if not fit.good:
        lines.append(f"BAD FIT: {advice(fit)}")
    return "\n".join(lines)


def verdicts(fit: Fit) -> str:
    return "; ".join(v.text() for v in fit.verdicts if not v.ok)


def advice(fit: Fit) -> str:
    wrong = {v.name for v in fit.verdicts if not v.ok}
    if any("mean" in name for name in wrong):
        return (
            "dark answers do not lie around 0: subtract the dark level in the driver, or let `health: {reference: N}`"
            " correct it. Intervals of noise and steps do not hold"
        )
    if any("dark" in name for name in wrong):
        return (
            "dark answers scatter otherwise than the simulator's noise and converter can: noise that is not Gaussian,"
            " or a converter of another kind. Intervals do not hold"
        )
    return (
        "bright answers are not those of CONFIG's chip: errors of its phases or weights, a curved response, elements"
        " that drift, a gain faster than a block of queries. Noise and output step hold; power and input do not"
    )


def as_json(config: str, fit: Fit, findings: Collection[Finding]) -> dict[str, Any]:
    account = fit.ledger.accounts[PURPOSE]
    return {
        "config": config,
        "device": fit.identity,
        "stage": fit.target.stage,
        "stage_name": fit.target.model.name,
        "good": fit.good,
        "purpose": PURPOSE,
        "queries": account.queries,
        "calls": account.calls,
        "writes": account.writes,
        "device_seconds": account.device_seconds,
        "watched_s": fit.watched_s,
        "parameters": [_as_row(f) for f in findings],
        "test": [
            {
                "name": v.name, "ok": v.ok, "chi_square": v.chi_square, "freedom": v.freedom, "p": v.probability,
                "missed_rms": v.missed, "expected_rms": v.expected,
            }
            for v in fit.verdicts
        ],
    }  # fmt: skip


def _as_row(f: Finding) -> dict[str, Any]:
    ends = (None, None, None) if f.estimate is None else (f.estimate.value, f.estimate.low, f.estimate.high)
    return {
        "name": f.name, "identified": f.estimate is not None, "value": ends[0], "low": ends[1], "high": ends[2],
        "unit": f.unit, "config": f.before, "setting": f.setting, "declared": f.declared, "place": f.place,
        "note": f.note, "reason": f.reason,
    }  # fmt: skip


def write_text(path: Path, text: str) -> None:
    from hzo_hil.runfiles import write_bytes

    write_bytes(path, text.encode("utf-8"))


def report_text(found: Mapping[str, Any]) -> str:
    from hzo_hil.runfiles import plain

    return json.dumps(plain(found), indent=2, allow_nan=False) + "\n"


def _interval(f: Finding) -> str:
    assert f.estimate is not None
    if f.estimate.low == f.estimate.high:
        return "exactly"
    digits = _digits(f.estimate.high - f.estimate.low, f.estimate.value)
    return f"[{f.estimate.low:.{digits}g}, {f.estimate.high:.{digits}g}]"


def _digits(wide: float, value: float) -> int:
    """So many that the width of the interval shows in two of them."""
    if not (math.isfinite(wide) and wide > 0 and value):
        return 3
    return min(9, max(3, 2 + math.ceil(math.log10(abs(value) / wide))))


def _unit(f: Finding) -> str:
    return f" {f.unit}" if f.unit else ""


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
