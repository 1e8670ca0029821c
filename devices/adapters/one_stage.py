"""What the adapters share: one stage, its parameters kept and checked, input refused before hardware sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hzo_hil.devices.api import (
    Array,
    BoundarySpec,
    Capabilities,
    Health,
    ParameterSpec,
    Reply,
    Segment,
    StageSpec,
    Structure,
)
from hzo_hil.devices.errors import BadInput, CapabilityError, ConfigError

Given = ParameterSpec | Sequence[Any]
"""A parameter as a ParameterSpec, or (shape,), (shape, low, high)."""


def parameter_specs(given: Mapping[str, Given]) -> tuple[ParameterSpec, ...]:
    """Raises CapabilityError for what is neither."""
    found = []
    for name, value in given.items():
        if isinstance(value, ParameterSpec):
            found.append(value)
            continue
        if (
            not isinstance(value, (list, tuple))
            or len(value) not in (1, 3)
            or not isinstance(value[0], (int, list, tuple))
        ):
            raise CapabilityError(f"parameter {name!r}: give (shape, low, high) or a ParameterSpec, not {value!r}")
        shape = (value[0],) if isinstance(value[0], int) else tuple(int(n) for n in value[0])
        low, high = (float(v) for v in value[1:]) if len(value) == 3 else (-np.inf, np.inf)
        found.append(ParameterSpec(name, shape, low, high))
    return tuple(found)


class OneStage:
    """A blocking device of one stage. Subclasses answer `_respond(inputs [batch, in]) -> [batch, out]`, and set the
    hardware in `_set(name, index, value)`, where they have any. Parameters begin at 0, moved into their range.

    `declared`: further fields of Capabilities (`latency_s`, `settling_s`, `longest_call_s`, ...).
    """

    def __init__(
        self,
        identity: str,
        in_width: int,
        out_width: int,
        parameters: Mapping[str, Given] | None = None,
        *,
        low: float = -np.inf,
        high: float = np.inf,
        out_low: float = -np.inf,
        out_high: float = np.inf,
        structure: Structure = "dense",
        linear: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
        **declared: Any,
    ) -> None:
        specs = parameter_specs(parameters or {})
        self._capabilities = Capabilities(
            identity=identity,
            stages=(StageSpec("whole", in_width, out_width, specs, structure, linear),),
            boundaries=(
                BoundarySpec(low=low, high=high),
                BoundarySpec(drive=False, out_low=out_low, out_high=out_high),
            ),
            dtype=dtype,
            **declared,
        )
        self._values = {s.name: np.full(s.shape, np.clip(0.0, s.low, s.high), dtype) for s in specs}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def run(self, segment: Segment, inputs: Array) -> Reply:
        self._check_inputs(segment, inputs)
        outputs = self._respond(inputs)
        return Reply(np.ascontiguousarray(outputs, dtype=self.capabilities.dtype))

    def write(self, stage: int, parameters: Mapping[str, Array], where: Mapping[str, Array] | None = None) -> None:
        """Sets what changed; everything, if the host does not know what did."""
        self._check_stage(stage)
        checked = self._checked(parameters)
        for name, value in checked.items():
            indices = range(value.size) if where is None else where.get(name, ())
            for index in indices:
                self._set(name, int(index), float(value.flat[int(index)]))
                self._values[name].flat[int(index)] = value.flat[int(index)]
        self._written()

    def read(self, stage: int) -> Mapping[str, Array]:
        self._check_stage(stage)
        return {name: value.copy() for name, value in self._values.items()}

    def snapshot(self) -> Mapping[str, Any]:
        return {"identity": self.capabilities.identity}

    def health(self) -> Health:
        return Health(True)

    # --- for subclasses --------------------------------------------------------------------------------------------

    def _respond(self, inputs: Array) -> Array:
        raise NotImplementedError

    def _set(self, name: str, index: int, value: float) -> None:
        """Set one value of the hardware; `index` counts in C order."""

    def _written(self) -> None:
        """All values of a write are set."""

    # --- checks ------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"device {self.capabilities.identity!r}"

    def _check_stage(self, stage: int) -> None:
        if stage != 0:
            raise BadInput(f"{self._name} has one stage, number 0, not {stage}")

    def _check_inputs(self, segment: Segment, inputs: Array) -> None:
        if (segment.lo, segment.hi) != (0, 1):
            raise CapabilityError(
                f"{self._name} has one stage: it runs from boundary 0 to 1, not {segment.lo} to {segment.hi}"
            )
        caps = self.capabilities
        width, most = caps.width(0), caps.max_batch
        if not isinstance(inputs, np.ndarray) or inputs.ndim != 2 or inputs.shape[1] != width or not len(inputs):
            raise BadInput(f"{self._name}: inputs of shape {np.shape(inputs)}, needs [batch, {width}]")
        if most and len(inputs) > most:
            raise BadInput(f"{self._name}: {len(inputs)} rows in one call, max_batch is {most}")
        spec = caps.boundaries[0]
        _check_values(f"{self._name}: inputs", inputs, spec.low, spec.high)

    def _checked(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        specs = {s.name: s for s in self.capabilities.stages[0].parameters}
        if set(parameters) != set(specs):
            raise BadInput(
                f"{self._name}: a write names every parameter: got {sorted(parameters)}, needs {sorted(specs)}"
            )
        found = {}
        for name, spec in specs.items():
            value = np.asarray(parameters[name])
            if value.shape != spec.shape:
                raise BadInput(f"{self._name}: parameter {name!r} has shape {value.shape}, declared {spec.shape}")
            _check_values(f"{self._name}: parameter {name!r}", value, spec.low, spec.high)
            found[name] = np.clip(value, spec.low, spec.high).astype(self.capabilities.dtype)
        return found


def _check_values(what: str, values: Array, low: float, high: float) -> None:
    """Rounding to float32 is no fault: 1e-6 of an end passes."""
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise BadInput(f"{what} hold values that are not finite real numbers")
    slack = [1e-6 * max(1.0, abs(end)) if np.isfinite(end) else 0.0 for end in (low, high)]
    least, most = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if least < low - slack[0] or most > high + slack[1]:
        raise BadInput(f"{what} {least:.6g}..{most:.6g} leave the declared range [{low:g}, {high:g}]")


def needed(package: str, extra: str, error: ImportError) -> ConfigError:
    """The error for a package that is not there."""
    return ConfigError(
        f"this device needs the package {package}, which is not installed here ({error}). Install it: pip install"
        f" 'hzo-hil[{extra}]'"
    )
