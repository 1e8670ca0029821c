"""A walk over coordinates of one model: probes restart from kept features, and running statistics count a batch once.

It knows the parameter that each probe perturbs; it knows no optimiser and no differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil.optim.oracle import Closure
from hzo_hil.optim.reuse import FeatureReuse


class Walk:
    """A closure around a closure: called first where nothing is perturbed, then once for each of `owners`.

    owners: the parameter perturbed in each evaluation after the first. Buffers of `model` (running statistics of batch
    norm) advance with the first evaluation only, else a thousand probes would count their batch a thousand times.
    """

    def __init__(self, model: nn.Module | None, closure: Closure, owners: Sequence[Tensor]) -> None:
        self._model = model
        self._reuse = model if isinstance(model, FeatureReuse) else None
        self._closure = closure
        self._owners = owners
        self._asked = 0

    def __call__(self) -> Any:
        self._asked += 1
        if self._asked > 1:
            with self._reuse.perturbed(self._owners[self._asked - 2]) if self._reuse else nullcontext():
                return self._closure()
        with self._reuse.keep() if self._reuse else nullcontext():
            loss = self._closure()
        self._statistics = buffers(self._model)
        return loss

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """All evaluations happen within; if one fails, the buffers are as before the first."""
        self._statistics = before = buffers(self._model)
        try:
            yield
        except BaseException:
            self._statistics = before
            raise
        finally:
            put_buffers(self._model, self._statistics)
            if self._reuse:
                self._reuse.forget()


@contextmanager
def statistics_kept(model: nn.Module | None) -> Iterator[None]:
    """Whatever is evaluated within, the model's buffers are afterwards as they were."""
    before = buffers(model)
    try:
        yield
    finally:
        put_buffers(model, before)


def buffers(model: nn.Module | None) -> list[Tensor]:
    """Copies of a model's buffers."""
    return [] if model is None else [b.detach().clone() for b in model.buffers()]


@torch.no_grad()
def put_buffers(model: nn.Module | None, values: Sequence[Tensor]) -> None:
    """Set a model's buffers to values on any device."""
    for buffer, value in zip([] if model is None else model.buffers(), values, strict=True):
        buffer.copy_(value)
