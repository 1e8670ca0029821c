"""Chains of plain or residual layers as a simulated device, and their exact gradient by autograd in float64.

Every layer is one opaque stage, with one matrix or 3 x 3 convolution that it learns, so that depth is the number of
stages. Probes are coordinates and leaves are exact, as the paper has them: what is left is the error of the targets.
Knows no figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hzo_hil import Opaque, Stage
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.noiseless import cosine
from hzo_hil.simulators.arrays import namespace
from hzo_hil.simulators.convolution import convolve
from hzo_hil.simulators.ends import ReadOut
from hzo_hil.simulators.lowprecision import cast
from hzo_hil.simulators.model import Array, Parameter, Reach, StageModel, Structure, Values, check_values
from hzo_hil.simulators.twins import Twin
from hzo_hil.streams import generator

Weights = list[Array]

_rounded = partial(cast, saturate=True)


@dataclass(frozen=True)
class Layer(StageModel):
    """skip a + branch f(W a): `curve` f is relu, gelu, tanh or sin; W is a convolution where there is a `reach`.

    Inputs, weights and outputs are rounded to `number` (a name of `lowprecision.cast`) and stop at its largest value;
    sums in between are neither.
    """

    width: int
    curve: str = "relu"
    reach: Reach | None = None
    skip: float = 0.0
    branch: float = 1.0
    number: str = "float"
    read_noise_std: float = 0.0
    name: str = "layer"

    @property
    def in_width(self) -> int:
        return self.width

    @property
    def out_width(self) -> int:
        return self.width

    @property
    def structure(self) -> Structure:
        return self.reach or "dense"

    @property
    def read_noise(self) -> float:
        return self.read_noise_std

    @property
    def shape(self) -> tuple[int, ...]:
        if self.reach is None:
            return self.width, self.width
        return self.reach.out_channels, self.reach.in_channels, *self.reach.kernel

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("weight", self.shape),)

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        return {"weight": rng.standard_normal(self.shape) * math.sqrt(2 / math.prod(self.shape[1:]))}

    def program(self, values: Values, key: int) -> dict[str, Array]:
        check_values(self, values)
        return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}

    def run(self, state: dict[str, Array], inputs: Array, keys: Any) -> Array:
        stored = {name: _rounded(value.astype(inputs.dtype), self.number) for name, value in state.items()}
        outputs = self.ideal(np, stored, _rounded(inputs, self.number))
        return _rounded(ReadOut(dark=self.read_noise_std**2)(outputs, keys), self.number)

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        bent = self.branch * bend(self.curve, self.sums(values["weight"], inputs))
        return bent if self.skip == 0 else self.skip * inputs + bent

    def sums(self, weight: Any, inputs: Any) -> Any:
        return inputs @ weight.T if self.reach is None else convolve(inputs, weight, self.reach)


def bend(curve: str, u: Any) -> Any:
    xp = namespace(u)
    if curve == "relu":
        return xp.where(u > 0, u, 0.0 * u)
    if curve == "gelu":
        erf = torch.erf(u * 2**-0.5) if isinstance(u, Tensor) else torch.erf(torch.from_numpy(u * 2**-0.5)).numpy()
        return 0.5 * u * (1 + erf)
    return xp.sin(u) if curve == "sin" else xp.tanh(u)


def images(channels: int, size: int) -> Reach:
    """A 3 x 3 convolution that keeps `size` x `size` images and their channels."""
    return Reach(channels, channels, (size, size), (3, 3), (1, 1), (1, 1), (1, 1))


def chain_of(layer: Layer, depth: int) -> list[Layer]:
    return [replace(layer, name=f"layer{k + 1}") for k in range(depth)]


def drawn(layers: Sequence[Layer], start: str, seed: int, gain: float = 1.0) -> Weights:
    """`torch`: uniform as torch draws them; `he`: variance 2 / fan-in; `orthogonal`: a rotation, for matrices. Times
    `gain`."""
    found = []
    for k, layer in enumerate(layers):
        rng = generator(seed, "weights", k)
        fan = math.prod(layer.shape[1:])
        if start == "torch":
            weight = rng.uniform(-1, 1, layer.shape) / math.sqrt(fan)
        elif start == "he":
            weight = rng.standard_normal(layer.shape) * math.sqrt(2 / fan)
        else:
            weight = np.linalg.qr(rng.standard_normal(layer.shape))[0]
        found.append(gain * weight)
    return found


def normed(layers: Sequence[Layer], weights: Weights, x: Tensor) -> Weights:
    """Each weight over the standard deviation of its sums on `x`: a frozen batch norm without shifts."""
    found, values = [], x.double().numpy()
    for layer, weight in zip(layers, weights, strict=True):
        scaled = weight / max(float(layer.sums(weight, values).std()), 1e-12)
        values = layer.ideal(np, {"weight": scaled}, values)
        found.append(scaled)
    return found


def batch_of(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and the random direction that the loss looks along, in float64 [rows, width]."""
    rng = generator(seed, "batch")
    x, ahead = (torch.from_numpy(rng.standard_normal((rows, width))) for _ in range(2))
    return x, ahead


def device_of(layers: Sequence[Layer], dtype: Any = "float64") -> SimulatedDevice:
    return SimulatedDevice(list(layers), dtype=dtype, max_batch=8192)


def module_of(layers: Sequence[Layer], weights: Weights, dtype: Any = "float64", **options: Any) -> Opaque:
    device = device_of(layers, dtype)
    stages = [
        Stage(device, k, leaf="autograd", twin=Twin(layer), initial={"weight": weight})
        for k, (layer, weight) in enumerate(zip(layers, weights, strict=True))
    ]
    module = Opaque(stages, **options)
    return module.double() if dtype == "float64" else module


def found_gradients(module: Opaque, x: Tensor, ahead: Tensor) -> list[Tensor]:
    """Of sum(ahead * outputs) for every stage's weight, by queries."""
    parameters = list(module.parameters())
    x = x.to(parameters[0].dtype)
    return list(torch.autograd.grad((module(x) * ahead.to(x.dtype)).sum(), parameters))


def forward(layers: Sequence[Layer], weights: Sequence[Tensor], x: Tensor) -> Tensor:
    for layer, weight in zip(layers, weights, strict=True):
        x = layer.ideal(torch, {"weight": weight}, x)
    return x


def exact_gradients(layers: Sequence[Layer], module: Opaque, x: Tensor, ahead: Tensor) -> list[Tensor]:
    """The same by autograd in float64, at the values that the module holds."""
    weights = [p.detach().double().requires_grad_() for p in module.parameters()]
    return list(torch.autograd.grad((forward(layers, weights, x) * ahead).sum(), weights))


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradients])


def alignment(found: Sequence[Tensor], exact: Sequence[Tensor]) -> dict[str, float]:
    """Cosines: of the whole gradient, of the first layer's (the farthest from the loss), and the median of the layers.

    0 where a gradient is zero or no finite number: it points nowhere.
    """

    def one(a: Tensor, b: Tensor) -> float:
        if not torch.isfinite(a).all() or not torch.isfinite(b).all():
            return 0.0
        # Norms first: the squares of a gradient that has vanished have too.
        value = cosine(a / max(float(a.abs().max()), 1e-300), b / max(float(b.abs().max()), 1e-300))
        return 0.0 if math.isnan(value) else value

    each = [one(a.detach().double().flatten(), b.flatten()) for a, b in zip(found, exact, strict=True)]
    return {"whole": one(flat(found), flat(exact)), "first": each[0], "median": float(np.median(each))}
