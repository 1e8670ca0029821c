"""What a target rule is given of one backward pass, and what it declares: the contract of every credit but HZO's own.

A target rule turns the gradient at the last boundary into targets at those below. Some ask nothing, some ask a known
number of rows through a known segment. It knows neither modules nor leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray

from hzo_hil.network import Network
from hzo_hil.updates import LeafRule

Array = NDArray[Any]
OnTarget = Callable[[int, Array], None]


class Question(NamedTuple):
    """`rows` inputs a sample through stages lo+1..hi in one go; `repeats` shots of each."""

    lo: int
    hi: int
    rows: int
    repeats: int = 1


@dataclass(frozen=True)
class Pass:
    """One backward pass. Arrays are `[samples, width]`, in activation units.

    `activations` by boundary, as the device answered; `top` the gradient at the last; `values` what each stage holds,
    by master name; `leaves` the leaf rules; `wanted` which stages are trained; `eps` by boundary, the plan's step.
    `ask(question, rows)` sends rows (sample-major) and gives their answers, entered as probes; `key(*name)` names a
    stream of random numbers of this pass; `like` has the masters' dtype and host device.
    """

    network: Network
    activations: Mapping[int, Array]
    top: Array
    values: Sequence[Mapping[str, Array]]
    leaves: Sequence[LeafRule | None]
    wanted: Sequence[bool]
    needs_input: bool
    eps: Sequence[float]
    ask: Callable[[Question, Array], Array]
    key: Callable[..., int]
    like: torch.Tensor

    @property
    def lowest(self) -> int:
        """The first boundary whose target is needed."""
        return lowest(self.wanted, self.needs_input)


def lowest(wanted: Sequence[bool], needs_input: bool) -> int:
    if needs_input:
        return 0
    return next((k + 1 for k, w in enumerate(wanted) if w), len(wanted))


class TargetRule(Protocol):
    """`credit` is its name. `targets` hands the target at every boundary from the last but one down to `lowest` (or, of
    those, at outputs of trained stages at least) to `on_target`, from above.

    `check` is called once, before any device time: it raises BadInput where network or leaves do not allow the rule.
    `questions` is what a pass will ask, in order, as `targets` asks it. `state`/`load`: what a checkpoint must keep, as
    plain data with tensors. `learns`: the state changes from pass to pass.
    """

    @property
    def credit(self) -> str: ...
    @property
    def learns(self) -> bool: ...
    def check(self, network: Network, leaves: Sequence[LeafRule | None]) -> None: ...
    def questions(self, network: Network, wanted: Sequence[bool], needs_input: bool) -> list[Question]: ...
    def targets(self, given: Pass, on_target: OnTarget) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: Mapping[str, Any]) -> None: ...


class Stateless:
    """Of rules that suit every network, keep nothing from pass to pass and ask nothing."""

    learns = False

    def check(self, network: Network, leaves: Sequence[LeafRule | None]) -> None:
        return None

    def questions(self, network: Network, wanted: Sequence[bool], needs_input: bool) -> list[Question]:
        return []

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        return None
