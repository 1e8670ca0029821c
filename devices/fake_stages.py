"""Stages of the fake device: exact small functions whose rows do not know each other.

A row's answer is the same to the last bit whatever batch it came in, on any machine, because every sum
runs over the inputs in a fixed order and no BLAS is called. Knows nothing of scripts, calls or time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, BoundarySpec, ParameterSpec, StageSpec
from hzo_hil.devices.errors import BadInput

StageFunction = Callable[[Array, Mapping[str, Array]], Array]
Activation = str | Callable[[Array], Array]

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "square": np.square,
    "softplus": lambda x: np.logaddexp(x, 0.0),
}


@dataclass(frozen=True)
class FakeStage:
    """`function(inputs [batch, in], parameters) -> [batch, out]` in float64; it must treat rows alone.

    `initial` holds the parameters at power-on; those left out are 0, moved into the range.
    """

    spec: StageSpec
    function: StageFunction
    initial: Mapping[str, Array] = field(default_factory=dict)

    def power_on(self) -> dict[str, Array]:
        values = {}
        for p in self.spec.parameters:
            value = np.asarray(self.initial.get(p.name, 0.0), dtype=np.float64)
            values[p.name] = np.array(np.broadcast_to(np.clip(value, p.low, p.high), p.shape))
        return values


def exact_matmul(inputs: Array, weight: Array) -> Array:
    """`inputs [batch, in] @ weight [out, in]^T`, each sum in the order of the inputs."""
    columns = np.ascontiguousarray(inputs.T)
    total = np.zeros((weight.shape[0], inputs.shape[0]))
    product = np.empty_like(total)
    for i, column in enumerate(columns):
        np.multiply(weight[:, i, None], column, out=product)
        total += product
    return np.ascontiguousarray(total.T)


def activation_function(activation: Activation) -> Callable[[Array], Array]:
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise BadInput(f"unknown activation {activation!r} for a fake stage: use one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def affine(activation: Activation) -> StageFunction:
    """y = act(W a + b); without a parameter `bias`, y = act(W a)."""
    act = activation_function(activation)

    def run(inputs: Array, parameters: Mapping[str, Array]) -> Array:
        total = exact_matmul(inputs, parameters["weight"])
        if "bias" in parameters:
            total += parameters["bias"]
        return act(total)

    return run


def mlp_stages(
    widths: Sequence[int],
    activation: Activation | Sequence[Activation],
    *,
    seed: int,
    bias: bool,
    parameter: Mapping[str, Any] | None = None,
) -> list[FakeStage]:
    """One affine stage for each neighbouring pair of `widths`; `parameter` adds fields to every ParameterSpec."""
    if len(widths) < 2:
        raise BadInput(f"a fake network needs at least two widths, not {list(widths)}")
    count = len(widths) - 1
    named: Sequence[Activation] = (
        [activation] * count if isinstance(activation, str) or callable(activation) else activation
    )
    if len(named) != count:
        raise BadInput(f"{len(named)} activations for {count} stages: give one name, or one for each stage")
    random = np.random.default_rng(seed)
    stages = []
    for number, (n_in, n_out, act) in enumerate(zip(widths[:-1], widths[1:], named, strict=True), start=1):
        initial = {"weight": random.normal(0.0, n_in**-0.5, (n_out, n_in)), "bias": random.normal(0.0, 0.1, n_out)}
        if not bias:
            del initial["bias"]
        specs = tuple(ParameterSpec(name, value.shape, **(parameter or {})) for name, value in initial.items())
        spec = StageSpec(f"layer{number}", n_in, n_out, specs, linear=act == "identity")
        stages.append(FakeStage(spec, affine(act), initial))
    return stages


def boundary_specs(given: BoundarySpec | Sequence[BoundarySpec] | None, count: int, inner: bool) -> tuple[Any, ...]:
    """One BoundarySpec for each of `count` boundaries; with `inner` false the inner ones neither drive nor read."""
    specs = [given or BoundarySpec()] * count if given is None or isinstance(given, BoundarySpec) else list(given)
    if not inner:
        specs[1:-1] = [replace(b, drive=False, read=False) for b in specs[1:-1]]
    return tuple(specs)


def on_grid(values: Array, step: float, low: float) -> Array:
    """`values` rounded to multiples of `step` from `low` (from 0 if `low` is not finite); step 0 rounds nothing."""
    if step <= 0:
        return values
    start = low if np.isfinite(low) else 0.0
    rounded: Array = (start + np.rint((values.astype(np.float64) - start) / step) * step).astype(values.dtype)
    return rounded


def nearest_levels(values: Array, levels: Sequence[float]) -> Array:
    """Each value moved to the nearest of the ascending `levels`, the upper one at a tie."""
    known = np.asarray(levels, dtype=np.float64)
    nearest: Array = known[np.searchsorted((known[1:] + known[:-1]) / 2, values, side="right")].astype(values.dtype)
    return nearest


def keyed_normals(keys: Array, seed: int, width: int) -> Array:
    """Standard normals `[batch, width]`; each depends on its row's key, the seed and the column alone."""
    columns = np.arange(1, width + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(keys, dtype=np.uint64)[:, None] + _mix(np.array(seed % 2**64, dtype=np.uint64)))
        first = _mix(state ^ _mix(columns * np.uint64(2)))
        second = _mix(state ^ _mix(columns * np.uint64(2) + np.uint64(1)))
    radius = np.sqrt(-2.0 * np.log(((first >> np.uint64(11)) + 0.5) * 2.0**-53))
    normals: Array = radius * np.cos(2.0 * np.pi * ((second >> np.uint64(11)) * 2.0**-53))
    return normals


def _mix(x: Array) -> Array:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): every output bit depends on every input bit."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
