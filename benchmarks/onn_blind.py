"""Learning with nothing known of the chip, over several seeds, each with its own chip: parameter probing on Iris.

`--quick`: one seed. The test set has 30 flowers, so one answer is worth 3.3 points.
"""

from __future__ import annotations

import statistics

from _rows import Rows, arguments
from _runs import trained

SEEDS = 5


def main() -> None:
    quick = arguments(__doc__).quick
    rows = Rows()
    rows.environment()
    scores, walls = [], []
    for seed in range(1 if quick else SEEDS):
        summary = trained("onn_blind.yaml", seed)
        scores.append(summary["rows"]["in_loop"]["score"])
        walls.append(summary["wall_seconds"])
        rows.row(
            f"seed {seed}", scores[-1], "accuracy", queries=summary["queries"],
            device_seconds=summary["device_seconds"], wall_seconds=walls[-1],
        )  # fmt: skip
    rows.row("median", statistics.median(scores), "accuracy", range=[min(scores), max(scores)])
    rows.row("longest run", max(walls), "s")
    rows.exit()


if __name__ == "__main__":
    main()
