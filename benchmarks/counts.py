"""Queries and stage evaluations of a backward pass through 64 stages of width 16: ledger, forecast and closed form.

A cut at boundary k from source j asks 2 M queries of j - k stages. So every tree asks 2 M (L - 1) queries a sample;
the chain evaluates as many stages, the bisection about log2 L times as many, and cutting every boundary from the loss
2 M L (L - 1) / 2. `--quick` is the same: it takes seconds.
"""

from __future__ import annotations

import torch
from _rows import Rows, arguments

from hzo_hil import Opaque, Stage
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.forecast import forecast
from hzo_hil.updates.delta import DeltaRule

DEPTH, WIDTH, BATCH = 64, 16, 2
QUERIES = 2 * WIDTH * (DEPTH - 1)
EVALUATIONS = {"chain": 2016, "bisect": 6144, "direct": 64512}


def counted(tree: str) -> tuple[dict[str, float], dict[str, float]]:
    """Queries and stage evaluations of one sample, by the ledger of a real backward pass and by the forecast."""
    device = FakeDevice.mlp([WIDTH] * (DEPTH + 1), activation="tanh", seed=1)
    module = Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in range(DEPTH)], tree=tree)
    (module(torch.full((BATCH, WIDTH), 0.1)) ** 2).sum().backward()
    spent = module.ledger.accounts["probes"]
    predicted = forecast(module.network, module.resolved, module.rules, BATCH)
    found = {"queries": spent.queries / BATCH, "stage evaluations": spent.stage_evaluations / BATCH}
    return found, {
        "queries": predicted.queries_per_sample,
        "stage evaluations": predicted.stage_evaluations_per_sample,
    }


def main() -> None:
    arguments(__doc__)
    rows = Rows()
    for tree, evaluations in EVALUATIONS.items():
        ledger, predicted = counted(tree)
        for what, expected in (("queries", QUERIES), ("stage evaluations", evaluations)):
            unit = f"{what} a sample"
            rows.row(f"{tree} ledger {what}", ledger[what], unit, target=f"== {expected}")
            rows.row(f"{tree} forecast {what}", predicted[what], unit, target=f"== {expected}")
            rows.row(
                f"{tree} ledger against forecast, {what}", ledger[what], unit, against="forecast",
                ratio=ledger[what] / predicted[what], target="== 1",
            )  # fmt: skip
    rows.exit()


if __name__ == "__main__":
    main()
