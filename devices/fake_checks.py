"""What a fake device refuses: all that its capabilities do not allow, as a careful driver would.

The framework checks the same before it sends; a refusal here means that the host let something through.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, ParameterSpec, Query, StageSpec
from hzo_hil.devices.errors import BadInput, CapabilityError


def check_query(caps: Capabilities, query: Query) -> None:
    name, segment = f"fake device {caps.identity!r}", query.segment
    if segment.hi > len(caps.stages):
        raise CapabilityError(f"{name} has {len(caps.stages)} stages and was asked for ({segment.lo}, {segment.hi}]")
    if not caps.boundaries[segment.lo].drive:
        raise CapabilityError(f"{name} cannot be driven at boundary {segment.lo}")
    if query.taps and not caps.taps:
        raise CapabilityError(f"{name} does not declare taps and was asked for {list(query.taps)}")
    if any(not segment.lo < tap < segment.hi for tap in query.taps):
        raise CapabilityError(f"{name}: taps {list(query.taps)} are not inside ({segment.lo}, {segment.hi})")
    for boundary in (segment.hi, *query.taps):
        if not caps.boundaries[boundary].read:
            raise CapabilityError(f"{name} cannot be read at boundary {boundary}")
    if query.repeats < 1 or (query.repeats > 1 and not caps.repeats):
        raise CapabilityError(f"{name}: {query.repeats} repeats; they must be declared, and at least 1")
    _check_inputs(caps, query.inputs, segment.lo)
    if query.keys is not None:
        _check_keys(caps, query.keys, len(query.inputs))


def _check_keys(caps: Capabilities, keys: Array, rows: int) -> None:
    name = f"fake device {caps.identity!r}"
    if not caps.keyed:
        raise CapabilityError(f"{name} does not declare keyed and was given noise keys")
    if np.shape(keys) != (rows,):
        raise BadInput(f"{name}: keys of shape {np.shape(keys)} for {rows} rows; there is one key a row")


def _check_inputs(caps: Capabilities, inputs: Array, boundary: int) -> None:
    where = f"fake device {caps.identity!r}, boundary {boundary}"
    width, spec = caps.width(boundary), caps.boundaries[boundary]
    if inputs.ndim != 2 or inputs.shape[1] != width or len(inputs) == 0:
        raise BadInput(f"{where}: inputs of shape {inputs.shape}, needs [batch, {width}]")
    if inputs.dtype != caps.dtype or not inputs.flags.c_contiguous:
        kind = "C-contiguous" if inputs.flags.c_contiguous else "strided"
        raise BadInput(f"{where}: inputs are {kind} {inputs.dtype}, needs C-contiguous {caps.dtype}")
    if 0 < caps.max_batch < len(inputs):
        raise BadInput(f"{where}: {len(inputs)} rows in one call, max_batch is {caps.max_batch}")
    if 0 < caps.max_bytes < inputs.nbytes:
        raise BadInput(f"{where}: {inputs.nbytes} bytes in one call, max_bytes is {caps.max_bytes}")
    if not np.all(np.isfinite(inputs)):
        raise BadInput(f"{where}: inputs hold values that are not finite")
    _check_range(f"{where}: inputs", inputs, spec.low, spec.high)


def check_stage(caps: Capabilities, stage: int) -> StageSpec:
    if not 0 <= stage < len(caps.stages):
        raise BadInput(f"fake device {caps.identity!r} has stages 0..{len(caps.stages) - 1}, not {stage}")
    return caps.stages[stage]


def check_parameters(caps: Capabilities, stage: int, parameters: Mapping[str, Array]) -> None:
    specs = {p.name: p for p in check_stage(caps, stage).parameters}
    where = f"fake device {caps.identity!r}, stage {stage}"
    if set(parameters) != set(specs):
        raise BadInput(f"{where}: a write names every parameter: got {sorted(parameters)}, needs {sorted(specs)}")
    for name, spec in specs.items():
        value = np.asarray(parameters[name])
        if value.shape != spec.shape:
            raise BadInput(f"{where}: parameter {name!r} has shape {value.shape}, declared {spec.shape}")
        if not np.all(np.isfinite(value)):
            raise BadInput(f"{where}: parameter {name!r} holds values that are not finite")
        _check_range(f"{where}: parameter {name!r}", value, spec.low, spec.high)


def check_slew(caps: Capabilities, stage: int, spec: ParameterSpec, old: Array, new: Array) -> None:
    """A converter may move by one level more than was asked: it rounds both ends."""
    level = 0.0 if spec.levels is None else float(np.max(np.diff(spec.levels)))
    moved = float(np.max(np.abs(new - old), initial=0.0))
    if spec.slew > 0 and moved > spec.slew * (1 + 1e-5) + level:
        raise BadInput(
            f"fake device {caps.identity!r}, stage {stage}: parameter {spec.name!r} would move by {moved:.6g}"
            f" in one write, its slew limit is {spec.slew}: split the write"
        )


def _check_range(what: str, values: Array, low: float, high: float) -> None:
    """Rounding to the wire's float is no fault: a few units in the last place pass."""
    least, most = float(np.min(values, initial=np.inf)), float(np.max(values, initial=-np.inf))
    eps = float(np.finfo(np.float32 if values.dtype == np.float32 else np.float64).eps)
    if (np.isfinite(low) and least < low - 4 * eps * max(1.0, abs(low))) or (
        np.isfinite(high) and most > high + 4 * eps * max(1.0, abs(high))
    ):
        raise BadInput(f"{what} {least:.6g}..{most:.6g} leave the declared range [{low}, {high}]")
