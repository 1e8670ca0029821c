"""Queries until a residual network of 8 stages, 256 wide, reads digits at 96 %: probing all, a learned subspace, or
only what is not declared.

Every way trains the same network from the same weights on the same batches with the same optimiser and schedule, and
counts every query but evaluation. Reached is the first of two evaluations in a row of at least 96 % on 600 test
digits (one every 2 steps); where that never happens all queries of the run count and the row says so. Nothing is
learnt on the host. `full` and `subspace` know nothing of a stage; `declared` is told that each branch is linear and
then element-wise, and has the skip on the host. Gradient cosines are to autograd's gradient at the same weights and
batch, averaged over the run. `--quick`: one seed, fewer steps. `--seed 3`, `--ways full subspace`: part of it;
`--summary FILE`: medians of rows that were kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _one_thread  # noqa: F401
import torch
from _residual import exact, network
from _rows import Rows
from torch import Tensor, nn

from hzo_hil.build import opaques
from hzo_hil.data import load
from hzo_hil.streams import torch_generator

WIDTH, BATCH, RATE, STEPS, EVERY, ENOUGH = 256, 96, 1e-3, 60, 2, 0.96
WAYS = {
    "full": ("opaque", "coordinate"),
    "subspace": ("opaque", "subspace:9+3"),
    "declared": ("declared", "coordinate"),
}
SAVING = {"subspace": ">= 8", "declared": ">= 50"}
SEEDS, QUICK_STEPS = 10, 30


@dataclass
class Run:
    queries: int = 0
    step: int | None = None
    accuracy: float = 0.0
    cosines: list[float] = field(default_factory=list)
    deepest: list[float] = field(default_factory=list)
    seconds: float = 0.0


def cosine(found: list[Tensor], wanted: list[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in ts]).double() for ts in (found, wanted))
    return float(a @ b / (a.norm() * b.norm()))


def spent(model: nn.Module) -> int:
    ledgers = [m.ledger for m in opaques(model)]
    return sum(ledger.total.queries - ledger.accounts["evaluation"].queries for ledger in ledgers)


def trained(way: str, seed: int, steps: int) -> Run:
    form, probes = WAYS[way]
    data = load("digits", flatten=True)
    x, y, x_test, y_test = (torch.as_tensor(v) for v in (data.x_train, data.y_train, data.x_test, data.y_test))
    x, x_test = x.float() - x.float().mean(), x_test.float() - x.float().mean()
    model = network(form, WIDTH, x.shape[1], 10, seed, probes)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    shuffle = torch_generator(seed, "batches")
    run, start, rows = Run(), time.perf_counter(), x[:0]
    order: list[Tensor] = []
    before: tuple[int, int] | None = None
    for step in range(1, steps + 1):
        if not order:
            order = [part for part in torch.randperm(len(x), generator=shuffle).split(BATCH) if len(part) == BATCH]
        chosen = order.pop()
        rows, labels = x[chosen], y[chosen].long()

        def loss(outputs: Tensor, labels: Tensor = labels) -> Tensor:
            return nn.functional.cross_entropy(outputs, labels)

        optimiser.zero_grad()
        loss(model(rows)).backward()
        found, wanted = [p.grad for p in model.parameters()], exact(model, rows, loss)
        run.cosines.append(cosine(found, wanted))
        run.deepest.append(cosine(found[:2], wanted[:2]))
        optimiser.step()
        schedule.step()
        if step % EVERY == 0:
            with torch.no_grad():
                run.accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
            good = run.accuracy >= ENOUGH
            if good and before is not None and run.step is None:
                run.queries, run.step = before
            before = (spent(model), step) if good else None
    if run.step is None:
        run.queries = spent(model)
    run.seconds = time.perf_counter() - start
    return run


def show(rows: Rows, way: str, seed: int, run: Run) -> None:
    rows.row(
        f"seed {seed} {way}", run.queries, "queries to 96 %", step=run.step if run.step is not None else "not reached",
        final_accuracy=run.accuracy, cosine=statistics.mean(run.cosines), deepest_cosine=statistics.mean(run.deepest),
        seconds=round(run.seconds, 1),
    )  # fmt: skip


def kept(file: Path) -> dict[str, dict[int, Run]]:
    """The runs whose rows are in a file, by way and seed."""
    found: dict[str, dict[int, Run]] = {way: {} for way in WAYS}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["case"].startswith("seed "):
            _, seed, way = row["case"].split(" ")
            step = row["step"] if isinstance(row["step"], int) else None
            found[way][int(seed)] = Run(
                row["value"], step, row["final_accuracy"], [row["cosine"]], [row["deepest_cosine"]], row["seconds"]
            )
    return found


def middle(of: list[Any]) -> float:
    return float(statistics.median(of))


def summary(rows: Rows, runs: dict[str, dict[int, Run]], steps: int) -> None:
    """Medians and ranges of each way against `full`, over the seeds that both ran."""
    for way, target in SAVING.items():
        pairs = [(runs["full"][seed], run) for seed, run in runs[way].items() if seed in runs["full"]]
        if not pairs:
            continue
        full, mine = ([pair[k] for pair in pairs] for k in (0, 1))
        saved = [f.queries / r.queries for f, r in pairs]
        rows.row(
            f"{way} median", middle([r.queries for r in mine]), "queries to 96 %", against="full",
            ratio=middle(saved), target=target, range=[min(saved), max(saved)], seeds=len(pairs), steps=steps,
            reached=sum(r.step is not None for r in mine), full_reached=sum(r.step is not None for r in full),
            cosine=middle([statistics.mean(r.cosines) for r in mine]),
            deepest_cosine=middle([statistics.mean(r.deepest) for r in mine]),
        )  # fmt: skip
        lost = [f.accuracy - r.accuracy for f, r in pairs]
        rows.row(
            f"{way} final accuracy lost, median", middle(lost), "accuracy", against="full", target="<= 0.01",
            full=middle([f.accuracy for f in full]), range=[min(lost), max(lost)],
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed and fewer steps")
    parser.add_argument(
        "--seed", type=int, action="append", help=f"one seed (again for more; default: 0 to {SEEDS - 1})"
    )
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS), help="full is always one")
    parser.add_argument("--summary", type=Path, help="medians of the rows in this file; nothing is run")
    given = parser.parse_args()
    rows = Rows()
    if given.summary:
        summary(rows, kept(given.summary), STEPS)
        rows.exit()
    seeds, steps = ([0], QUICK_STEPS) if given.quick else (given.seed or range(SEEDS), STEPS)
    rows.environment()
    runs: dict[str, dict[int, Run]] = {way: {} for way in WAYS}
    for seed in seeds:
        for way in (way for way in WAYS if way == "full" or way in given.ways):
            runs[way][seed] = trained(way, seed, steps)
            show(rows, way, seed, runs[way][seed])
    summary(rows, runs, steps)
    rows.exit()


if __name__ == "__main__":
    main()
