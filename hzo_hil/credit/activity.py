"""Activity perturbation: one random direction in activation space a sample, all boundaries at once (Ren et al., ICLR
2023).

Every output of a trained stage is moved by eps u_k while the row travels on, up and down; the change of the loss along
the way, <e, change of the last outputs> / 2 eps, times u_k is the target there. The published rule takes the exact
directional derivative; a device is asked for the central difference. Unbiased up to truncation where E[u u^T] = 1, with
a variance that grows with the number of perturbed activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hzo_hil.credit.rule import Array, OnTarget, Pass, Question, Stateless
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Network
from hzo_hil.probes import ProbeSet
from hzo_hil.probes.random import Random


class ActivityPerturbation(Stateless):
    """`probes`: random directions; with q of them a sample the targets of q are averaged."""

    credit = "activity"

    def __init__(self, probes: ProbeSet, repeats: int = 1) -> None:
        if not isinstance(probes, Random):
            raise BadInput(
                f"credit 'activity' moves all activations at once in random directions, and {probes.name!r} names"
                " none: use probes gaussian:1, as published, or rademacher:1, which has less variance"
            )
        self.probes = probes
        self.repeats = repeats

    def questions(self, network: Network, wanted: Sequence[bool], needs_input: bool) -> list[Question]:
        moved = [*_moved(network, wanted, needs_input), network.depth]
        rows = 2 * self.probes.count(1)
        return [Question(lo, hi, rows, self.repeats) for lo, hi in zip(moved, moved[1:], strict=False)]

    def targets(self, given: Pass, on_target: OnTarget) -> None:
        asked = self.questions(given.network, given.wanted, given.needs_input)
        if not asked:
            return
        # One step for all: a boundary moved less than the others would answer with more noise.
        eps = min(given.eps[q.lo] for q in asked)
        directions: dict[int, Array] = {}
        rows: Array = np.empty((0, 0))
        for number, question in enumerate(asked):
            width = given.network.width(question.lo)
            u = self.probes.directions(width, given.key("activity", question.lo), 0, len(given.top))
            directions[question.lo] = u
            moves = np.stack([eps * u, -eps * u], axis=2).reshape(-1, width)
            base = rows if number else np.repeat(given.activations[question.lo], question.rows, axis=0)
            rows = given.ask(question, base + moves)
        answers = rows.reshape(len(given.top), -1, 2, rows.shape[1]).astype(np.float64)
        slopes = np.einsum("bqm,bm->bq", answers[:, :, 0] - answers[:, :, 1], given.top) / (2 * eps)
        for boundary, u in reversed(directions.items()):
            target = np.einsum("bq,bqm->bm", slopes, u) / u.shape[1]
            on_target(boundary, target.astype(given.top.dtype))


def _moved(network: Network, wanted: Sequence[bool], needs_input: bool) -> list[int]:
    """Boundaries whose target is needed and not known."""
    inner = [k + 1 for k, w in enumerate(wanted) if w and k + 1 < network.depth]
    return [0, *inner] if needs_input else inner
