"""Searches by other libraries behind the same step: what they ask is evaluated, and what they were told is kept.

A library's own state cannot be saved without pickling it. Instead `state["told"]` keeps every loss, and a search that
was loaded, or lost half a step to an error, is begun anew and told the same again: no loss is evaluated for that, but
it takes the library's own time. A method that then asks for other points than it did cannot be resumed; this is
noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Oracle
from hzo_hil.optim.settings import POSITIVE, Bound

Ask = Callable[[Tensor], float]


class Searched(LossOnly):
    """`lr`: the initial spread of what is asked, in the parameters' unit; it may differ from group to group.

    The search adapts its spread itself: a scheduler's changes after the first step have no effect. It owns the path:
    parameters changed from outside between steps are overwritten.
    """

    bounds: ClassVar[dict[str, Bound]] = {"lr": POSITIVE}

    def __init__(self, params: Any, lr: float, seed: int) -> None:
        super().__init__(params, {"lr": lr}, seed)
        self.state.update(told=[], start=None, spread=None, last=None)
        self._search: Any = None

    def _begin(self, at: Flat, start: Tensor, spread: float | Tensor) -> Any:
        """The library's search from `start` [size]."""
        raise NotImplementedError

    def _generation(self, search: Any, ask: Ask) -> Tensor:
        """Have the search ask for `queries_per_step` losses; where the parameters are to be afterwards [size]."""
        raise NotImplementedError

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        if self.state["start"] is None:
            self.state.update(start=w.clone(), spread=at.setting("lr"))
        asked: list[Tensor] = []
        losses: list[float] = []

        def ask(point: Tensor) -> float:
            losses.append(oracle(point))
            asked[:] = [point]
            return losses[-1]

        search = self._told_again(at) if self._search is None else self._search
        self._search = None
        found = self._generation(search, ask)
        self._search = search  # not after an error: half a generation has moved it
        self.state["told"].extend(losses)
        self.state["last"] = asked[0].clone()
        return found, sum(losses) / len(losses)

    def _told_again(self, at: Flat) -> Any:
        search = self._begin(at, self.state["start"].clone(), self.state["spread"])
        told: Iterator[float] = iter(self.state["told"])
        last: list[Tensor] = []

        def ask(point: Tensor) -> float:
            last[:] = [point]
            return next(told, 0.0)

        for _ in range(self.state["step"]):
            self._generation(search, ask)
        if next(told, None) is not None or (last and not torch.equal(last[0], self.state["last"])):
            raise BadInput(
                f"{type(self).__name__}: told the same losses again, the search asks for other points than it did. Its"
                " settings or the library's version differ from those that were saved, or this method does not draw"
                " from its seed alone: begin a new run"
            )
        return search

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.state["told"] = list(self.state["told"])
        self._search = None
