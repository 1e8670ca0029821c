"""Results as text for people."""

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
    if summary["stopped"]:
        lines.append(f"stopped early: {summary['stopped']}")
    lines.append(f"run folder: {summary['run_dir']}")
    return "\n".join(lines)


def plan_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"tree                          {found['tree']}",
        f"queries per sample            {found['queries_per_sample']:,}",
        f"stage evaluations per sample  {found['stage_evaluations_per_sample']:,}",
        f"queries per batch, besides    {found['queries_per_batch']:,}",
        "predicted error               not known before calibration",
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


def _account(name: str, a: Mapping[str, Any]) -> str:
    counts = f"{a['queries']:>14,}{a['stage_evaluations']:>14,}{a['calls']:>8,}{a['writes']:>8,}"
    return f"{name:<16}{counts}{a['device_seconds']:>11.3f}"
