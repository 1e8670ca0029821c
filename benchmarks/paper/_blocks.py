"""Small residual networks of opaque stages, a linear stem and whole blocks: on a simulated device, or by autograd.

Also what a step of them costs. Knows no data and no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import _result  # isort: skip  # noqa: F401 - puts the folder above on the path
import torch
from resnet_step import frozen
from torch import Tensor, nn

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.credit.twin import TwinNetwork
from hzo_hil.devices.api import Local
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.forecast import rows_of
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach, StageModel
from hzo_hil.simulators.residual_block import ResidualBlock
from hzo_hil.simulators.twins import Twin
from hzo_hil.streams import generator
from hzo_hil.zoo import GlobalMean, multiplications

FLOAT_BYTES = 4
CALL = 8192  # rows at a time: larger calls take longer to find memory for than to compute


@dataclass(frozen=True)
class Net:
    """`patch`: side and stride of the stem; `blocks`: (channels, stride) of each; `size`: of the images; `eps`: the
    step of probes.
    """

    size: int
    patch: int
    blocks: tuple[tuple[int, int], ...]
    eps: float

    @property
    def stem(self) -> Local:
        """3 x 3 on pixels, else patches that do not overlap."""
        kernel, padding = (3, 1) if self.patch == 1 else (self.patch, 0)
        return Local.conv(3, self.blocks[0][0], (self.size, self.size), kernel, self.patch, padding)

    @property
    def models(self) -> list[StageModel]:
        found: list[StageModel] = [EmulatedConv(Reach(**vars(self.stem)), bias=True, name="stem")]
        channels, shape = self.blocks[0][0], self.stem.out_shape
        for number, (out, stride) in enumerate(self.blocks, start=1):
            block = ResidualBlock(channels, out, (shape[0], shape[1]), stride, name=f"block{number}")
            found.append(block)
            channels, shape = out, block.convolutions[1].out_shape
        return found

    @property
    def macs(self) -> list[int]:
        """Multiply-accumulates of one image through each stage."""
        blocks = [m for m in self.models if isinstance(m, ResidualBlock)]
        return [multiplications(self.stem)] + [
            sum(multiplications(Local(**vars(reach))) for reach in block.convolutions) for block in blocks
        ]

    def opaque(self, engine: str = "native", values: Sequence[dict[str, Any]] = (), seed: int = 0) -> Opaque:
        """All stages on one device, probed sample by sample; `values`: what each starts from."""
        models = self.models
        device = SimulatedDevice(models, identity="network", engine=engine, max_batch=CALL)
        stages = [
            Stage(device, k, leaf="autograd", twin=Twin(model), initial=value)
            for k, (model, value) in enumerate(zip(models, values or [{}] * len(models), strict=True))
        ]
        return Opaque(stages, plan=Plan("bisect", eps=self.eps, shared=False), name="network", seed=seed)

    def start(self, images: Tensor, seed: int) -> list[dict[str, Any]]:
        """He's weights, and norms with the statistics of these images as gains and shifts."""
        stem, *blocks = self.models
        values = {n: v.astype("float32") for n, v in stem.initial(generator(seed, "stem")).items()}
        with torch.no_grad():
            first = Twin(stem)(images, **{n: torch.from_numpy(v) for n, v in values.items()})
            return [values, *frozen(blocks, first, seed)]


def on_device(net: Net, images: Tensor, classes: int, seed: int, engine: str = "native") -> nn.Sequential:
    """The stages on a device, then mean and linear head. `images` [n, values] set the frozen norms."""
    torch.manual_seed(seed)
    out = net.blocks[-1][0]
    return nn.Sequential(net.opaque(engine, net.start(images, seed), seed), GlobalMean(out), nn.Linear(out, classes))


def by_autograd(net: Net, images: Tensor, classes: int, seed: int) -> nn.Sequential:
    """The same network with the same start on the host."""
    device, *rest = on_device(net, images, classes, seed)
    return nn.Sequential(TwinNetwork(device.network, device.stages), *rest)


@dataclass(frozen=True)
class Cost:
    """Of the probes of one sample in one step. `passes`: of forward passes of that sample; `moved`: bytes that go to
    the device and come back.
    """

    queries: int
    macs: int
    passes: float
    moved: int


def cost_of(net: Net) -> Cost:
    module, macs = net.opaque(), net.macs
    cuts = [(c.at, c.source, rows_of(module.network, module.resolved.at[c.at])) for c in module.resolved.tree.cuts]
    widths = [module.network.width(k) for k in range(module.network.depth + 1)]
    spent = sum(rows * sum(macs[at:source]) for at, source, rows in cuts)
    moved = sum(rows * FLOAT_BYTES * (widths[at] + widths[source]) for at, source, rows in cuts)
    return Cost(sum(rows for _, _, rows in cuts), spent, spent / sum(macs), moved)
