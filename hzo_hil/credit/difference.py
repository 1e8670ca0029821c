"""Difference target propagation: targets through learned inverses (Lee et al., ECML 2015).

The gradient at the last boundary becomes a wanted activation there, t = h - eta e; below, t_l = h_l + g(t_{l+1}) -
g(h_{l+1}), with g the learned inverse of what lies between. What is handed on is (h - t) / eta, so that leaves and
optimisers find targets of a gradient's size. With exact inverses and small eta that is the Gauss-Newton target. Where
element-wise stages follow a matrix, matrix and they have one inverse, and the way from the block's end to the matrix is
their true derivative.

g is fitted in every pass, before it is used, to the pairs at hand: of this pass's activations and, with `noise`, of
inputs moved at random, which the device is asked for (one row a sample and block).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hzo_hil.credit import slopes
from hzo_hil.credit.inverses import Inverse
from hzo_hil.credit.rule import Array, OnTarget, Pass, Question, lowest
from hzo_hil.network import Network
from hzo_hil.streams import torch_generator
from hzo_hil.updates import LeafRule


class DifferenceTargets:
    """`step`: size of eta e over that of the last activations, root mean square. `noise`: of the inputs moved, over
    theirs; 0: no such rows. `fit_steps` of Adam a pass at `rate`. `inverses` by the block's first boundary: learnt, or
    set by you as functions of tensors.
    """

    credit = "difference"
    learns = True

    def __init__(
        self, seed: int, name: str, *, step: float = 0.1, noise: float = 0.1, fit_steps: int = 5, rate: float = 3e-3
    ) -> None:
        self._stream = seed, name
        self.step, self.noise, self.fit_steps, self.rate = step, noise, fit_steps, rate
        self.inverses: dict[int, Any] = {}

    def check(self, network: Network, leaves: Sequence[LeafRule | None]) -> None:
        return None

    def questions(self, network: Network, wanted: Sequence[bool], needs_input: bool) -> list[Question]:
        found: list[Question] = []
        for k in range(network.depth - 1, lowest(wanted, needs_input) - 1, -1):
            if slopes.elementwise(network, k):
                found += slopes.question(network, k)
            elif self.noise:
                found.append(Question(k, _end(network, k), 1))
        return found

    def targets(self, given: Pass, on_target: OnTarget) -> None:
        network, known = given.network, {given.network.depth: given.top}
        # Nothing to go by where all gradients are zero: then any eta will do.
        sizes = _size(given.activations[network.depth]), _size(given.top)
        eta = self.step * sizes[0] / sizes[1] if all(sizes) else 1.0
        for k in range(network.depth - 1, given.lowest - 1, -1):
            if slopes.elementwise(network, k):
                known[k] = slopes.through(given, k, known[k + 1])
            else:
                end = _end(network, k)
                self._fit(given, k, end)
                reached = torch.as_tensor(given.activations[end]).double()
                wanted = reached - eta * torch.as_tensor(known[end])
                change = self.inverses[k](reached) - self.inverses[k](wanted)
                known[k] = (change / eta).numpy().astype(given.top.dtype)
            on_target(k, known[k])

    def _fit(self, given: Pass, lo: int, hi: int) -> None:
        if lo not in self.inverses:
            self.inverses[lo] = self._fresh(given.network, lo, hi)
        inputs, outputs = given.activations[lo], given.activations[hi]
        if self.noise:
            rng = np.random.Generator(np.random.Philox(key=given.key("inverse", lo)))
            moved = np.clip(
                inputs + self.noise * _size(inputs) * rng.standard_normal(inputs.shape), *given.network.limits(lo)
            )
            outputs = np.concatenate([outputs, given.ask(Question(lo, hi, 1), moved)])
            inputs = np.concatenate([inputs, moved])
        if isinstance(self.inverses[lo], Inverse):
            self.inverses[lo].fit(torch.as_tensor(inputs), torch.as_tensor(outputs), self.fit_steps)

    def _fresh(self, network: Network, lo: int, hi: int) -> Inverse:
        seed, name = self._stream
        return Inverse(network.width(hi), network.width(lo), torch_generator(seed, "inverse", name, lo), self.rate)

    def state(self) -> dict[str, Any]:
        learnt = {k: g for k, g in self.inverses.items() if isinstance(g, Inverse)}
        return {"inverses": {k: {"widths": _widths(g), **g.kept()} for k, g in learnt.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        seed, name = self._stream
        self.inverses = {k: g for k, g in self.inverses.items() if not isinstance(g, Inverse)}
        for k, kept in state["inverses"].items():
            outputs, inputs = kept["widths"]
            self.inverses[k] = Inverse(outputs, inputs, torch_generator(seed, "inverse", name, k), self.rate)
            self.inverses[k].take(kept)


def _widths(inverse: Inverse) -> list[int]:
    return [inverse.straight.in_features, inverse.straight.out_features]


def _end(network: Network, k: int) -> int:
    """The boundary behind stage k (0-based) and the element-wise stages after it."""
    end = k + 1
    while end < network.depth and slopes.elementwise(network, end):
        end += 1
    return end


def _size(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
