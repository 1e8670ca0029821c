"""The main job over several seeds: four ways of training the same imperfect optical chip, each seed with its own chip.

Rows of accuracy for (a) trained on the ideal twin and then written to the chip, (b) in the loop by HZO, (c) the ideal
twin alone, (d) physics-aware; then their differences, paired over seeds, with a 95 % t interval. `--biases` adds the
same for other phase biases: at 0.05 rad (d) is expected to reach (b) without a single probe, and from about 0.3 rad
on the ideal twin fails as a leaf rule.

`--quick`: one seed, fewer epochs of larger batches, the same targets, no intervals.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from _rows import Rows, arguments
from _runs import interval, trained

WAYS = {"a": "deployed", "b": "in_loop", "c": "ideal", "d": "physics_aware"}
DIFFERENCES = (("b", "a"), ("b", "d"), ("c", "b"))
BIAS = 0.15  # of the configuration, rad
TARGETS = {("b", "a"): ">= 0.08", ("b", "d"): ">= 0.08", ("c", "b"): "<= 0.03"}
SEEDS, OTHER_BIASES, OTHER_SEEDS = 5, (0.05, 0.3), 3
QUICK_SEED = 1
QUICK = ("train.epochs=12", "train.batch_size=64", "train.optimizer.lr=0.02")


def table(rows: Rows, bias: float, seeds: Sequence[int], overrides: Sequence[str] = ()) -> None:
    """All rows of one phase bias; with targets where it is the configuration's own."""
    own = bias == BIAS
    scores: dict[str, list[float]] = {way: [] for way in WAYS}
    walls = []
    change = [] if own else [f"devices.chip.options.phase_bias={bias}"]
    for seed in seeds:
        summary = trained("onn_digits.yaml", seed, [*change, *overrides])
        for way, name in WAYS.items():
            scores[way].append(summary["rows"][name]["score"])
            rows.row(f"bias {bias:g} seed {seed} ({way}) {name}", scores[way][-1], "accuracy")
        walls.append(summary["wall_seconds"])
        rows.row(
            f"bias {bias:g} seed {seed} training in the loop", summary["queries"], "queries",
            device_seconds=summary["device_seconds"], stage_evaluations=summary["stage_evaluations"],
            wall_seconds=walls[-1],
        )  # fmt: skip
    for way, name in WAYS.items():
        ends = {"interval": interval(scores[way])} if len(seeds) > 1 else {}
        target = ">= 0.94" if own and way == "b" else None
        rows.row(f"bias {bias:g} mean ({way}) {name}", statistics.mean(scores[way]), "accuracy", target=target, **ends)
    for x, y in DIFFERENCES:
        each = [p - q for p, q in zip(scores[x], scores[y], strict=True)]
        ends = {"interval": interval(each)} if len(seeds) > 1 else {}
        rows.row(
            f"bias {bias:g} mean ({x}) - ({y})", statistics.mean(each), "accuracy", against=WAYS[y],
            target=TARGETS[x, y] if own else None, seeds=len(seeds), **ends,
        )  # fmt: skip
    rows.row(f"bias {bias:g} longest run", max(walls), "s", target="< 180" if own else None)


def main() -> None:
    given = arguments(__doc__, biases="also phase biases of " + " and ".join(f"{b:g}" for b in OTHER_BIASES) + " rad")
    rows = Rows()
    rows.environment()
    if given.quick:
        table(rows, BIAS, [QUICK_SEED], QUICK)
    else:
        table(rows, BIAS, range(SEEDS))
    if given.biases:
        for bias in OTHER_BIASES:
            table(rows, bias, range(OTHER_SEEDS))
    rows.exit()


if __name__ == "__main__":
    main()
