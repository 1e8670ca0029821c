"""DeepZero on ResNet-20: what feature reuse saves of a step, and its counts.

The authors' fig. 5: reuse halves the time of dense coordinate-wise training. That is the target here.

A coordinate of parameter p costs what follows p. Both costs of one probe in each of the 59 parameters are measured in
the same run, through the optimiser's own `FeatureReuse`: multiply-accumulates of convolutions and the head by hooks,
and time as the fastest of three. A step's is the sum over its coordinates, all 269,722 or those of a mask at 90 %:
uniform, or with fractions by ZO-GraSP (q = 192) in both rankings. The network is at its initial values, in training
mode, float32; the batch are the first images of CIFAR-10 where HZO_DATA has it, else random ones. ZO-GraSP sees the
same batch, which is smaller than the authors' 250 images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from _rows import Rows, arguments
from torch import Tensor, nn
from torch.nn import functional

from hzo_hil.data import load
from hzo_hil.devices.errors import DataError
from hzo_hil.optim import DeepZero, FeatureReuse, statistics_kept
from hzo_hil.optim.deepzero import kept
from hzo_hil.optim.grasp import RANKINGS, grasp_scores, prunable, pruned_fractions
from hzo_hil.zoo import HostConv, resnet20

SPARSITY = 0.9


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Multiply-accumulates for one image of every convolution and linear layer that runs within."""
    found: list[int] = []

    def count(module: nn.Module, _: object, outputs: Tensor) -> None:
        weight = module.get_parameter("weight")
        found.append(outputs[0].numel() * weight[0].numel())

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def fastest(call: Callable[[], object], tries: int) -> float:
    found = []
    for _ in range(tries):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


class Costs:
    """Of one probe in each parameter, restarted and whole: multiply-accumulates, seconds, and losses that differ."""

    def __init__(self, model: FeatureReuse, closure: Callable[[], Tensor], tries: int) -> None:
        self.macs: dict[str, list[int]] = {"reuse": [], "whole": []}
        self.seconds: dict[str, list[float]] = {"reuse": [], "whole": []}
        self.different = 0
        with torch.no_grad(), statistics_kept(model):
            with model.keep():
                closure()
            for parameter in model.parameters():
                losses = []
                element = parameter.view(-1)[0]
                before = element.item()
                element += 5e-3
                for way in ("reuse", "whole"):
                    with model.perturbed(parameter) if way == "reuse" else nullcontext():
                        with counted(model) as macs:
                            losses.append(closure())
                        self.macs[way].append(sum(macs))
                        self.seconds[way].append(fastest(closure, tries))
                element.fill_(before)  # taking the step away again may be an ulp off, and the features with it
                self.different += not torch.equal(*losses)


def pictures(batch: int) -> tuple[str, Tensor, Tensor]:
    """Where they are from, images `[batch, 3072]` and labels."""
    try:
        found = load("cifar10", flatten=True, limit_train=batch)
    except DataError:
        return "random", torch.randn(batch, 3 * 32 * 32), torch.arange(batch) % 10
    return "CIFAR-10", torch.tensor(found.x_train), torch.tensor(found.y_train)


def weighted(costs: Sequence[float], coordinates: Sequence[int]) -> float:
    return sum(cost * count for cost, count in zip(costs, coordinates, strict=True))


def main() -> None:
    args = arguments(__doc__)
    batch, tries, queries = (8, 1, 4) if args.quick else (16, 3, 192)
    torch.manual_seed(0)
    model = FeatureReuse(resnet20(HostConv))
    parameters = list(model.parameters())
    source, images, labels = pictures(batch)

    def closure() -> Tensor:
        return functional.cross_entropy(model(images), labels)

    rows = Rows()
    rows.environment()
    rows.row("batch", batch, f"images, {source}")
    weights = [p for p in parameters if prunable(p)]
    rows.row("parameters of ResNet-20", sum(p.numel() for p in parameters), "numbers", target="== 269722")
    rows.row("prunable weights", sum(w.numel() for w in weights), "numbers", target="== 268336")

    with statistics_kept(model):
        scores = grasp_scores(weights, closure, queries)
    masks = {"dense": [0.0] * len(weights), "90 %, uniform": [SPARSITY] * len(weights)}
    masks |= {f"90 %, ZO-GraSP, {r} scores": pruned_fractions(scores, SPARSITY, r) for r in RANKINGS}
    costs = Costs(model, closure, tries)
    rows.row("losses that reuse changes", costs.different, f"of {len(parameters)}", target="== 0")
    for name, of_weights in masks.items():
        given = iter(of_weights)
        fractions = [next(given) if prunable(p) else 0.0 for p in parameters]
        optimizer = DeepZero(parameters, fractions=fractions, model=model)
        coordinates = [kept(p.numel(), f) for p, f in zip(parameters, fractions, strict=True)]
        exact = {"dense": "== 269722"}.get(name, "== 28220" if "GraSP" in name else None)
        rows.row(f"{name}: coordinates a step", optimizer.coordinates, "coordinates", target=exact)
        for what, unit, found in (
            ("multiply-accumulates", "of one image", costs.macs), ("time", f"s, batch {batch}", costs.seconds),
        ):  # fmt: skip
            reuse, whole = (weighted(found[way], coordinates) for way in ("reuse", "whole"))
            rows.row(
                f"{name}: {what} of a step", reuse, unit, against="whole passes", ratio=reuse / whole,
                target="<= 0.5" if name == "dense" else None,
            )  # fmt: skip
    rows.exit()


if __name__ == "__main__":
    main()
