"""ResNet-20, one training step without noise in float32: what each way of cutting asks, and its gradients.

Cost is in full-forward equivalents: queries times the multiply-accumulates of their segment, over those of one forward
pass of the batch (digital head included). `uniform`: cut at convolutions, norms on the host, each convolution measured
once for the batch, and declared to have one kernel. `shared`: the same, only the reach declared. `convolutions`: the
same cuts, sample by sample. `blocks`: nine blocks with frozen norms as a chain of stages, probed through the rectifiers
inside. `bisection`: the same blocks halved. The cosine to autograd is the smallest over all parameter tensors, on
`cosine_batch` samples; counts are those of `batch` samples, by the forecast, after the ledger of the smaller batch has
been found equal to it. `eps`: the step, in activation units. Seconds are medians over steps before each of which every
convolution is written anew, those of a whole step beside plain torch's in the same run, with as many threads
(OMP_NUM_THREADS) as the row says. Peers: none counted here. `--quick`: smaller batches, and bisection counted only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _rows import Rows, arguments
from torch import Tensor, nn

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.credit.twin import TwinNetwork
from hzo_hil.devices.api import Local
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.forecast import forecast, rows_of
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach, StageModel
from hzo_hil.simulators.residual_block import ResidualBlock
from hzo_hil.simulators.twins import Twin
from hzo_hil.zoo import HostConv, multiplications, resnet20, resnet20_blocks

BATCH = 128
HEAD = 640  # multiply-accumulates of the last layer
EPS = 1e-3  # of probes through rectifiers


@dataclass
class Case:
    """A network with its runs on devices, the same by torch, and multiply-accumulates of each stage of each run."""

    device: nn.Module
    host: nn.Module
    macs: dict[str, list[int]]

    def runs(self) -> Iterator[Opaque]:
        return (m for m in self.device.modules() if isinstance(m, Opaque))

    @property
    def forward_macs(self) -> int:
        return sum(sum(m) for m in self.macs.values()) + HEAD


def opaque(
    name: str, models: Sequence[StageModel], values: Sequence[dict[str, Any]], plan: Plan, leaf: str = "autograd"
) -> Opaque:
    """One run of stages, each on a simulated device of its own kind, all in one."""
    device = SimulatedDevice(models, identity=name)
    stages = [
        Stage(device, k, leaf=leaf, twin=Twin(model), initial=value)
        for k, (model, value) in enumerate(zip(models, values, strict=True))
    ]
    return Opaque(stages, plan=plan, name=name)


class ReachOnly(EmulatedConv):
    """Declares how far it looks, but not that it looks alike everywhere."""

    @property
    def structure(self) -> Reach:
        return self.reach


def cut_at_convolutions(plan: Plan, uniform: bool = False) -> Case:
    torch.manual_seed(0)
    host = resnet20(HostConv)
    weights = iter([m.conv.weight.detach().numpy() for m in host.modules() if isinstance(m, HostConv)])
    macs: dict[str, list[int]] = {}

    def made(reach: Local, name: str) -> nn.Module:
        macs[name] = [multiplications(reach)]
        kind = EmulatedConv if uniform else ReachOnly
        leaf = "delta" if uniform else "autograd"
        return opaque(name, [kind(Reach(**vars(reach)), name=name)], [{"weight": next(weights)}], plan, leaf)

    device = resnet20(made)
    device.load_state_dict({n: v for n, v in host.state_dict().items() if "conv" not in n}, strict=False)
    return Case(device, host, macs)


def cut_at_blocks(plan: Plan, images: Tensor) -> Case:
    torch.manual_seed(0)
    stem = HostConv(Local.conv(3, 16, (32, 32), 3, padding=1))
    macs: dict[str, list[int]] = {"stem": [multiplications(Local.conv(3, 16, (32, 32), 3, padding=1))]}
    runs: list[Opaque] = []

    def blocks(shapes: Sequence[tuple[int, int, tuple[int, int], int]]) -> nn.Module:
        models = [ResidualBlock(*shape, name=f"block{k + 1}") for k, shape in enumerate(shapes)]
        macs["blocks"] = [sum(multiplications(Local(**vars(r))) for r in m.convolutions) for m in models]
        with torch.no_grad():
            values = frozen(models, nn.functional.batch_norm(stem(images), None, None, training=True).relu())
        runs.append(opaque("blocks", models, values, plan))
        return runs[0]

    device = resnet20_blocks(lambda *_: stem, blocks)
    torch.manual_seed(0)
    host = resnet20_blocks(lambda *_: stem, lambda _: TwinNetwork(runs[0].network, runs[0].stages))
    host.load_state_dict(device.state_dict(), strict=False)
    # The stem and the norm behind it are trained on the host: the target at the first block's input is needed.
    return Case(device, host, macs)


def frozen(models: Sequence[ResidualBlock], x: Tensor, seed: int = 0) -> list[dict[str, Any]]:
    """He's weights, and norms with the statistics of these activations as gains and shifts."""
    found = []
    for k, model in enumerate(models):
        values = {
            n: torch.as_tensor(v).float() for n, v in model.initial(np.random.default_rng(1000 * seed + k)).items()
        }
        inner = x
        for number, reach in enumerate(model.convolutions, start=1):
            sums = Twin(EmulatedConv(reach))(inner, weight=values[f"weight{number}"])
            channels = sums.reshape(len(x), model.out_channels, -1)
            gain = 1 / (channels.std((0, 2)) + 1e-5)
            shift = -gain * channels.mean((0, 2))
            values[f"gain{number}"], values[f"shift{number}"] = gain, shift
            inner = (channels * gain[:, None] + shift[:, None]).relu().flatten(1)
        x = Twin(model)(x, **values)
        found.append({n: v.numpy() for n, v in values.items()})
    return found


# --- what a step costs, and what it finds


def equivalents(case: Case, batch: int) -> float:
    """Full-forward equivalents of the probes of one step."""
    spent = 0
    for run in case.runs():
        macs = case.macs[run.name]
        needs_input = run.name != "stem"
        tree = run.resolved.tree.with_input() if needs_input else run.resolved.tree
        for cut in tree.cuts:
            planned = run.resolved.at[cut.at]
            rows = rows_of(run.network, planned) * (1 if planned.shared else batch)
            spent += rows * sum(macs[cut.at : cut.source])
    return spent / (batch * case.forward_macs)


def same_as_ledger(case: Case, batch: int) -> bool:
    """Whether what was asked is what is forecast for it."""
    found = True
    for run in case.runs():
        needs_input = run.name != "stem"
        expected = forecast(run.network, run.resolved, run.rules, batch, needs_input=needs_input)
        found = found and run.ledger.accounts["probes"].queries == expected.purposes["probes"].queries
    return found


def step(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass; gradients are left in the parameters."""
    start = time.perf_counter()
    loss = nn.functional.cross_entropy(model(x), y)
    middle = time.perf_counter()
    loss.backward()
    return middle - start, time.perf_counter() - middle


def cosines(case: Case, x: Tensor, y: Tensor) -> list[float]:
    found = []
    for model in (case.device, case.host):
        model.zero_grad()
        step(model, x, y)
        # `TwinNetwork` shares the masters, so the first answer is copied before the second is made.
        found.append([p.grad.flatten().double().clone() for p in model.parameters() if p.grad is not None])
    return [float(a @ b / (a.norm() * b.norm())) for a, b in zip(*found, strict=True)]


def report(rows: Rows, name: str, case: Case, batch: int, few: int, images: Tensor, labels: Tensor,
           most: int | None) -> None:  # fmt: skip
    start = time.perf_counter()
    similar = cosines(case, images[:few], labels[:few])
    seconds = time.perf_counter() - start
    counted = equivalents(case, batch)
    eps = sorted({e for run in case.runs() for e in run.resolved.eps})
    kinds = {"batch": batch, "cosine_batch": few, "eps": eps}
    rows.row(f"{name}: smallest cosine", min(similar), "cosine", against="autograd", target=">= 0.999",
             layers=len(similar), seconds=seconds, **kinds)  # fmt: skip
    rows.row(f"{name}: probes", counted, "forward passes", target=None if most is None else f"<= {most}", **kinds)
    rows.row(f"{name}: ledger equals forecast", int(same_as_ledger(case, few)), "yes or no", target="== 1")


def timed(rows: Rows, name: str, case: Case, batch: int, images: Tensor, labels: Tensor, rounds: int,
          target: str) -> None:  # fmt: skip
    """Seconds of a backward pass over those of a forward pass of the same network, and of both over plain torch's."""
    step(case.device, images[:batch], labels[:batch])  # colours are counted, kernels loaded
    step(case.host, images[:batch], labels[:batch])
    backwards, wholes = [], []
    for _ in range(rounds):
        with torch.no_grad():  # another epoch for every convolution: measured anew
            for run in case.runs():
                for p in run.parameters():
                    p.mul_(1.0001)
        forward, backward = step(case.device, images[:batch], labels[:batch])
        backwards.append(backward / forward)
        plain = sum(step(case.host, images[:batch], labels[:batch]))
        wholes.append((forward + backward) / plain)
    full = batch == BATCH  # what is measured once weighs more in a small batch
    rows.row(f"{name}: seconds of a backward pass", sorted(backwards)[rounds // 2], "forward passes",
             target="< 10" if full else None, batch=batch, forward_s=forward, backward_s=backward)  # fmt: skip
    rows.row(f"{name}: seconds of a step", forward + backward, "s", against="plain torch", baseline=plain,
             ratio=sorted(wholes)[rounds // 2], target=target if full else None, batch=batch, ratios=wholes,
             threads=torch.get_num_threads())  # fmt: skip


def main() -> None:
    quick = arguments(__doc__).quick
    rows = Rows()
    rows.environment()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3 * 32 * 32, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    blocks: Callable[[str], Case] = lambda tree: cut_at_blocks(Plan(tree, eps=EPS), images[:16])  # noqa: E731
    few, rounds = (8, 1) if quick else (BATCH, 7)
    for name, uniform, most, slower in (("uniform", True, 1, "<= 2.5"), ("shared", False, 7, "<= 20")):
        case = cut_at_convolutions(Plan(), uniform)
        report(rows, name, case, BATCH, few, images, labels, most)
        timed(rows, name, case, few, images, labels, rounds, slower)
    apart = cut_at_convolutions(Plan(shared=False))
    report(rows, "convolutions", apart, BATCH, 1 if quick else 8, images, labels, 700)
    report(rows, "blocks", blocks("chain"), BATCH, 1 if quick else 4, images, labels, 1810)
    if quick:
        rows.row("bisection: probes", equivalents(blocks("bisect"), 8), "forward passes", batch=8, eps=[EPS])
    else:
        report(rows, "bisection", blocks("bisect"), 8, 1, images, labels, None)
    rows.exit()


if __name__ == "__main__":
    main()
