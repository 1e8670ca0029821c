"""Chips of which nothing is calibrated learn Iris, vowels and digits: biases, couplers, heaters, crosstalk unknown.

`iris` (8 ports) and `vowels` (16; 259 samples): parameter shift against the same network trained ideally, by
backpropagation on ideal twins, 5 folds a seed. `digits03` (32 ports, biases U(-0.3, 0.3) rad): the learned twin against
the ideal twin as leaf rule. `digits10`: the learned twin at biases U(-1, 1), where the ideal one learns nothing, with
probes for the targets and without any (targets through the learned twins as well). All measure their meshes node by
node first; what that takes is in the row.

Each item and seed is a piece that can be run by itself (`--item vowels --seed 3`), and rows of pieces may be collected
in one file, of which `--summary FILE` prints medians and ranges with their targets. `--quick`: Iris, one seed, two
folds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _one_thread  # noqa: F401 - before numpy
from _folds import FOLDS
from _rows import Rows
from _runs import trained

SEEDS = 5
ITEMS = ("iris", "vowels", "digits03", "digits10")
NEAR, WELL, ABOVE = ">= -0.03", ">= 0.94", ">= 0.04"


def spent(summary: dict[str, Any]) -> dict[str, Any]:
    purposes = summary["ledger"]["purposes"]
    return {
        "queries": summary["queries"],
        "writes": sum(a["writes"] for a in purposes.values()),
        "calibration_queries": purposes["calibration"]["queries"],
        "calibration_writes": purposes["calibration"]["writes"],
        "device_seconds": summary["device_seconds"],
        "wall_seconds": summary["wall_seconds"],
    }


def folds(rows: Rows, item: str, seed: int, count: int = FOLDS) -> None:
    """Shift and ideal, mean over the folds; what is spent is that of one fold, and the same in each."""
    scores: dict[str, list[float]] = {"in_loop": [], "ideal": []}
    last: dict[str, Any] = {}
    for number in range(count):
        overrides = [f"data.name='_folds:{item}'", f"data.options={{number: {number}, seed: {seed}}}"]
        last = trained(f"raw_{item}.yaml", seed, overrides)
        for way, found in scores.items():
            found.append(last["rows"][way]["score"])
    shift, ideal = (statistics.mean(scores[way]) for way in ("in_loop", "ideal"))
    rows.row(f"{item} seed {seed} ideal", ideal, "accuracy", folds=scores["ideal"])
    rows.row(f"{item} seed {seed} shift", shift, "accuracy", folds=scores["in_loop"], **spent(last))
    rows.row(f"{item} seed {seed} shift - ideal", shift - ideal, "accuracy", against="ideal", target=NEAR)


def digits(rows: Rows, item: str, seed: int, overrides: Sequence[str]) -> None:
    """The learned twin; for small biases also the ideal twin as leaf rule."""
    own = SMALL if item == "digits03" else []
    summary = trained("raw_digits.yaml", seed, [*own, *overrides])
    learned = summary["rows"]["in_loop"]["score"]
    events = {n: v for n, v in summary["ledger"]["events"].items() if n.startswith("twin_")}
    rows.row(
        f"{item} seed {seed} learned twin", learned, "accuracy", target=WELL, events=events, best=summary["best"],
        **spent(summary),
    )  # fmt: skip
    if item == "digits10":
        summary = trained("raw_digits.yaml", seed, [*own, "method.credit=twin", *overrides])
        rows.row(
            f"{item} seed {seed} learned twin, no probes", summary["rows"]["in_loop"]["score"], "accuracy", target=WELL,
            best=summary["best"], **spent(summary),
        )  # fmt: skip
    if item == "digits03":
        summary = trained("raw_digits.yaml", seed, [*own, "method.leaf=autograd", *overrides])
        ideal = summary["rows"]["in_loop"]["score"]
        rows.row(f"{item} seed {seed} ideal twin", ideal, "accuracy", **spent(summary))
        rows.row(
            f"{item} seed {seed} learned - ideal twin", learned - ideal, "accuracy", against="ideal twin", target=ABOVE
        )


SMALL = ["devices.chip.options.phase_bias=0.3"]


def piece(rows: Rows, item: str, seed: int, overrides: Sequence[str]) -> None:
    if item == "vowels" and not os.environ.get("HZO_DATA"):
        rows.row("vowels", "skipped", "", why="HZO_DATA names no folder with hillenbrand-vowels")
    elif item in ("iris", "vowels"):
        folds(rows, item, seed)
    else:
        digits(rows, item, seed, overrides)


def summary(rows: Rows, file: Path) -> None:
    """Medians and ranges over the seeds of the rows in a file."""
    found: dict[str, dict[int, tuple[float, str | None]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        item, _, rest = row["case"].partition(" seed ")
        if rest:
            seed, _, what = rest.partition(" ")
            # A piece that was run again counts as it came out last.
            found.setdefault(f"{item} {what}", {})[int(seed)] = row["value"], row.get("target")
    for case, seeds in found.items():
        values = [value for value, _ in seeds.values()]
        target = next(iter(seeds.values()))[1]
        rows.row(
            f"{case}, median", statistics.median(values), "accuracy", target=target, range=[min(values), max(values)],
            seeds=len(values),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less work, within a minute or two")
    parser.add_argument("--item", choices=ITEMS, action="append", help="one item (again for more; default: all)")
    parser.add_argument("--seed", type=int, action="append", help="one seed (again for more; default: 0 to 4)")
    parser.add_argument("--set", action="append", default=[], help="change the digits' configuration, as in train")
    parser.add_argument("--summary", type=Path, help="medians of the rows in this file; nothing is run")
    given = parser.parse_args()
    rows = Rows()
    if given.summary:
        summary(rows, given.summary)
        rows.exit()
    rows.environment()
    if given.quick:
        folds(rows, "iris", 0, 2)
        rows.exit()
    for item in given.item or ITEMS:
        for seed in given.seed or range(SEEDS):
            piece(rows, item, seed, given.set)
    rows.exit()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
