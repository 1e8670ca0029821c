"""Results as text tables for the terminal. The page in HTML is `hzo_hil.report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "deployed": "(a) trained on the ideal twin, then written to the device",
    "in_loop": "(b) trained in the loop",
    "ideal": "(c) ideal twin, noise-free: the reference",
    "physics_aware": "(d) physics-aware: device forward, ideal twin backward",
}


def table(summary: Mapping[str, Any]) -> str:
    """The outcome of a run: score, queries, device seconds and wall time of each way of training."""
    metric = summary["metric"]
    head = f"{'':<58}{'test ' + metric:>16}{'queries':>14}{'device s':>11}{'wall s':>9}"
    lines = [head]
    for name, label in LABELS.items():
        row = summary["rows"].get(name)
        if row is None:
            continue
        score = (
            "-" if row["score"] is None else f"{row['score']:.1%}" if metric == "accuracy" else f"{row['score']:.4g}"
        )
        lines.append(
            f"{label:<58}{score:>16}{row['queries']:>14,}{row['device_seconds']:>11.1f}{row['wall_seconds']:>9.1f}"
        )
    for name, error in summary.get("gradient_error", {}).items():
        measured = error["measured_noise"]
        lines.append(
            f"{name}: gradient error predicted at the start {error['predicted']:.3g}, of it noise"
            f" {error['predicted_noise']:.3g}; noise measured at the end"
            f" {'-' if measured is None else f'{measured:.3g}'} (two estimates of one minibatch)"
        )
    if summary["stopped"]:
        lines.append(f"stopped early: {summary['stopped']}")
    lines.append(f"run folder: {summary['run_dir']}")
    return "\n".join(lines)


def plan_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"credit                        {found['credit']} (tier {found['tier']})",
        *([f"tree                          {found['tree']}"] if found["credit"] == "hzo" else []),
        f"queries per sample            {found['queries_per_sample']:,}",
        f"stage evaluations per sample  {found['stage_evaluations_per_sample']:,}",
        f"queries per batch, besides    {found['queries_per_batch']:,}",
        *(["a step may ask fewer: counts are the most it asks"] if found["at_most"] else []),
        *([f"predicted gradient error      {_errors(found['predicted_error'])}"] if found["credit"] == "hzo" else []),
        *(line for layer in found["layers"] for line in _beside(layer)),
        "",
        f"{'batch of ' + str(found['batch_size']):<16}{'queries':>14}{'evaluations':>14}"
        f"{'calls':>8}{'writes':>8}{'device s':>11}",
    ]
    for name, layer in ((layer["layer"], layer) for layer in found["layers"]):
        for purpose, a in layer["purposes"].items():
            lines.append(_account(f"{name} {purpose}", a))
    if found["before"]["queries"]:
        lines.append(_account("before training", found["before"]))
    lines += [_account("step", found["step"]), _account("epoch", found["epoch"])]
    return "\n".join(lines)


def _errors(found: Any) -> str:
    if found is None:
        return "not known before calibration (method.plan: auto calibrates)"
    return ", ".join(f"{e:.3g}" for e in (found if isinstance(found, list) else [found]))


def _beside(layer: Mapping[str, Any]) -> list[str]:
    """A planned layer's prediction and the named trees beside it, each with steps and repeats of its own."""
    if layer["predicted_error"] is None:
        return []
    parts, unit = layer["predicted"], layer["unit"]
    lines = [
        "",
        f"{layer['layer']}: calibrated with {layer['calibration']['queries']:,} queries (asked now)",
        f"{'':<16}{'error':>10}{'probes a step, ' + unit:>36}",
        f"{'auto':<16}{parts['error']:>10.3g}{parts['cost']:>36.4g}",
    ]
    for name, other in layer["beside"].items():
        figures = "cannot reach the goal" if other is None else f"{other['error']:>10.3g}{other['cost']:>36.4g}"
        lines.append(f"{name:<16}{figures}")
    if layer["probes_cost"] > parts["cost"]:
        lines.append(
            f"{'':<16}{'':>10}{layer['probes_cost'] - parts['cost']:>36.4g}  more for the gradient of its inputs"
        )
    energies = [f"{name} {parts[name] ** 0.5:.3g}" for name in ("noise", "truncation", "forward")]
    lines.append(f"of auto's error: {', '.join(energies)} (squares add)")
    lines.append("cut  source  probes      eps        repeats")
    chosen = {k: (layer["probes"][k], layer["eps"][k], layer["repeats"][k]) for k, _ in layer["cuts"]}
    lines += [f"{k:>3}  {j:>6}  {chosen[k][0]:<10}  {chosen[k][1]:<9.4g}  {chosen[k][2]}" for k, j in layer["cuts"]]
    return lines + [f"warning: {text}" for text in layer["warnings"]]


def _account(name: str, a: Mapping[str, Any]) -> str:
    counts = f"{a['queries']:>14,}{a['stage_evaluations']:>14,}{a['calls']:>8,}{a['writes']:>8,}"
    return f"{name:<16}{counts}{a['device_seconds']:>11.3f}"
