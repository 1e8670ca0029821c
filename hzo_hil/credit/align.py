"""Align-ada: backward through a copy that keeps the initial weights, linearised at each input (Boopathy and Fiete, ICML
2022).

The copy is made of the stages' twins and runs forward from the same input, so that its own activations set where it is
linearised. Right while weights stay near their start, as in very wide networks. Asks nothing. A reconstruction from the
published equations, not from the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hzo_hil.credit.rule import Array, OnTarget, Pass, Stateless
from hzo_hil.credit.twin import run_twin, twin_targets


class AlignAda(Stateless):
    """`initial`: by stage, what the device held at first, by master name; taken at the first pass."""

    credit = "align"

    def __init__(self) -> None:
        self.initial: list[dict[str, Array]] = []

    def targets(self, given: Pass, on_target: OnTarget) -> None:
        if not self.initial:
            self.initial = [{n: v.copy() for n, v in values.items()} for values in given.values]
        inputs = torch.as_tensor(given.activations[0]).to(given.like)
        activations = {0: given.activations[0]}
        for k, values in enumerate(self.initial[:-1]):  # nothing is linearised at what the last stage answers
            tensors = {n: torch.as_tensor(v).to(inputs) for n, v in values.items()}
            inputs = run_twin(given.network, k, inputs, tensors)
            activations[k + 1] = inputs.numpy()
        twin_targets(given.network, self.initial, activations, given.top, on_target, given.lowest)

    def state(self) -> dict[str, Any]:
        return {"initial": [{n: torch.as_tensor(v) for n, v in values.items()} for values in self.initial]}

    def load(self, state: Mapping[str, Any]) -> None:
        self.initial = [{n: v.numpy() for n, v in values.items()} for values in state["initial"]]
