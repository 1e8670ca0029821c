"""What a configuration will ask of its devices, before anything is asked."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from hzo_hil.build import build_model, open_devices
from hzo_hil.config import Config
from hzo_hil.credit.needs import CREDITS
from hzo_hil.learning import cost_of_learning
from hzo_hil.ledger import Account, Ledger
from hzo_hil.link import link_to
from hzo_hil.modelcalibration import balanced, planned
from hzo_hil.module import Opaque
from hzo_hil.optim import LossOnly
from hzo_hil.precheck import check_fit
from hzo_hil.stepcost import layers_of, preparation, step_of
from hzo_hil.train import load_data
from hzo_hil.training import Training


def preview(config: Config) -> dict[str, Any]:
    """Tree, probes and exact counts per sample, step and epoch.

    With `method.plan: auto` the devices are calibrated first: that asks a few hundred queries of each layer and writes
    the starting values, and is counted as `calibration`. Else nothing is asked and `predicted_error` is null.

    `before`: what is measured of learned twins, and asked by a loss-only optimiser, before the first step; checks of
    learned twins on the way are not in a step. `at_most`: a step may ask fewer. Writes are those of steps that change
    every stage. Evaluation and health are not counted; the former writes the last
    step's parameters, which the first step of the next epoch then finds.
    """
    devices = open_devices(config)
    try:
        return _preview(config, build_model(config, devices))
    finally:
        for device in devices.values():
            link_to(device).close()


def _preview(config: Config, model: nn.Module) -> dict[str, Any]:
    data = load_data(config)
    check_fit(config, model, data)
    training = Training(config, model, data, Ledger())
    if any(m.auto is not None for m in training.opaques):
        balanced(model, training.first_batch)
    planned(model, training.first_batch, training.loss)
    samples = len(data.x_train)
    size = min(config.train.batch_size, samples)
    full, rest = divmod(samples, size)
    before, epoch, step = Account(), Account(), Account()
    layers = []
    credit, optimizer = config.method.credit, training.optimizer
    by_losses = isinstance(optimizer, LossOnly)
    tier = optimizer.tier if by_losses else CREDITS[credit].tier
    for layer in layers_of(model):
        module = layer[0]
        before.add(cost_of_learning(module))
        before.add(preparation(layer, optimizer, size))
        one = step_of(layer, optimizer, size, credit)
        step.add(one.total)
        for _ in range(full):
            epoch.add(one.total)
        if rest:
            epoch.add(step_of(layer, optimizer, rest, credit).total)
        layers.append(
            {
                "layer": module.name,
                "credit": credit,
                "tier": tier,
                **_tree(module),
                "probes": module.plan.probes if isinstance(module.plan.probes, str) else dict(module.plan.probes),
                "eps": list(module.resolved.eps),
                "repeats": [p.repeats for p in module.resolved.at],
                **_predicted(module),
                "queries_per_sample": one.queries_per_sample,
                "stage_evaluations_per_sample": one.stage_evaluations_per_sample,
                "queries_per_batch": one.queries_per_batch,
                "stage_evaluations_per_batch": one.stage_evaluations_per_batch,
                "purposes": {name: asdict(a) for name, a in one.purposes.items()},
            }
        )
    errors = [layer["predicted_error"] for layer in layers]
    trees = [layer["tree"] for layer in layers]
    return {
        "credit": credit,
        "tier": tier,
        "at_most": by_losses and optimizer.at_most,
        "tree": trees[0] if len(trees) == 1 else trees,
        "queries_per_sample": sum(layer["queries_per_sample"] for layer in layers),
        "stage_evaluations_per_sample": sum(layer["stage_evaluations_per_sample"] for layer in layers),
        "queries_per_batch": sum(layer["queries_per_batch"] for layer in layers),
        "stage_evaluations_per_batch": sum(layer["stage_evaluations_per_batch"] for layer in layers),
        "predicted_error": errors[0] if len(errors) == 1 else None if None in errors else errors,
        "batch_size": size,
        "before": asdict(before),
        "step": asdict(step),
        "epoch": asdict(epoch),
        "layers": layers,
    }


def _tree(module: Opaque) -> dict[str, Any]:
    if module.credit != "hzo":
        return {"tree": None, "cuts": []}
    tree = module.resolved.tree
    return {"tree": tree.name, "cuts": [[c.at, c.source] for c in tree.cuts]}


def _predicted(module: Opaque) -> dict[str, Any]:
    """Error and cost of the plan and of the named trees at the same goal, and what finding out has cost."""
    if module.outcome is None or module.calibration is None:
        return {"predicted_error": None}
    found = module.outcome
    return {
        "predicted_error": found.prediction.error,
        "predicted": asdict(found.prediction),
        "probes_cost": found.cost,
        "unit": found.planned.unit,
        "beside": {
            n: None if p is None else {"error": p.error, "cost": p.cost} for n, p in found.planned.beside.items()
        },
        "calibration": asdict(module.ledger.accounts["calibration"]),
        "warnings": module.calibration.warnings(),
    }
