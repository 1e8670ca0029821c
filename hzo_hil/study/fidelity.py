"""Gradient fidelity as the thing studied: how close the gradient of an untrained network on simulated devices comes to
that of noise-free copies of the very devices. Nothing is trained.

Cosine and relative error of whole gradients and by stage, beside what the planner's model predicts and what was asked.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from hzo_hil.build import build_model, opaques, open_devices, trained_model
from hzo_hil.config import Config
from hzo_hil.cutmodel import SETS, Chosen, predict
from hzo_hil.cuttables import problem_of
from hzo_hil.learning import learn_twins
from hzo_hil.ledger import Ledger, recording
from hzo_hil.link import link_to
from hzo_hil.modelcalibration import calibrate_model
from hzo_hil.module import Opaque
from hzo_hil.noiseless import (
    Gradients,
    cosine,
    noiseless_gradients,
    noiseless_layer,
    present_gradients,
    relative_error,
)
from hzo_hil.precheck import check_fit
from hzo_hil.sections import Section, parse_section
from hzo_hil.study import training as run_configuration
from hzo_hil.train import load_data, on_host
from hzo_hil.training import Training

METRICS: dict[str, dict[str, Any]] = {
    "cosine": {"label": "gradient cosine", "better": "higher"},
    "gradient_error": {"label": "relative gradient error", "better": "lower"},
    "gradient_error_predicted": {"label": "relative gradient error, predicted", "better": "lower"},
    "cosine_first": {"label": "gradient cosine, first stage", "better": "higher"},
    "cosine_median": {"label": "gradient cosine, median of stages", "better": "higher"},
    "cosine_last": {"label": "gradient cosine, last stage", "better": "higher"},
    "gradient_error_first": {"label": "relative gradient error, first stage", "better": "lower"},
    "gradient_error_median": {"label": "relative gradient error, median of stages", "better": "lower"},
    "gradient_error_last": {"label": "relative gradient error, last stage", "better": "lower"},
    "queries": {"label": "queries a gradient", "better": "lower"},
    "stage_evaluations": {"label": "stage evaluations a gradient", "better": "lower"},
    "device_seconds": {"label": "device time a gradient, as declared", "unit": "s", "better": "lower"},
    "calibration_queries": {"label": "queries of calibration", "better": "lower"},
}


class FidelitySection(Section):
    """What is compared: gradients of one minibatch at the starting values."""

    rows: int = Field(default=32, ge=1, description="of the minibatch")
    repeats: int = Field(default=4, ge=1, description="estimates of the gradient, each with noise of its own")
    predict: bool = Field(default=True, description="calibrate, and predict the error of the plan")


class FidelityConfig(Config):
    """A run configuration, and what is compared."""

    fidelity: FidelitySection = FidelitySection()


def check(config: Mapping[str, Any], thorough: bool) -> dict[str, Any]:
    """The complete configuration. Raises ConfigError; `thorough` also makes the chips."""
    compared = _parsed(config).fidelity
    rest = {name: value for name, value in config.items() if name != "fidelity"}
    return {**run_configuration.check(rest, thorough), "fidelity": compared.model_dump(mode="json")}


known = run_configuration.known


def _parsed(config: Mapping[str, Any]) -> FidelityConfig:
    return parse_section(FidelityConfig, config, "configuration")


def run(config: dict[str, Any]) -> dict[str, float | None]:
    """Compare as `config` says: METRICS by name, None for what is not to be had. Raises BadInput where devices have no
    noise-free copy.
    """
    parsed = _parsed(config)
    if parsed.where.threads:
        torch.set_num_threads(parsed.where.threads)
    size = {"train": parsed.train.model_copy(update={"batch_size": parsed.fidelity.rows})}
    data, devices = load_data(parsed), open_devices(parsed)
    try:
        model = on_host(build_model(parsed, devices), parsed)
        check_fit(parsed, model, data)
        for layer in opaques(model):
            noiseless_layer(layer)
        if all(d.capabilities.dtype == "float64" for d in devices.values()):
            model = model.double()
        ledger = Ledger()
        training = Training(parsed.model_copy(update=size), trained_model(parsed, model), data, ledger, model)
        with recording(ledger), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # calibration's: what they are about is in the numbers
            return _compared(parsed.fidelity, training)
    finally:
        for device in devices.values():
            link_to(device).close()


def _compared(what: FidelitySection, training: Training) -> dict[str, float | None]:
    model, (x, y) = training.evaluated, training.first_batch()
    x = x.to(next(p.dtype for p in model.parameters()))
    model.eval()  # dropout of host layers would be noise of theirs
    for layer in training.opaques:
        learn_twins(layer)
    probed = training.config.method.credit == "hzo"
    if probed and (what.predict or any(layer.auto for layer in training.opaques)):
        calibrate_model(model, x, lambda outputs: training.loss(outputs, y[: len(outputs)]))
    predicted = [_predicted(layer, len(x)) if probed and what.predict else None for layer in training.opaques]
    true = _stages(noiseless_gradients(model, x, y, training.loss))
    estimates = [_estimate(training, x, y) for _ in range(what.repeats)]
    spent = [training.ledger.accounts[purpose] for purpose in ("forward", "probes", "leaf")]
    return {
        **_summary(estimates, true),
        "gradient_error_predicted": None if None in predicted else max(e for e in predicted if e is not None),
        "queries": sum(a.queries for a in spent) / what.repeats,
        "stage_evaluations": sum(a.stage_evaluations for a in spent) / what.repeats,
        "device_seconds": sum(a.device_seconds for a in spent) / what.repeats,
        "calibration_queries": training.ledger.accounts["calibration"].queries,
    }


def _estimate(training: Training, x: Tensor, y: Tensor) -> list[Tensor]:
    """One estimate, by stage. Jacobians are measured anew, or the noise in them would be the same every time."""
    for layer in training.opaques:
        layer.jacobians = layer.jacobians.afresh()
    training.evaluated.zero_grad()
    training.loss(training.model(x), y).backward()
    return _stages(present_gradients(training.evaluated))


def _stages(gradients: Gradients) -> list[Tensor]:
    """Of all stages that have parameters, in the order of the network."""
    return [g for stages in gradients.values() for g in stages if g.numel()]


def _summary(estimates: Sequence[list[Tensor]], true: list[Tensor]) -> dict[str, float | None]:
    """Cosines are means over estimates, errors root mean squares (what a tolerance bounds)."""
    whole = torch.cat(true)
    cosines = [statistics.fmean(cosine(e[k], t) for e in estimates) for k, t in enumerate(true)]
    errors = [_root_mean_square([relative_error(e[k], t) for e in estimates]) for k, t in enumerate(true)]
    found = {
        "cosine": statistics.fmean(cosine(torch.cat(e), whole) for e in estimates),
        "gradient_error": _root_mean_square([relative_error(torch.cat(e), whole) for e in estimates]),
    }
    for name, values in (("cosine", cosines), ("gradient_error", errors)):
        found |= {f"{name}_first": values[0], f"{name}_median": statistics.median(values), f"{name}_last": values[-1]}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(v * v for v in values))


def _predicted(layer: Opaque, batch: int) -> float | None:
    """Of the plan that is asked: by the planner where it made it, else of a plan of the kinds that it knows."""
    if layer.outcome is not None:
        return layer.outcome.prediction.error
    steps = {cut: layer.plan.at(cut.at) for cut in layer.resolved.tree.cuts}
    if layer.calibration is None or any(s.probes not in SETS or s.differences != "central" for s in steps.values()):
        return None
    problem = problem_of(layer.network, layer.calibration, batch, share=layer.plan.shared)
    chosen = []
    for cut, step in steps.items():
        dense = layer.network.structure(cut.at, cut.source) == "dense"
        asked = layer.resolved.at[cut.at]
        # Where outputs have few inputs, they are told apart by colours and not by the set's columns.
        chosen.append(Chosen(cut, SETS.index(step.probes) if dense else 0, asked.eps, asked.repeats))
    return predict(problem, chosen).error
