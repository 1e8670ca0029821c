"""Small networks whose exact gradients torch knows, on fake devices. Knows nothing of what is asserted about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.forecast import Forecast, forecast
from hzo_hil.ledger import Account
from hzo_hil.updates.delta import DeltaRule

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "square": torch.square,
}


class Affine(nn.Module):
    """act(W x + b): the exact twin of a fake device's stage."""

    def __init__(self, activation: str = "tanh") -> None:
        super().__init__()
        self.curve = CURVES[activation]

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.curve(nn.functional.linear(inputs, weight, bias))


class OnHost(nn.Module):
    """The same affine stages by ordinary torch, on the parameters of the `Opaque` it is given."""

    def __init__(self, opaque: Opaque, activation: str) -> None:
        super().__init__()
        self.stages = opaque.stages
        self.twin = Affine(activation)
        self.closest = float("inf")

    def forward(self, inputs: Tensor) -> Tensor:
        for stage in self.stages:
            values = dict(stage.named_parameters())
            z = nn.functional.linear(inputs, values["weight"], values.get("bias"))
            self.closest = min(self.closest, float(z.detach().abs().min()))
            inputs = self.twin.curve(z)
        return inputs


def leaf_rule(name: Any, activation: str) -> Any:
    """A rule by name, or the rule itself."""
    rules = {
        "delta": lambda: DeltaRule(activation),
        "measured": lambda: DeltaRule("measured", eps=1e-5),
    }
    return rules[name]() if isinstance(name, str) and name in rules else name


def affine_opaque(
    widths: Sequence[int],
    activation: str = "tanh",
    leaf: Any = "delta",
    *,
    seed: int = 0,
    device: Any = None,
    **options: Any,
) -> Opaque:
    """An `Opaque` of affine stages on one float64 fake device, with parameters of order 1."""
    device = device or FakeDevice.mlp(widths, activation, dtype="float64", seed=seed)
    rule = leaf_rule(leaf, activation)
    stages = [
        Stage(device, k, leaf=rule, twin=Affine(activation), initial=dict(device.read(k)))
        for k in range(len(widths) - 1)
    ]
    return Opaque(stages, seed=seed, **options).double()


def inputs(rows: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_(grad)


def loss_of(outputs: Tensor) -> Tensor:
    """Curved, and different for every output."""
    weights = torch.linspace(0.5, 1.5, outputs.shape[-1], dtype=outputs.dtype)
    return (weights * (outputs - 0.3) ** 2).sum()


def gradients(run: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Gradients of `loss_of(run(x))` for the parameters and, last, the input."""
    x = x.detach().clone().requires_grad_()
    return list(torch.autograd.grad(loss_of(run(x)), [*parameters, x]))


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of any gradient, as a norm. One of size 0 is compared with the largest of all."""
    scale = max(float(e.norm()) for e in expected)
    return max(
        float((f - e).norm()) / max(float(e.norm()), 1e-6 * scale, 1e-300) for f, e in zip(found, expected, strict=True)
    )


def cosine(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, b = (torch.cat([t.detach().flatten() for t in ts]) for ts in (found, expected))
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


PURPOSES = ("forward", "probes", "leaf")


def spent_and_predicted(
    module: Opaque, x: Tensor, learning_rate: float = 1e-3, **options: Any
) -> tuple[dict[str, Account], Forecast]:
    """What the second of two training steps cost by the ledger, and what the forecast says a step costs."""
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=learning_rate)
    before: dict[str, Account] = {}
    for _ in range(2):
        before = {p: Account(**vars(module.ledger.accounts[p])) for p in PURPOSES}
        optimiser.zero_grad()
        loss_of(module(x)).backward()
        optimiser.step()
    spent = {p: _less(module.ledger.accounts[p], before[p]) for p in PURPOSES}
    trained = [any(p.requires_grad for p in s.parameters()) for s in module.stages]
    predicted = forecast(
        module.network, module.resolved, module.rules, len(x), wanted=trained, needs_input=x.requires_grad, **options
    )
    return spent, predicted


def _less(after: Account, before: Account) -> Account:
    return Account(**{name: value - getattr(before, name) for name, value in vars(after).items()})


def differing(spent: dict[str, Account], predicted: Forecast) -> list[str]:
    """Every field of every purpose in which the two differ; seconds to rounding."""
    found = []
    for purpose in PURPOSES:
        for name, value in vars(spent[purpose]).items():
            expected = getattr(predicted.purposes[purpose], name)
            same = (
                abs(value - expected) <= 1e-9 * max(1.0, abs(expected))
                if name == "device_seconds"
                else value == expected
            )
            if not same:
                found.append(f"{purpose} {name}: ledger {value}, forecast {expected}")
    return found
