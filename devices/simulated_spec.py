"""What a simulated device declares of its models, and what it takes as inputs and values.

Knows the models only by their data: it loads no physics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import BoundarySpec, Capabilities, Local, ParameterSpec, Segment, StageSpec
from hzo_hil.devices.errors import BadInput

if TYPE_CHECKING:
    from hzo_hil.simulators.model import Parameter, StageModel

Array = NDArray[Any]


def check_inputs(where: str, ability: Capabilities, segment: Segment, inputs: Any, clip: bool) -> None:
    """`inputs`: an array, or a tensor whose values the host has looked at."""
    boundary = ability.boundaries[segment.lo]
    width = ability.width(segment.lo)
    if inputs.ndim != 2 or inputs.shape[1] != width:
        raise BadInput(f"{where}: inputs must be [batch, {width}], not {list(inputs.shape)}")
    if str(inputs.dtype).removeprefix("torch.") != ability.dtype:
        raise BadInput(f"{where}: inputs must be {ability.dtype}, not {inputs.dtype}: convert them before sending")
    if ability.max_batch and len(inputs) > ability.max_batch:
        raise BadInput(f"{where}: {len(inputs)} rows in one call, at most {ability.max_batch}: split the batch")
    if not isinstance(inputs, np.ndarray):
        return
    if not _finite(inputs):
        raise BadInput(f"{where}: inputs hold NaN or infinity: check the activations before boundary {segment.lo}")
    if not clip and inputs.size and (inputs.min() < boundary.low or inputs.max() > boundary.high):
        raise BadInput(
            f"{where}: inputs from {inputs.min():g} to {inputs.max():g} leave the range {boundary.low:g} to"
            f" {boundary.high:g} of boundary {segment.lo}: scale them, or set clip_inputs"
        )


def check_value(at: str, value: Array, spec: Parameter) -> None:
    if value.shape != spec.shape:
        raise BadInput(f"{at}: the shape must be {list(spec.shape)}, not {list(value.shape)}")
    if not np.isfinite(value).all():
        raise BadInput(f"{at}: holds NaN or infinity: nothing was written")
    if spec.period == 0 and value.size:
        # A value at an end may cross it by the rounding of a float32 master.
        slack = 1e-6 * max(1.0, *(abs(end) for end in (spec.low, spec.high) if np.isfinite(end)), 1.0)
        if value.min() < spec.low - slack or value.max() > spec.high + slack:
            raise BadInput(
                f"{at}: values from {value.min():g} to {value.max():g} leave the range {spec.low:g} to {spec.high:g}:"
                " bring them back with the parameter's edge rule before writing"
            )


def stage_spec(model: StageModel) -> StageSpec:
    structure = model.structure
    return StageSpec(
        name=model.name,
        in_width=model.in_width,
        out_width=model.out_width,
        parameters=tuple(
            ParameterSpec(p.name, p.shape, p.low, p.high, p.period, p.edge, p.levels, p.slew, p.harmonics)
            for p in model.parameters
        ),
        structure=structure if isinstance(structure, str) else Local(**vars(structure)),
        linear=model.linear,
    )


def boundaries(models: Sequence[StageModel], inner: bool, power: float) -> tuple[BoundarySpec, ...]:
    """What each boundary takes (the next stage's input port) and gives (`power` times the last stage's output port)."""
    found = []
    for index in range(len(models) + 1):
        into = models[index].input if index < len(models) else None
        out_of = models[index - 1].output if index > 0 else None
        reachable = inner or index in (0, len(models))
        limits: dict[str, float] = {}
        if into is not None:
            limits |= {"low": into.low, "high": into.high, "in_step": into.step}
        if out_of is not None:
            ends = {"out_low": out_of.low, "out_high": out_of.high, "out_step": out_of.step}
            limits |= {name: power * value for name, value in ends.items()}
        found.append(BoundarySpec(drive=reachable, read=reachable, **limits))
    return tuple(found)


def _finite(values: Array) -> bool:
    # Squares summed by row read the inputs once and write no mask; only where they overflow is that needed.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.vecdot(values, values)).all()) or bool(np.isfinite(values).all())
