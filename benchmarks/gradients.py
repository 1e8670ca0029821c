"""Gradients without noise in float64 against autograd, over trees, probe sets, leaf rules and kinds of network.

`plain`: one opaque run. `residual`: the run inside a skip. `mixed`: host layer, run, host layer, run inside a skip.
The value is the worst relative error (a norm) of any parameter's or the input's gradient. Last, a network of
intensities: it takes and gives positive values only, with activations at exactly 0 and at full scale; there the value
is the cosine to autograd. `--quick`: one random network each instead of five.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from _rows import Rows, arguments
from torch import Tensor, nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.api import BoundarySpec, ParameterSpec, StageSpec
from hzo_hil.devices.fake import FakeDevice, FakeStage
from hzo_hil.layers import Residual
from hzo_hil.updates.delta import DeltaRule

TREES, PROBES, LEAVES = ("bisect", "chain", "direct"), ("coordinate", "hadamard"), ("delta", "autograd")
KINDS = ("plain", "residual", "mixed")


class Affine(nn.Module):
    """tanh(W x + b): what the fake device computes."""

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(inputs, weight, bias))


class Intensity(nn.Module):
    """|W a|^2 of complex fields as a detector with a full scale of 1 reads it."""

    def forward(self, inputs: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
        return ((inputs @ real.T) ** 2 + (inputs @ imaginary.T) ** 2).clamp(0, 1)


class OnHost(nn.Module):
    """An opaque run by ordinary torch, on the same parameters."""

    def __init__(self, opaque: Opaque, twin: nn.Module) -> None:
        super().__init__()
        self.stages = opaque.stages
        self.twin = twin

    def forward(self, inputs: Tensor) -> Tensor:
        for stage in self.stages:
            inputs = self.twin(inputs, **dict(stage.named_parameters()))
        return inputs


def run_of_stages(widths: Sequence[int], leaf: str, seed: int, **options: Any) -> Opaque:
    device = FakeDevice.mlp(widths, "tanh", dtype="float64", seed=seed)
    rule = DeltaRule("tanh") if leaf == "delta" else leaf
    stages = [Stage(device, k, leaf=rule, twin=Affine(), initial=dict(device.read(k))) for k in range(len(widths) - 1)]
    return Opaque(stages, seed=seed, name=f"run{seed}", **options).double()


def network(kind: str, rng: np.random.Generator, leaf: str, **options: Any) -> tuple[int, nn.Module, nn.Module]:
    """Input width, the network with its runs on devices, and the same network on the host alone."""

    def widths(first: int, last: int) -> list[int]:
        return [first, *rng.integers(2, 9, rng.integers(1, 6)).tolist(), last]

    def run(first: int, last: int) -> tuple[Opaque, OnHost]:
        opaque = run_of_stages(widths(first, last), leaf, int(rng.integers(1000)), **options)
        return opaque, OnHost(opaque, Affine())

    n = int(rng.integers(2, 9))
    if kind == "plain":
        return n, *run(n, 3)
    if kind == "residual":
        device, host = run(n, n)
        return n, Residual(device), Residual(host)
    first, second = run(5, n), run(n, n)
    before = nn.Sequential(nn.Linear(n, 5), nn.GELU()).double()
    between = nn.Linear(n, n).double()
    on_device = nn.Sequential(before, first[0], between, Residual(second[0]))
    return n, on_device, nn.Sequential(before, first[1], between, Residual(second[1]))


def gradients(model: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    return list(torch.autograd.grad(((model(x) - 0.3) ** 2).sum(), [*parameters, x]))


def worst(kind: str, networks: int, **options: Any) -> float:
    """Largest relative error of any gradient over some random networks."""
    errors = []
    for seed in range(networks):
        torch.manual_seed(seed)
        width, on_device, on_host = network(kind, np.random.default_rng(seed), **options)
        x = torch.randn(6, width, dtype=torch.float64)
        parameters = list(on_device.parameters())
        pairs = zip(gradients(on_device, parameters, x), gradients(on_host, parameters, x), strict=True)
        errors += [float((a - b).norm() / b.norm()) for a, b in pairs]
    return max(errors)


def intensities(probes: str) -> tuple[float, float]:
    """Cosine of all gradients to autograd, and the fraction of activations at an end of the range."""
    rng = np.random.default_rng(0)
    widths = (6, 5, 7, 4)
    fakes = [_detectors(a, b, rng) for a, b in itertools.pairwise(widths)]
    device = FakeDevice.functions(fakes, dtype="float64", boundaries=BoundarySpec(low=0.0, high=1.0))
    stages = [Stage(device, k, leaf="autograd", twin=Intensity(), initial=f.initial) for k, f in enumerate(fakes)]
    module = Opaque(stages, probes=probes).double()
    host = OnHost(module, Intensity())
    x = torch.as_tensor(rng.uniform(-1, 2, (32, widths[0])).clip(0, 1))
    x[:, 0] = 0.9  # no row is dark
    parameters = list(module.parameters())
    found, expected = (torch.cat([g.flatten() for g in gradients(model, parameters, x)]) for model in (module, host))
    with torch.no_grad():
        driven = [x]
        for stage in list(module.stages)[:-1]:
            driven.append(Intensity()(driven[-1], **dict(stage.named_parameters())))
    flat = torch.cat([a.flatten() for a in driven])
    ends = float(((flat == 0) | (flat == 1)).double().mean())
    return float(found @ expected / (found.norm() * expected.norm())), ends


def _detectors(width: int, out: int, rng: np.random.Generator) -> FakeStage:
    """Detectors of which the first stays dark and the second is driven beyond full scale."""
    initial = {n: rng.normal(scale=0.7 / np.sqrt(width), size=(out, width)) for n in ("real", "imaginary")}
    for values in initial.values():
        values[0], values[1] = 0.0, 1.0
    spec = StageSpec("detectors", width, out, tuple(ParameterSpec(n, v.shape) for n, v in initial.items()))

    def run(a: Any, p: Any) -> Any:
        return np.clip((a @ p["real"].T) ** 2 + (a @ p["imaginary"].T) ** 2, 0, 1)

    return FakeStage(spec, run, initial)


def main() -> None:
    networks = 1 if arguments(__doc__).quick else 5
    rows = Rows()
    for kind, tree, probes, leaf in itertools.product(KINDS, TREES, PROBES, LEAVES):
        error = worst(kind, networks, tree=tree, probes=probes, leaf=leaf)
        case = f"{kind} {tree} {probes} {leaf}"
        rows.row(case, error, "relative error", against="autograd", target="<= 1e-7", networks=networks)
    for probes in PROBES:
        cosine, ends = intensities(probes)
        rows.row(f"intensities only, {probes}", cosine, "cosine", against="autograd", target=">= 0.999", at_an_end=ends)
    rows.exit()


if __name__ == "__main__":
    main()
