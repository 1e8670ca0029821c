"""Look at planned layers again while training goes on; where a calibration no longer holds, calibrate and plan anew.

A look is a small part of a calibration (`calibrate.again`). It decides only whether to calibrate: plans are made from
whole calibrations. Nothing here knows epochs or run folders; `training` calls it at the end of an epoch, your own loop
where you like.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from hzo_hil import calibrating
from hzo_hil.calibration import Calibration
from hzo_hil.cutmodel import Prediction, predict
from hzo_hil.devices.errors import BadInput
from hzo_hil.modelcalibration import passes_of
from hzo_hil.module import Opaque

MARGIN = 1.25
"""A plan aims right at its goal, so chance in a look puts every second one a little beyond: what is less than this
factor is let go.
"""


@dataclass(frozen=True)
class Review:
    """Of one layer. `error`: what the look predicts of the plan that was in use, `why` it was planned anew or could not
    be ("": its calibration holds), `replanned`: whether it was. `figures`: the calibration as the look saw it.
    """

    error: float
    why: str
    replanned: bool
    figures: Calibration


def replan_model(
    model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor], batch: int | None = None
) -> dict[str, Review]:
    """Look at every layer of `model` (or at `model`, an `Opaque`) that has `plan="auto"` and is calibrated, by name.

    `inputs` and `loss` are as for `calibrate_model`; `batch` None: as planned before. A look is two forward passes of
    at most 16 rows, and 16 queries a stage, purpose `calibration`; a new calibration, where one is needed, a few
    hundred more (event `replanned`). Where no plan reaches the goal any more the old one is kept, with a warning. No
    parameter changes; after an error plans and calibrations are those from before.
    """
    every = [m for m in model.modules() if isinstance(m, Opaque)]
    layers = [m for m in every if m.auto is not None and m.calibration is not None]
    if not layers:
        return {}
    with _unchanged_on_error(every):
        seen = passes_of(model, every, inputs, loss)
        found = {m.name: _review(m, seen[m.name], batch or m.planned_for[0]) for m in layers}
        for module in every:
            if module not in layers or not found[module.name].replanned:
                module.calibrated += 1  # its keys are used up
    return found


def _review(module: Opaque, seen: Sequence[calibrating.Pass], batch: int) -> Review:
    assert module.auto is not None and module.calibration is not None and module.outcome is not None
    if not seen[0][1].any():
        # The loss is at its bottom: there is no gradient whose error could be too large.
        return Review(module.outcome.prediction.error, "", False, module.calibration)
    now = calibrating.look_again(module, seen, module.calibration)
    present = predict(module.auto.problem(module.network, now, batch), module.outcome.planned.chosen)
    deaf = [k for k, stage in enumerate(now.stages, start=1) if stage.gain.high == 0]
    try:
        if deaf:
            raise BadInput(f"stage {deaf[0]} answers the same whatever is driven. Is it saturated, dark or at zero?")
        best = module.auto.plan(module.network, module.rules, now, batch, module.upstream).prediction
        why = _reason(module, present, best)
        if why:
            calibrating.take(module, seen, batch)
            module.dispatch.count("replanned")
        return Review(present.error, why, bool(why), now)
    except BadInput as error:
        warnings.warn(f"{module.name} keeps its plan, which was made for other figures: {error}", stacklevel=4)
        return Review(present.error, f"kept: {error}", False, now)


def _reason(module: Opaque, present: Prediction, best: Prediction) -> str:
    """Why to plan anew, "" where the plan is still good enough."""
    assert module.auto is not None
    goal = module.auto.tolerance
    if goal is None:
        if present.error > MARGIN * best.error:
            return f"error {present.error:.3g} predicted now, {best.error:.3g} within reach of the same budget"
    elif present.error > MARGIN * goal:
        return f"error {present.error:.3g} predicted now, beyond the tolerance of {goal:g}"
    elif present.cost > MARGIN * best.cost:
        return f"cost of probes {present.cost:.3g}, where {best.cost:.3g} would do now"
    return ""


_KEPT = ("calibration", "outcome", "plan", "resolved", "planned_for", "calibrated", "upstream")


@contextmanager
def _unchanged_on_error(layers: Sequence[Opaque]) -> Iterator[None]:
    """What is interrupted is done again on resuming, with the same draws."""
    before = [{name: getattr(m, name) for name in _KEPT} for m in layers]
    try:
        yield
    except BaseException:
        for module, kept in zip(layers, before, strict=True):
            for name, value in kept.items():
                setattr(module, name, value)
        raise
    finally:
        for module in layers:
            for rule in module.learned.values():
                rule.forget()
