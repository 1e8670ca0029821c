"""Master parameters of one module and the record of what was last made of them for the device.

An epoch counts the versions of a stage's written values: it moves when converter codes change, whatever changed the
master.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Network, Stage
from hzo_hil.parameters import fold, to_device
from hzo_hil.streams import generator

Array = NDArray[Any]


class StageMasters(nn.Module):
    """The parameters of one logical stage, by the names of its specs."""

    def __init__(self, stage: Stage, seed: int, name: str, position: int) -> None:
        super().__init__()
        unknown = sorted(set(stage.initial) - set(stage.parameters))
        if unknown:
            raise BadInput(f"stage {stage.label} has no parameters {unknown}; it has {sorted(stage.parameters)}")
        rng = generator(seed, "initial", name, position)
        for parameter, (_, spec) in stage.parameters.items():
            drawn = initial_values(spec, rng, 2 if stage.tiles else 0)
            given = stage.initial.get(parameter)
            value = torch.as_tensor(np.asarray(given, dtype=float)) if given is not None else torch.from_numpy(drawn)
            if value.shape != spec.shape:
                raise BadInput(
                    f"initial {parameter!r} of stage {stage.label} has shape {list(value.shape)}, expected"
                    f" {list(spec.shape)}"
                )
            self.register_parameter(parameter, nn.Parameter(value.to(torch.float32)))


def initial_values(spec: ParameterSpec, rng: np.random.Generator, block_axes: int = 0) -> Array:
    """Uniform over a finite range; else uniform in +-1/sqrt(fan in) for matrices and 0 for vectors (as torch's Linear,
    biases apart).
    """
    if np.isfinite(spec.low) and np.isfinite(spec.high):
        return rng.uniform(spec.low, spec.high, spec.shape)
    if len(spec.shape) - block_axes >= 2:
        bound = 1 / np.sqrt(spec.shape[-1])
        return rng.uniform(-bound, bound, spec.shape).clip(spec.low, spec.high)
    return np.zeros(spec.shape).clip(spec.low, spec.high)


class Written:
    """What the device should hold of each stage, and the epoch of that."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.epochs = [0] * network.depth
        self.history = 0
        """Moves when epochs are set back: the same epoch then names other values."""
        self.values: list[dict[str, Array]] = [{} for _ in range(network.depth)]

    def changed(self, stages: nn.ModuleList) -> dict[int, dict[str, Array]]:
        """Stages (0-based) whose masters would be written differently now, and how."""
        found = {}
        for k, values in enumerate(self.values):
            fresh = self._of(k, stages)
            if fresh.keys() != values.keys() or any(not np.array_equal(fresh[n], values[n]) for n in fresh):
                found[k] = fresh
        return found

    def update(self, stages: nn.ModuleList, count: Any) -> None:
        """Fold masters into their ranges and take over what changed. `count(event, number)` hears of folded values."""
        for k, stage in enumerate(self.network.stages):
            folded = 0
            with torch.no_grad():
                for name, (_, spec) in stage.parameters.items():
                    folded += fold(spec, getattr(stages[k], name))
            count("folded", folded)
        for k, fresh in self.changed(stages).items():
            self.values[k] = fresh
            self.epochs[k] += 1

    def restore(self, stages: nn.ModuleList, epochs: list[int]) -> None:
        """Take over masters that were loaded, at the epochs they were saved with."""
        self.update(stages, lambda *_: None)
        self.epochs = list(epochs)
        self.history += 1

    def take_back(self, epochs: list[int], values: list[dict[str, Array]]) -> None:
        """What was made of the masters at earlier epochs; devices are no longer held to what came since."""
        if epochs != self.epochs:
            self.epochs, self.values = epochs, values
            self.history += 1

    def _of(self, k: int, stages: nn.ModuleList) -> dict[str, Array]:
        stage = self.network.stages[k]
        dtype = stage.device.capabilities.dtype
        where = f"stage {k + 1} ({stage.label})"
        return {n: to_device(spec, getattr(stages[k], n), dtype, where) for n, (_, spec) in stage.parameters.items()}

    def images(
        self, k: int, tile: tuple[int, int] | None, values: Mapping[str, Array] | None = None
    ) -> dict[int, dict[str, Array]]:
        """Physical stage -> parameter name -> values, for logical stage k (0-based) and one of its blocks."""
        stage = self.network.stages[k]
        values = self.values[k] if values is None else values
        found: dict[int, dict[str, Array]] = {}
        for name, (physical, spec) in stage.parameters.items():
            block = values[name][tile] if tile is not None else values[name]
            found.setdefault(physical, {})[spec.name] = np.ascontiguousarray(block)
        return found

    def tensors(self, k: int, tile: tuple[int, int] | None, like: Tensor) -> dict[str, Tensor]:
        """Values as written, by master name, on the masters' device."""
        stage = self.network.stages[k]
        return {
            name: torch.as_tensor(self.values[k][name][tile] if tile is not None else self.values[k][name]).to(like)
            for name in stage.parameters
        }
