"""A device that knows no signs against one that does: inputs in 0..1 and intensities read, on the digits.

Rows of test accuracy for emulator_digits (signed) and crossbar_intensity (pairs of ports), and their difference, paired
over seeds, with a 95 % t interval. `--quick`: two seeds, fewer epochs.
"""

from __future__ import annotations

import statistics

from _rows import Rows, arguments
from _runs import interval, trained

CONFIGS = ("emulator_digits.yaml", "crossbar_intensity.yaml")


def main() -> None:
    given = arguments(__doc__)
    rows = Rows()
    seeds = range(2 if given.quick else 5)
    short = ["train.epochs=10"] if given.quick else []
    scores: dict[str, list[float]] = {}
    for config in CONFIGS:
        for seed in seeds:
            summary = trained(config, seed, short)
            scores.setdefault(config, []).append(summary["rows"]["in_loop"]["score"])
            rows.row(f"{config} seed {seed}", scores[config][-1], "accuracy", queries=summary["queries"])
        rows.row(f"{config} mean", statistics.mean(scores[config]), "accuracy", interval=interval(scores[config]))
    lost = [a - b for a, b in zip(*scores.values(), strict=True)]
    rows.row(
        "lost by knowing no signs", statistics.mean(lost), "accuracy", against=CONFIGS[0], target="<= 0.02",
        interval=interval(lost), seeds=len(lost),
    )  # fmt: skip
    rows.environment()
    rows.exit()


if __name__ == "__main__":
    main()
