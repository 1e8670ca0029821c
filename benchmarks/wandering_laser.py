"""A laser whose power wanders by 10 % while a chip is trained, with and without reference queries.

Every stage's answer follows the power, with a period of a third of the run's device time. Rows of test accuracy of the
steady run, the wandering one, and the wandering one with references; and what each loses, paired over seeds, with a
95 % t interval. `--quick`: one seed, fewer epochs.
"""

from __future__ import annotations

import statistics

from _rows import Rows, arguments
from _runs import interval, trained

PERIOD_S = 12.0  # the run takes about 38 s of device time
WANDER = ["devices.chip.laser_wander=0.1", f"devices.chip.wander_period_s={PERIOD_S}"]
REFERENCES = ["devices.chip.health={reference: 2000}"]
WAYS = {"steady": [], "wandering": WANDER, "wandering, with references": [*WANDER, *REFERENCES]}


def main() -> None:
    given = arguments(__doc__)
    rows = Rows()
    seeds = range(1 if given.quick else 5)
    short = ["train.epochs=8", "devices.chip.wander_period_s=5.0"] if given.quick else []
    scores: dict[str, list[float]] = {}
    for way, overrides in WAYS.items():
        for seed in seeds:
            summary = trained(
                "onn_digits.yaml", seed, ["references=[]", *overrides, *(short if overrides else short[:1])]
            )
            scores.setdefault(way, []).append(summary["rows"]["in_loop"]["score"])
            health = summary["ledger"]["purposes"]["health"]["queries"]
            rows.row(
                f"{way} seed {seed}", scores[way][-1], "accuracy", queries=summary["queries"], health_queries=health
            )
        rows.row(f"{way} mean", statistics.mean(scores[way]), "accuracy")
    for way in list(WAYS)[1:]:
        lost = [a - b for a, b in zip(scores["steady"], scores[way], strict=True)]
        ends = {"interval": interval(lost)} if len(lost) > 1 else {}
        rows.row(
            f"lost: {way}", statistics.mean(lost), "accuracy", against="steady",
            target="<= 0.01" if "references" in way else None, seeds=len(lost), **ends,
        )  # fmt: skip
    rows.environment()
    rows.exit()


if __name__ == "__main__":
    main()
