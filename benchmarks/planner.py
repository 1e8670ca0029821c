"""The planner against exhaustive trial: gradient error at equal device cost, 18 regimes of noise, overhead and depth.

A regime is a network of tanh stages of width 8 (orthogonal weights) on a fake device with read noise of 0.001, 0.01 or
0.05 per element (activations are about 0.3), an overhead of 0, 10 or 100 stage evaluations a query (a fixed time a
call, calls of 128 rows; repeats are sent as copies), and 16 or 64 stages; its budget is 1, 8 or 64 times what the
chain's probes cost, in declared device seconds. `auto` plans for the budget after a calibration of its own, a
thousandth of whose device time, as if the plan served 1,000 steps, is counted with each step. Against it: bisect, chain
and direct, each with coordinate and Hadamard probes and six steps, with as many repeats as the same cost allows: all 36
are tried on one minibatch, the best four on all, with the minibatches and noise seeds of `auto`. Error is ||g_hat - g||
/ ||g|| of the gradient of all parameters against autograd in float64, root mean square over 5 seeds, with their median
and range beside it.

Also: amplitude capped at one step of the input converters, against bisect with coordinate probes at that step; what
is planned where there is no noise; and the error predicted against the one measured, in every regime.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import Any

import _one_thread  # noqa: F401 - before numpy
import numpy as np
import torch
from _rows import Rows, arguments

from hzo_hil import Opaque, Stage
from hzo_hil.autoplan import Auto
from hzo_hil.devices.api import BoundarySpec, ParameterSpec, StageSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, FakeStage, Script
from hzo_hil.forecast import Forecast, forecast
from hzo_hil.plan import Plan
from hzo_hil.updates.delta import DeltaRule

WIDTH, BATCH, ROWS_PER_CALL, EVALUATION_S = 8, 8, 128, 1e-6
NOISES, OVERHEADS, BUDGETS = (0.001, 0.01, 0.05), (0, 10, 100), (1, 8, 64)
TREES, SETS = ("bisect", "chain", "direct"), ("coordinate", "hadamard")
STEPS = (0.02, 0.05, 0.12, 0.25, 0.5, 1.0)
FINALISTS = 4
SERVES = 1000
CAP = 1 / 32


class _Device(FakeDevice):
    """The fake device with noise drawn call by call: faster than noise by row, and all the same to statistics."""

    def _read_out(self, values: Any, boundary: int, gain: float, keys: Any, repeats: int) -> Any:
        drawn = np.random.default_rng((self.script.seed, len(self.calls), boundary)).standard_normal(values.shape)
        return values + self.script.noise * drawn


class Case:
    """One network on one kind of device, its minibatches and their exact gradients."""

    def __init__(self, depth: int, noise: float, overhead: float, width: int = WIDTH, step: float = 0.0) -> None:
        self.depth, self.noise, self.overhead, self.width, self.step = depth, noise, overhead, width, step
        rng = np.random.default_rng(depth)
        self.weights = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(depth)]
        self.biases = [rng.normal(0, 0.05, width) for _ in range(depth)]

    def device(self, seed: int) -> FakeDevice:
        specs = [ParameterSpec("weight", (self.width, self.width)), ParameterSpec("bias", (self.width,))]
        stage = StageSpec("layer", self.width, self.width, tuple(specs))
        boundary = BoundarySpec(low=-4.0, high=4.0, in_step=self.step) if self.step else BoundarySpec()
        return _Device(
            [FakeStage(stage, _tanh) for _ in range(self.depth)],
            script=Script(noise=self.noise, seed=seed), boundaries=boundary, dtype="float64", taps=True,
            virtual_time=True, max_batch=ROWS_PER_CALL, query_s=EVALUATION_S,
            latency_s=self.overhead * ROWS_PER_CALL * EVALUATION_S,
        )  # fmt: skip

    def module(self, seed: int, **options: Any) -> Opaque:
        device = self.device(seed)
        stages = [
            Stage(device, k, leaf=DeltaRule("tanh"), initial={"weight": self.weights[k], "bias": self.biases[k]})
            for k in range(self.depth)
        ]
        return Opaque(stages, seed=seed, **options).double()

    def batch(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return tuple(  # type: ignore[return-value]
            torch.randn(BATCH, self.width, generator=draw, dtype=torch.float64) * 0.5 for _ in range(2)
        )

    def exact(self, seed: int) -> torch.Tensor:
        x, wanted = self.batch(seed)
        # As written: the masters are float32.
        masters = [torch.tensor(w).float().double().requires_grad_() for pair in self._pairs() for w in pair]
        for weight, bias in zip(masters[::2], masters[1::2], strict=True):
            x = torch.tanh(x @ weight.T + bias)
        return _flat(torch.autograd.grad(((x - wanted) ** 2).mean(), masters))

    def _pairs(self) -> list[tuple[Any, Any]]:
        return list(zip(self.weights, self.biases, strict=True))

    def error(self, module: Opaque, seed: int) -> float:
        x, wanted = self.batch(seed)
        found = _flat(torch.autograd.grad(((module(x) - wanted) ** 2).mean(), list(module.parameters())))
        exact = self.exact(seed)
        return float((found - exact).norm() / exact.norm())

    def calibrated(self, seed: int, **options: Any) -> Opaque:
        """On a minibatch that no gradient is measured on."""
        module = self.module(seed, plan="auto", **options)
        x, wanted = self.batch(1000 + seed)
        module.calibrate(x, lambda outputs: ((outputs - wanted) ** 2).mean())
        return module


def _tanh(inputs: Any, parameters: Any) -> Any:
    return np.tanh(inputs @ parameters["weight"].T + parameters["bias"])


def _flat(gradients: Any) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients])


def costs(module: Opaque) -> Forecast:
    return forecast(module.network, module.resolved, module.rules, BATCH)


def rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


def probe_seconds(module: Opaque) -> float:
    return costs(module).purposes["probes"].device_seconds


def within(case: Case, tree: str, probes: str, eps: float, budget: float) -> Opaque | None:
    """The fixed plan with the most repeats that the budget allows."""
    one = case.module(0, tree=tree, probes=probes, eps=eps)
    repeats = int(budget / probe_seconds(one) * (1 + 1e-9))
    while repeats:
        module = case.module(0, tree=tree, probes=probes, eps=eps, repeats=repeats)
        if probe_seconds(module) <= budget * (1 + 1e-9):
            return module
        repeats -= 1
    return None


def errors(case: Case, plan: Plan, seeds: int) -> float:
    return rms([case.error(case.module(seed, plan=plan), seed) for seed in range(seeds)])


def regime(case: Case, times: float, seeds: int, steps: tuple[float, ...]) -> dict[str, Any]:
    chain = case.module(0, tree="chain")
    before = costs(chain).purposes
    first = case.module(0)
    x, wanted = case.batch(1000)
    first.calibrate(x, lambda outputs: ((outputs - wanted) ** 2).mean())
    calibration = first.ledger.accounts["calibration"].device_seconds / SERVES
    budget = times * before["probes"].device_seconds + calibration
    rest = before["forward"].device_seconds + before["leaf"].device_seconds
    autos, predicted, took = [], [], []
    for seed in range(seeds):
        start = time.perf_counter()
        # The share of the calibration is paid out of the same budget.
        module = case.calibrated(seed, seconds_per_step=rest + budget - calibration)
        took.append(time.perf_counter() - start)
        autos.append(case.error(module, seed))
        predicted.append(module.outcome.prediction.error)
    tried, plans = {}, {}
    for tree, probes, eps in itertools.product(TREES, SETS, steps):
        fixed = within(case, tree, probes, eps, budget)
        if fixed is not None:
            plans[tree, probes, eps] = fixed.plan
            tried[tree, probes, eps] = errors(case, fixed.plan, 1)
    finalists = sorted(tried, key=lambda k: tried[k])[:FINALISTS]
    judged = {k: errors(case, plans[k], seeds) for k in finalists}
    best = min(judged, key=lambda k: judged[k])
    return {
        "auto": rms(autos), "best": judged[best], "which": " ".join(map(str, best)), "predicted": rms(predicted),
        "tree": module.resolved.tree.name, "tried": len(tried), "spent": probe_seconds(module) / budget,
        "calibration": first.ledger.accounts["calibration"].queries, "planning_s": sum(took) / len(took),
        "low": min(autos), "high": max(autos), "median": statistics.median(autos), "seeds": seeds,
    }  # fmt: skip


def grid(rows: Rows, quick: bool) -> None:
    runs = ((16, 2),) if quick else ((16, 5), (64, 5))
    steps = STEPS[1:5:2] if quick else STEPS
    ratios = []
    for depth, seeds in runs:
        for (a, noise), (b, overhead) in itertools.product(enumerate(NOISES), enumerate(OVERHEADS)):
            if quick and a != b:
                continue
            times = BUDGETS[(a + b) % 3] if depth == 16 else BUDGETS[(a + 2 * b + 1) % 3]
            found = regime(Case(depth, noise, overhead), times, seeds, steps)
            name = f"{depth} stages, noise {noise}, overhead {overhead}, budget {times} chains"
            ratios.append(found["auto"] / found["best"])
            rows.row(
                f"{name}: auto", found["auto"], "gradient error", against=f"best of {found['tried']}: {found['which']}",
                ratio=ratios[-1], target="<= 1.25", best=found["best"], tree=found["tree"],
                median=found["median"], range=[found["low"], found["high"]], seeds=found["seeds"],
                budget_spent=found["spent"], calibration_queries=found["calibration"], planning_s=found["planning_s"],
            )  # fmt: skip
            optimism = found["auto"] / found["predicted"]
            off = max(optimism, 1 / optimism) if found["auto"] < 0.5 else optimism
            rows.row(
                f"{name}: predicted", found["predicted"], "gradient error", against="measured", ratio=off,
                target="<= 1.5" if found["auto"] < 0.5 else "<= 2", measured_over_predicted=optimism,
            )  # fmt: skip
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    rows.row(f"geometric mean over {len(ratios)} regimes", mean, "of the best fixed plan's error", target="<= 1.1")


def capped(rows: Rows, quick: bool) -> None:
    """No probe may move an input by more than one converter step: 8 bits over -4..4."""
    case = Case(16, 0.005, 10, width=16, step=CAP)
    seeds = 2 if quick else 5
    fixed = case.module(0, tree="bisect", probes="coordinate", eps=CAP, repeats=4)
    against = errors(case, fixed.plan, seeds)
    budget = probe_seconds(fixed)
    found = []
    for seed in range(seeds):
        module = case.module(seed, plan="auto", seconds_per_step=1.0)
        rest = costs(module).purposes["forward"].device_seconds
        module.auto = Auto(seconds_per_step=rest + budget, largest=CAP)
        x, wanted = case.batch(1000 + seed)
        module.calibrate(x, lambda outputs, wanted=wanted: ((outputs - wanted) ** 2).mean())
        assert max(module.resolved.eps) <= CAP * (1 + 1e-9)
        found.append(case.error(module, seed))
    rows.row(
        "one converter step: bisect + coordinate", against, "gradient error", against="auto",
        ratio=against / rms(found), target=">= 3", auto=rms(found), median=statistics.median(found),
        range=[min(found), max(found)], seeds=seeds, predicted=module.outcome.prediction.error,
        tree=module.resolved.tree.name,
    )  # fmt: skip


def noiseless(rows: Rows, quick: bool) -> None:
    for depth in (16,) if quick else (16, 64):
        for overhead in OVERHEADS:
            case = Case(depth, 0.0, overhead)
            module = case.calibrated(0, tolerance=0.01)
            chain = probe_seconds(case.module(0, tree="chain"))
            rows.row(
                f"{depth} stages, no noise, overhead {overhead}: tolerance 0.01", probe_seconds(module), "device s",
                against="chain", ratio=probe_seconds(module) / chain, target="== 1", error=case.error(module, 0),
                predicted=module.outcome.prediction.error,
            )  # fmt: skip


def tolerances(rows: Rows, quick: bool) -> None:
    """What was asked for is what is measured."""
    seeds = 2 if quick else 5
    for noise in NOISES[:2]:
        case = Case(16, noise, 10)
        for tolerance in (0.1, 0.3):
            try:
                modules = [case.calibrated(seed, tolerance=tolerance) for seed in range(seeds)]
            except BadInput as error:
                rows.row(f"noise {noise}: tolerance {tolerance}", str(error), "refused")
                continue
            found = [case.error(m, seed) for seed, m in enumerate(modules)]
            measured = rms(found)
            rows.row(
                f"noise {noise}: tolerance {tolerance}", measured, "gradient error", against="tolerance",
                ratio=measured / tolerance, target="<= 1.5", median=statistics.median(found),
                range=[min(found), max(found)], seeds=seeds,
                chains=probe_seconds(modules[0]) / probe_seconds(case.module(0, tree="chain")),
            )  # fmt: skip


def main() -> None:
    quick = arguments(__doc__).quick
    rows = Rows()
    rows.environment()
    noiseless(rows, quick)
    tolerances(rows, quick)
    capped(rows, quick)
    grid(rows, quick)
    rows.exit()


if __name__ == "__main__":
    main()
