"""Feedback alignment: a fixed random matrix in the place of every transposed one (Lillicrap et al., Nature
Communications 7, 2016).

d_l = B_l^T (d_{l+1} * sigma'). Asks nothing but the derivatives of element-wise stages that have no twin. B is drawn
once, normal with variance 1 / width below, so that targets keep their size on the way down. Under a convolution B is a
random kernel, the same at every place, with variance 1 / (values that an output sees).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np
import torch

from hzo_hil.convolution import to_inputs
from hzo_hil.credit import slopes
from hzo_hil.credit.rule import Array, OnTarget, Pass, Question, lowest
from hzo_hil.network import Network
from hzo_hil.streams import generator
from hzo_hil.updates import LeafRule


class FeedbackAlignment:
    """`matrices` by stage (0-based), [out, in] or [out channels, in channels / groups, *kernel]: drawn on first use, or
    set by you.
    """

    credit = "feedback"
    learns = False

    def __init__(self, seed: int, name: str) -> None:
        self._stream = seed, name
        self.matrices: dict[int, Array] = {}

    def check(self, network: Network, leaves: Sequence[LeafRule | None]) -> None:
        slopes.check("feedback", network, leaves)

    def questions(self, network: Network, wanted: Sequence[bool], needs_input: bool) -> list[Question]:
        down = range(network.depth - 1, lowest(wanted, needs_input) - 1, -1)
        return [q for k in down for q in slopes.question(network, k)]

    def targets(self, given: Pass, on_target: OnTarget) -> None:
        target = given.top
        for k in range(given.network.depth - 1, given.lowest - 1, -1):
            if slopes.elementwise(given.network, k):
                target = slopes.through(given, k, target)
            else:
                target = self._through(given.network, k, self._behind(given, k, target))
            on_target(k, target)

    def _through(self, network: Network, k: int, target: Array) -> Array:
        """Of stage k (0-based), with something else in the place of its matrix."""
        matrix, reach = self.matrix(network, k).astype(target.dtype), slopes.convolution(network, k)
        if reach is None:
            return np.asarray(target @ matrix)
        return np.asarray(to_inputs(reach, torch.as_tensor(matrix), torch.as_tensor(target)).numpy())

    def _behind(self, given: Pass, k: int, target: Array) -> Array:
        """What stage k's (0-based) matrix takes down, from the target at its output."""
        return slopes.before_matrix(given, k, target)

    def _shape(self, network: Network, k: int) -> tuple[int, ...]:
        """Of what stands for it, outputs first."""
        reach = slopes.convolution(network, k)
        if reach is None:
            return network.width(k + 1), network.width(k)
        return (reach.out_channels, reach.in_channels // reach.groups, *reach.kernel)

    def matrix(self, network: Network, k: int) -> Array:
        if k not in self.matrices:
            seed, name = self._stream
            shape = self._shape(network, k)
            self.matrices[k] = generator(seed, self.credit, name, k).standard_normal(shape) / sqrt(prod(shape[1:]))
        return self.matrices[k]

    def state(self) -> dict[str, Any]:
        return {"matrices": {k: torch.as_tensor(m) for k, m in self.matrices.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        self.matrices = {k: m.numpy() for k, m in state["matrices"].items()}


class DirectFeedback(FeedbackAlignment):
    """Direct feedback alignment: the error itself, through a random matrix of its own to every stage (Nokland, NeurIPS
    2016).

    d_l = B_l e, e the gradient at the last boundary. Where element-wise stages follow a matrix, e arrives behind them.
    `matrices` by boundary, [depth's width, its width].
    """

    credit = "direct_feedback"

    def check(self, network: Network, leaves: Sequence[LeafRule | None]) -> None:
        return None  # sigma' is the leaf's own affair

    def _behind(self, given: Pass, k: int, target: Array) -> Array:
        return given.top

    def _through(self, network: Network, k: int, target: Array) -> Array:
        return np.asarray(target @ self.matrix(network, k).astype(target.dtype))

    def _shape(self, network: Network, k: int) -> tuple[int, ...]:
        return network.width(network.depth), network.width(k)
