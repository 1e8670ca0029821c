"""Forward parallelism: coordinates are independent, so copies of a model, on devices of their own, share them out.

Each copy runs in a thread, which suits whatever waits outside the interpreter: devices, sockets, GPUs. It knows how to
ask copies for a coordinate-wise gradient, not what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.cge import coordinate_gradient
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Closure, Oracle
from hzo_hil.optim.reuse import FeatureReuse
from hzo_hil.optim.walk import Walk

Gradient = tuple[Tensor, float]
Probes = list[tuple[int, int]]  # (coordinate of the flat vector, number of the parameter it lies in)


class Replica:
    """One copy of `model`, its parameters paired with those of an optimiser's groups by their names."""

    def __init__(self, number: int, groups: Sequence[dict[str, Any]], model: nn.Module, copy: nn.Module) -> None:
        self.where = f"replica {number}"
        if isinstance(model, FeatureReuse) != isinstance(copy, FeatureReuse):
            raise BadInput(f"{self.where}: wrap the model and all replicas in FeatureReuse, or none")
        if [t.shape for t in _tensors(model)] != [t.shape for t in _tensors(copy)]:
            raise BadInput(f"{self.where} is no copy of the model: its parameters or buffers have other shapes")
        names = {id(p): name for name, p in model.named_parameters()}
        own = dict(copy.named_parameters())
        self.model = copy
        self.at = Flat(
            [{**group, "params": [self._paired(p, names, own) for p in group["params"]]} for group in groups]
        )

    def _paired(self, parameter: Tensor, names: dict[int, str], own: dict[str, nn.Parameter]) -> nn.Parameter:
        name = names.get(id(parameter))
        if name is None:
            raise BadInput("with replicas, all parameters of the optimiser must be the model's: one trained is not")
        found = own.get(name)
        if found is parameter:
            raise BadInput(f"{self.where} shares parameter {name} with the model: give it a copy (copy.deepcopy)")
        same = found is not None and (found.shape, found.dtype, found.requires_grad) == (
            parameter.shape, parameter.dtype, parameter.requires_grad
        )  # fmt: skip
        if found is None or not same:
            raise BadInput(f"{self.where} has no parameter {name} of the model's shape, dtype and requires_grad")
        return found

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take over every parameter and buffer of the model, trained or not."""
        for own, theirs in zip(_tensors(self.model), _tensors(model), strict=True):
            own.copy_(theirs)

    @torch.no_grad()
    def gradient(self, w: Tensor, oracle: Oracle, walk: Walk, probes: Iterator[int]) -> Tensor:
        """The differences of its own losses along `probes`, zero elsewhere: [size], on the device of `w`."""
        with walk.under_way():
            found, _ = coordinate_gradient(self.at, w.to(self.at.device), oracle, probes)
        return found.to(w.device)


class Replicas:
    """All copies of a model. Without any, everything is asked of the model itself."""

    def __init__(self, groups: Sequence[dict[str, Any]], model: nn.Module | None, copies: Sequence[nn.Module]) -> None:
        if copies and model is None:
            raise BadInput("replicas are copies of a model: give the optimiser model= as well")
        self._model = model
        self._all = [Replica(k, groups, model, copy) for k, copy in enumerate(copies, 1) if model is not None]
        self._closures: Sequence[Closure] = ()

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def asked_by(self, closures: Sequence[Closure]) -> Iterator[None]:
        """What is asked within goes to replicas through these, one for each."""
        if len(closures) != len(self):
            raise BadInput(
                f"there are {len(self)} replicas and closures for {len(closures)}: give the model's closure, then one"
                " for each replica, which runs that replica on the same batch"
            )
        self._closures = closures
        try:
            yield
        finally:
            self._closures = ()

    def shares(self, probes: Probes) -> list[Probes]:
        """The model's share, then the replicas': every n-th probe, so that cheap late layers are shared out as well."""
        ways = 1 + len(self)
        return [probes[first::ways] for first in range(ways)]

    def gradient(
        self, own: Callable[[Iterator[int]], Gradient], w: Tensor, shares: Sequence[Probes], oracle: Oracle, step: int
    ) -> Gradient:
        """The sum of `own(share)` of the model and the replicas' gradients; disjoint, so no bit depends on the split.

        Evaluations of replicas are added to `oracle.count`. If one fails the others stop at their next probe.
        """
        stop = Event()
        first, *others = [_until(stop, share) for share in shares]
        if self._model is None or not self._all:
            return own(first)
        asked = []
        for replica, closure, share in zip(self._all, self._closures, shares[1:], strict=True):
            replica.follow(self._model)
            walk = Walk(replica.model, closure, [replica.at.tensors[number] for _, number in share])
            asked.append((replica, Oracle(replica.at, walk, step, 1 + len(share)), walk))
        with ThreadPoolExecutor(len(asked)) as pool:
            tasks = [
                pool.submit(_or_stop, stop, replica.gradient, w, theirs, walk, probes)
                for (replica, theirs, walk), probes in zip(asked, others, strict=True)
            ]
            try:
                gradient, loss = _or_stop(stop, own, first)
            finally:
                pool.shutdown()
                oracle.count += sum(theirs.count for _, theirs, _ in asked)
        for task in tasks:
            gradient += task.result()
        return gradient, loss


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _until(stop: Event, probes: Probes) -> Iterator[int]:
    for coordinate, _ in probes:
        if stop.is_set():
            return
        yield coordinate


def _or_stop(stop: Event, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except BaseException:
        stop.set()
        raise
