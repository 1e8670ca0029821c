"""Networks of opaque stages, probed sample by sample: on a simulated device, or by autograd. Of a linear stem and whole
residual blocks, or of units of one convolution each.

Also what a step of them costs. Knows no data and no training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
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
from hzo_hil.simulators.conv_unit import ConvUnit
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach, StageModel
from hzo_hil.simulators.residual_block import ResidualBlock
from hzo_hil.simulators.twins import Twin
from hzo_hil.streams import generator
from hzo_hil.zoo import GlobalMean, multiplications

FLOAT_BYTES = 4
CALL = 8192  # rows at a time: larger calls take longer to find memory for than to compute


@dataclass(frozen=True)
class Net(ABC):
    """`size`: of the images; `patch`: side and stride of the first stage; `eps`: the step of probes."""

    size: int
    patch: int
    eps: float

    @property
    @abstractmethod
    def models(self) -> list[StageModel]: ...

    @property
    @abstractmethod
    def plan(self) -> Plan: ...

    @property
    @abstractmethod
    def macs(self) -> list[int]:
        """Multiply-accumulates of one image through each stage."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of the last stage."""

    @abstractmethod
    def start(self, images: Tensor, seed: int) -> list[dict[str, Any]]:
        """He's weights, and norms with the statistics of these images as gains and shifts."""

    def stem(self, channels: int) -> Local:
        """3 x 3 on pixels, else patches that do not overlap."""
        kernel, padding = (3, 1) if self.patch == 1 else (self.patch, 0)
        return Local.conv(3, channels, (self.size, self.size), kernel, self.patch, padding)

    def opaque(self, engine: str = "native", values: Sequence[dict[str, Any]] = (), seed: int = 0) -> Opaque:
        """All stages on one device, probed sample by sample; `values`: what each starts from."""
        models = self.models
        device = SimulatedDevice(models, identity="network", engine=engine, max_batch=CALL)
        stages = [
            Stage(device, k, leaf="autograd", twin=Twin(model), initial=value)
            for k, (model, value) in enumerate(zip(models, values or [{}] * len(models), strict=True))
        ]
        return Opaque(stages, plan=self.plan, name="network", seed=seed)


@dataclass(frozen=True)
class BlockNet(Net):
    """A linear stem and basic residual blocks, by bisection; `blocks`: (channels, stride) of each."""

    blocks: tuple[tuple[int, int], ...]

    @property
    def channels(self) -> int:
        return self.blocks[-1][0]

    @property
    def plan(self) -> Plan:
        return Plan("bisect", eps=self.eps, shared=False)

    @property
    def models(self) -> list[StageModel]:
        stem = self.stem(self.blocks[0][0])
        found: list[StageModel] = [EmulatedConv(Reach(**vars(stem)), bias=True, name="stem")]
        channels, shape = self.blocks[0][0], stem.out_shape
        for number, (out, stride) in enumerate(self.blocks, start=1):
            block = ResidualBlock(channels, out, (shape[0], shape[1]), stride, name=f"block{number}")
            found.append(block)
            channels, shape = out, block.convolutions[1].out_shape
        return found

    @property
    def macs(self) -> list[int]:
        blocks = [m for m in self.models if isinstance(m, ResidualBlock)]
        return [multiplications(self.stem(self.blocks[0][0]))] + [
            sum(multiplications(Local(**vars(reach))) for reach in block.convolutions) for block in blocks
        ]

    def start(self, images: Tensor, seed: int) -> list[dict[str, Any]]:
        stem, *blocks = self.models
        values = {n: v.astype("float32") for n, v in stem.initial(generator(seed, "stem")).items()}
        with torch.no_grad():
            first = Twin(stem)(images, **{n: torch.from_numpy(v) for n, v in values.items()})
            return [values, *frozen(blocks, first, seed)]


@dataclass(frozen=True)
class UnitNet(Net):
    """Separable convolutions, each with norm, rectifier and skip a stage, by the chain and one-sided differences: the
    device has no noise, so that nothing asks less. `groups`: (channels, pairs) at each resolution, a pair being 3 x 3
    on each channel by itself and 1 x 1 across channels; a group begins with a pair of 2 x 2 patches and 1 x 1.
    """

    groups: tuple[tuple[int, int], ...]

    @property
    def channels(self) -> int:
        return self.groups[-1][0]

    @property
    def plan(self) -> Plan:
        return Plan("chain", eps=self.eps, differences="forward", shared=False)

    @property
    def models(self) -> list[ConvUnit]:  # type: ignore[override]
        return [ConvUnit(Reach(**vars(r)), name=f"unit{k}") for k, r in enumerate(self._reaches())]

    def _reaches(self) -> Iterator[Local]:
        before = self.stem(self.groups[0][0])
        yield before
        for number, (channels, pairs) in enumerate(self.groups):
            if number:
                before = _each_channel(before, 2, stride=2)
                yield before
                before = Local.conv(before.out_channels, channels, before.out_shape, 1)
                yield before
            for _ in range(pairs):
                before = _each_channel(before, 3, padding=1)
                yield before
                before = Local.conv(channels, channels, before.out_shape, 1)
                yield before

    @property
    def macs(self) -> list[int]:
        return [multiplications(Local(**vars(m.reach))) for m in self.models]

    @torch.no_grad()
    def start(self, images: Tensor, seed: int) -> list[dict[str, Any]]:
        found = []
        for k, model in enumerate(self.models):
            drawn = {n: torch.as_tensor(v).float() for n, v in model.initial(generator(seed, "unit", k)).items()}
            sums = Twin(EmulatedConv(model.reach))(images, weight=drawn["weight"])
            each = sums.reshape(len(images), model.reach.out_channels, -1)
            drawn["gain"] = 1 / (each.std((0, 2)) + 1e-5)
            drawn["shift"] = -drawn["gain"] * each.mean((0, 2))
            images = Twin(model)(images, **drawn)
            found.append({n: v.numpy() for n, v in drawn.items()})
        return found


def _each_channel(before: Local, kernel: int, stride: int = 1, padding: int = 0) -> Local:
    channels = before.out_channels
    return Local.conv(channels, channels, before.out_shape, kernel, stride, padding, groups=channels)


def on_device(net: Net, images: Tensor, classes: int, seed: int, engine: str = "native") -> nn.Sequential:
    """The stages on a device, then mean and linear head. `images` [n, values] set the frozen norms."""
    torch.manual_seed(seed)
    device = net.opaque(engine, net.start(images, seed), seed)
    return nn.Sequential(device, GlobalMean(net.channels), nn.Linear(net.channels, classes))


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
