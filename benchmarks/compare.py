"""Every method on the same network, data, device and budget: `configs/compare_*.yaml`, tuned, run, reported and kept.

For each study named: each method's settings are looked for by the same number of trials (`hzo-hil tune`), the study
with the best of them is run, its report written, and `benchmarks/results/<study>.json` says what every run reached and
spent, with the settings found, seeds, commit, machine and wall time. Rows: mean test accuracy of each method over the
seeds, its 95 % interval, its tier, and the ratio to the best of its own tier. Tuning and runs go on where they stopped
when the same command is given again; `--quick` has two trials, one seed and a twentieth of the budget.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from _rows import ROOT, Rows

from hzo_hil.environment import environment, git_commit
from hzo_hil.report.command import write_report
from hzo_hil.report.intervals import mean_interval
from hzo_hil.runfiles import plain, read_json, write_json
from hzo_hil.study.planning import plan_study
from hzo_hil.study.running import run_study
from hzo_hil.study.studyfile import StudySection, load_study_file, plain_study
from hzo_hil.study.table import load_study
from hzo_hil.study.tuning import tuned_study

STUDIES = ("compare_digits", "compare_mnist", "compare_onn")
TIERS = ("loss", "taps", "inject", "twin", "graph")
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"
SPENT = ("asked", "stage_evaluations", "device_seconds", "wall_seconds", "steps")
"""`asked`: queries of training, as the budget counts them; evaluation is in the others."""


def given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a look: its numbers mean nothing, and nothing is kept")
    parser.add_argument("--work", type=Path, default=Path("studies"), help="where the studies' folders are")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    found = parser.parse_args()
    if unknown := sorted(set(found.studies) - set(STUDIES)):
        parser.error(f"no such study: {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    return found


def tuned(name: str, folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """How settings were found; the study that has them is `study.yaml` in `folder`, this is `tuning.json`."""
    kept = folder / "tuning.json"
    if kept.exists():
        return read_json(kept)
    section = load_study_file(ROOT / "configs" / f"{name}.yaml")
    if quick:
        budget = {"budget.max_queries": section.set["budget.max_queries"] // 20}
        seed = section.axes["seed"].model_copy(update={"values": [0]})
        section = section.model_copy(update={"set": {**section.set, **budget}, "axes": {**section.axes, "seed": seed}})
    start = time.perf_counter()
    study, rows = tuned_study(section, 2 if quick else None, lambda t: print(t, file=sys.stderr, flush=True), workers)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(plain_study(study), sort_keys=False), encoding="utf-8")
    write_json(kept, plain({"seconds": time.perf_counter() - start, "tune": section.tune, "methods": rows}))
    return read_json(kept)


def compared(name: str, rows: Rows, work: Path, quick: bool, workers: int) -> None:
    folder = work / name
    tuning = tuned(name, folder, quick, workers)
    section = load_study_file(folder / "study.yaml", [f"executor.workers={workers}"])
    place = folder / "study"
    seconds = run(section, place, folder / "seconds.json")
    table = load_study(place)
    table["asked"] = [_asked(place / "runs" / run / "run" / "summary.json") for run in table["run"]]
    write_report([place], folder / "report", 0.95)
    tiers: dict[str, str] = dict(section.axes["method"].tiers)
    methods = [_method(m, tiers[m], table[(table["method"] == m) & (table["status"] == "done")]) for m in tiers]
    failed = [[str(r.method), int(r.seed), str(r.error)] for r in table[table["status"] != "done"].itertuples()]
    best = {t: max((m["mean"] or 0 for m in methods if m["tier"] == t), default=0) for t in tiers.values()}
    for m in methods:
        if m["mean"] is None:
            rows.row(f"{name}: {m['method']}", "every run failed", "", tier=m["tier"])
            continue
        rows.row(
            f"{name}: {m['method']}", m["mean"], "test accuracy", against=f"best of tier {m['tier']}",
            ratio=m["mean"] / best[m["tier"]], interval=m["interval"], **{n: m[n] for n in SPENT},
        )  # fmt: skip
    rows.row(f"{name}: longest run", float(table["wall_seconds"].max()), "s", target="<= 60")
    rows.row(f"{name}: runs that failed", len(failed), "runs")
    if quick:
        return
    write_json(
        RESULTS / f"{name}.json",
        plain({
            "study": name, "command": f"python benchmarks/compare.py {name}", "commit": git_commit(ROOT),
            "environment": {k: v for k, v in environment().items() if k not in ("git", "command")},
            "config": yaml.safe_load((place / "study.yaml").read_text(encoding="utf-8")),
            "seeds": section.axes["seed"].values, "tune": tuning["tune"], "tuning": tuning["methods"],
            "wall_seconds": {"tuning": tuning["seconds"], "runs": round(seconds, 1), "workers": workers},
            "methods": methods, "failed": failed,
            "runs": table[["method", "seed", "status", "score", "best", *SPENT, "writes", "calls"]].to_dict("records"),
        }),
    )  # fmt: skip
    draw(methods, FIGURES / f"{name}.png")
    for tier in ("inject", "loss"):
        curves = folder / "report" / "figures" / f"curve_score_queries_{tier}.png"
        if curves.exists():
            shutil.copy(curves, FIGURES / f"{name}_{tier}.png")


def run(section: StudySection, place: Path, kept: Path) -> float:
    """Do the runs that are missing. Seconds of this time and of those before, which `kept` holds."""
    before: float = read_json(kept) if kept.exists() else 0.0
    seconds = before + float(run_study(plan_study(section), place, resume=place.exists())["seconds"])
    write_json(kept, seconds)
    return seconds


def draw(methods: list[dict[str, Any]], path: Path) -> None:
    """Mean accuracy against what training cost, a colour a tier."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    costs = {
        "asked": "queries of training",
        "stage_evaluations": "stage evaluations",
        "device_seconds": "device seconds",
    }
    colours = {tier: f"C{k}" for k, tier in enumerate(TIERS)}
    for axes, (cost, label) in zip(figure.subplots(1, 3, sharey=True), costs.items(), strict=True):
        shown = sorted((m for m in methods if m["mean"] is not None), key=lambda m: m["mean"])
        for tier in dict.fromkeys(m["tier"] for m in reversed(shown)):
            those = [m for m in shown if m["tier"] == tier]
            axes.plot([m[cost] for m in those], [m["mean"] for m in those], "o", color=colours[tier], label=tier)
        above = -1.0
        for m in shown:  # names never closer than lines of text are
            above = max(m["mean"] - 0.008, above + 0.022)
            axes.annotate(
                m["method"], (m[cost], m["mean"]), (1.03, above), textcoords=axes.get_yaxis_transform(), fontsize=6,
                color=colours[m["tier"]], arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "0.6"},
            )  # fmt: skip
        axes.set(xlabel=label, xscale="log" if cost == "device_seconds" else "linear")
        if cost != "device_seconds":
            axes.ticklabel_format(axis="x", style="sci", scilimits=(3, 3))
    figure.axes[0].set_ylabel("test accuracy, mean over seeds")
    figure.axes[0].legend(fontsize="small", title="tier")
    figure.savefig(path)


def _asked(summary: Path) -> float:
    if not summary.exists():
        return float("nan")
    purposes: dict[str, Any] = read_json(summary)["ledger"]["purposes"]
    return float(sum(account["queries"] for purpose, account in purposes.items() if purpose != "evaluation"))


def _method(name: str, tier: str, runs: Any) -> dict[str, Any]:
    scores = [float(s) for s in runs["score"]]
    if not scores:
        return {"method": name, "tier": tier, "mean": None}
    interval = mean_interval(scores)
    spent = {n: float(runs[n].mean()) for n in SPENT}
    return {
        "method": name, "tier": tier, "mean": interval.middle, "interval": [interval.low, interval.high],
        "least": min(scores), "most": max(scores), "seeds": len(scores), **spent,
    }  # fmt: skip


def main() -> None:
    asked = given()
    rows = Rows()
    rows.environment()
    with tempfile.TemporaryDirectory() as thrown:
        for name in asked.studies or STUDIES:
            compared(name, rows, Path(thrown) if asked.quick else asked.work, asked.quick, asked.workers)
    rows.exit()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here (not with --quick)")
