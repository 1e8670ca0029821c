"""A residual network of 256-wide stages on a device, in two forms that compute the same, and its exact gradient.

`opaque`: each stage a + tanh(W a + b) / 2 is one stage of the device, of which nothing is declared. `declared`: the
skip is on the host, and the branch is a linear stage and an element-wise one. Input and output are fixed: all that is
learnt is on the device. It knows no probes and no targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators.elementwise import Elementwise
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.model import Array, Parameter, StageModel, Values, check_values
from hzo_hil.streams import generator
from hzo_hil.updates.delta import DeltaRule

DEPTH, MAX_BATCH = 8, 8192
IN_GAIN, OUT_GAIN, BRANCH = 8.0, 1.0, 0.5


class ResidualTanh(StageModel):
    """a + BRANCH tanh(W a + b), without noise."""

    in_width = out_width = 0
    name = ""

    def __init__(self, width: int, name: str) -> None:
        self.in_width = self.out_width = width
        self.name = name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return Parameter("weight", (self.in_width, self.in_width)), Parameter("bias", (self.in_width,))

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        return {p.name: np.zeros(p.shape) for p in self.parameters}

    def program(self, values: Values, key: int) -> dict[str, Array]:
        check_values(self, values)
        return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}

    def run(self, state: dict[str, Array], inputs: Array, keys: Any) -> Array:
        branch = inputs @ state["weight"].T
        branch += state["bias"]
        np.tanh(branch, out=branch)
        branch *= np.float32(BRANCH)
        branch += inputs
        return branch

    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        return inputs + BRANCH * xp.tanh(inputs @ values["weight"].T + values["bias"])


class Twin(nn.Module):
    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return inputs + BRANCH * torch.tanh(nn.functional.linear(inputs, weight, bias))


class Skip(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + BRANCH * self.branch(inputs)


class Ends(nn.Module):
    """A fixed map with orthonormal columns or rows, times a gain."""

    def __init__(self, inputs: int, outputs: int, gain: float, seed: int, name: str) -> None:
        super().__init__()
        drawn = generator(seed, name).standard_normal((max(inputs, outputs), min(inputs, outputs)))
        matrix = np.linalg.qr(drawn)[0] * gain
        shaped = torch.as_tensor(matrix if outputs >= inputs else matrix.T).float()
        self.register_buffer("matrix", shaped.contiguous())

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.matrix)  # type: ignore[arg-type]


def _initial(width: int, seed: int, k: int) -> dict[str, Array]:
    drawn = generator(seed, "weights", k).standard_normal((width, width))
    return {"weight": drawn / np.sqrt(width), "bias": np.zeros(width)}


def network(form: str, width: int, features: int, classes: int, seed: int, probes: str) -> nn.Sequential:
    """`form`: `opaque` or `declared`; both start from the same weights."""
    starts = [_initial(width, seed, k) for k in range(DEPTH)]
    middle: list[nn.Module]
    if form == "opaque":
        device = SimulatedDevice([ResidualTanh(width, f"residual{k + 1}") for k in range(DEPTH)], max_batch=MAX_BATCH)
        stages = [Stage(device, k, leaf="autograd", twin=Twin(), initial=s) for k, s in enumerate(starts)]
        middle = [Opaque(stages, tree="chain", probes=probes, seed=seed)]
    else:
        middle = []
        for k, start in enumerate(starts):
            models = [EmulatedLinear(width, width, name="linear"), Elementwise(width, "tanh", name="tanh")]
            branch = SimulatedDevice(models, f"branch{k + 1}", max_batch=MAX_BATCH)
            stages = [Stage(branch, 0, leaf=DeltaRule("identity"), initial=start), Stage(branch, 1)]
            middle.append(Skip(Opaque(stages, tree="chain", probes=probes, seed=seed, name=f"branch{k + 1}")))
    first = Ends(features, width, IN_GAIN, seed, "in")
    return nn.Sequential(first, *middle, Ends(width, classes, OUT_GAIN, seed, "out"))


def exact(model: nn.Sequential, inputs: Tensor, loss: Any) -> list[Tensor]:
    """The gradient of `loss(outputs)` by autograd, in the order of the model's parameters."""
    values = [p.detach().requires_grad_() for p in model.parameters()]
    hidden, twin = model[0](inputs), Twin()
    for weight, bias in zip(values[::2], values[1::2], strict=True):
        hidden = twin(hidden, weight, bias)
    return list(torch.autograd.grad(loss(model[-1](hidden)), values))
