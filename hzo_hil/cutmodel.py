"""What a plan costs and how wrong it is, from the tables of a network's cuts.

The one place where cost, noise and truncation of a cut are computed. Pure: plain tables in (`cuttables` makes them),
numbers out. Energies are squared norms per sample; `e` stands for error energy. Model:

    b = bend * curvature(k, j) * eps^2                              truncation of the cut, relative; s its alignment
    m_k = m_j exp(s b),   p_k = p_j exp(2 s b) + (1 - s^2) b^2 m_j^2
    e_k = gain(k, j) exp(2 s b) e_j + turned(k, j) m_j^2 + decoder / (2 eps^2) * (noise(k, j) / n + rounding(k, j)) w_j
    error^2 = sum_l [(B own_l e_l + whole_l c_l) / target_l + B floor_l + whole_l ((1 - m_l)^2 + p_l)] / sum_l whole_l,
    whole_l = B own_l + B (B - 1) shared_l,   w_j = m_j^2 + p_j + e_j / target_j

for a cut at k from source j with n repeats, and a batch of B. e is the part of the error that is independent from
sample to sample; c, which adds up and is passed on alike, that of segments whose one Jacobian is measured for all
samples. Truncation has a part along the target (a saturating stage shrinks what passes, at every cut alike: m) and a
part across it, which differs from cut to cut (p). turned(k, j): the Jacobian is asked where noise of the forward pass
has put the activation at k, and is another one there. noise(k, j) weighs the read-out at j by the target there, and
what stages inside inject by the targets in between: noise that passes through J meets J^T T. (Truncation and noise of a
difference: More and Wild 2012; the recursion and the growth of its bias: HZO, section 4.3.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.differences import snap
from hzo_hil.plan import Cut

Array = NDArray[Any]
SETS = ("coordinate", "hadamard")
PAIR = 2
SMALLEST = 1e-5
"""Steps are no smaller than this part of the largest: without noise, the rounding of numbers is all that is left."""


@dataclass(frozen=True)
class Problem:
    """Tables by [cut at, source] (inf where a segment cannot be asked), by boundary, or by stage l at index l.

    `rows`, `decoder`, `bend`, `largest` have a leading axis for the ways of `SETS` (inf rows: no such way). `row_cost`:
    of one shot of one row of one sample through a segment, in `unit`; `call_cost` and `call_rows`: of each call, and
    how many rows fit into one, shots of a row sharing a place where the device averages (`averages`). `common`: one
    Jacobian is measured for all samples, and its error is theirs together. `alignment`: cosine between a cut's
    truncation and the target, -1..1; below zero targets shrink. `turned`: energy that noise of the forward pass adds to
    the target at `at` by turning the segment's Jacobian. `step`: of the converter that drives a boundary. `most`:
    repeats that fit into a call.
    """

    depth: int
    batch: int
    unit: str
    rows: Array
    decoder: Array
    bend: Array
    largest: Array
    row_cost: Array
    call_cost: Array
    call_rows: Array
    averages: Array
    common: Array
    read: Array
    rounding: Array
    inject: Array
    target: Array
    gain: Array
    curvature: Array
    alignment: float
    turned: Array
    own: Array
    shared: Array
    floor: Array
    top_error: float
    step: Array
    most: int

    @property
    def whole(self) -> Array:
        """||gradient||^2 of each stage for the batch, by stage (index 0 unused)."""
        return self.batch * self.own + self.batch * (self.batch - 1) * self.shared


@dataclass(frozen=True)
class Chosen:
    """A cut with everything decided. `way` indexes `SETS`."""

    cut: Cut
    way: int
    eps: float
    repeats: int


@dataclass(frozen=True)
class Prediction:
    """Of one plan. `error`: root mean square of the relative error of the minibatch gradient of the network's
    parameters; its parts are energies: from noise of probes, truncation and noise of the forward pass. `target_error`:
    of the targets, by boundary 1..depth. Cost is that of the probes of one step, in the problem's unit.
    """

    error: float
    noise: float
    truncation: float
    forward: float
    target_error: tuple[float, ...]
    cost: float


def cost_of(problem: Problem, chosen: Sequence[Chosen]) -> float:
    """Cost of the probes of one step, calls counted whole as the ledger does."""
    total = 0.0
    for c in chosen:
        at, source = c.cut.at, c.cut.source
        rows = round(float(problem.rows[c.way, at, source] * problem.batch), 6)
        copies = 1 if problem.averages[at, source] else c.repeats
        fit = max(PAIR, problem.call_rows[at, source] // copies // PAIR * PAIR)
        total += rows * c.repeats * problem.row_cost[at, source]
        total += math.ceil(rows / fit) * problem.call_cost[at, source]
    return float(total)


def noise_energy(problem: Problem, chosen: Chosen, weight: float = 1.0) -> float:
    """Error energy that the noise of a cut adds. `weight`: energy of the estimate at its source over the target's, for
    an estimate's own error is weighed like the target itself: large errors compound.
    """
    at, source = chosen.cut.at, chosen.cut.source
    target = problem.target[source]
    noise = problem.read[source] * target + problem.inject[at, source]
    fixed = problem.rounding[source] * target
    decoder = problem.decoder[chosen.way, at, source]
    return float(decoder / (2 * chosen.eps**2) * (noise / chosen.repeats + fixed) * weight)


def predict(problem: Problem, chosen: Sequence[Chosen]) -> Prediction:
    """Error and cost of a plan whose cuts are given parents first."""
    depth, target = problem.depth, problem.target
    gains = problem.gain.tolist()
    kept, across = np.ones(depth + 1), np.zeros(depth + 1)
    energy, common, forward = (np.zeros(depth + 1) for _ in range(3))
    forward[depth] = problem.top_error
    for c in chosen:
        at, source = c.cut.at, c.cut.source
        bias = float(problem.bend[c.way, at, source] * problem.curvature[at, source] * c.eps**2)
        factor = math.exp(problem.alignment * bias)
        kept[at] = kept[source] * factor
        across[at] = across[source] * factor**2 + (1 - problem.alignment**2) * (bias * kept[source]) ** 2
        passed = math.prod(gains[at + 1 : source + 1]) * factor**2
        for part in (energy, common, forward):
            part[at] = part[source] * passed
        forward[at] += problem.turned[at, source] * kept[source] ** 2
        weight = kept[source] ** 2 + across[source]
        if target[source] > 0:
            weight += (energy[source] + common[source] + forward[source]) / target[source]
        (common if problem.common[at, source] else energy)[at] += noise_energy(problem, c, weight)
    truncated = (1 - kept) ** 2 + across
    noise = _weighed(problem, energy, common)
    truncation = float((problem.whole[1:] * truncated[1:]).sum()) / _scale(problem)
    leaves = float(problem.batch * problem.floor[1:].sum()) / _scale(problem)
    known = _weighed(problem, forward, np.zeros(depth + 1)) + leaves
    relative = np.sqrt(_over((energy + common + forward)[1:], target[1:]) + truncated[1:])
    return Prediction(
        math.sqrt(noise + truncation + known), noise, truncation, known, tuple(map(float, relative)),
        cost_of(problem, chosen),
    )  # fmt: skip


def _weighed(problem: Problem, energy: Array, common: Array) -> float:
    """Relative error energy of the gradient by errors of the targets: independent by sample, and common to all."""
    own, whole, target = problem.own[1:], problem.whole[1:], problem.target[1:]
    caused = problem.batch * _over(own, target) * energy[1:] + _over(whole, target) * common[1:]
    return float(caused.sum()) / _scale(problem)


def _scale(problem: Problem) -> float:
    return max(float(problem.whole[1:].sum()), 1e-300)


def _over(part: Array, whole: Array) -> Array:
    found: Array = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return found


def snapped(problem: Problem, way: int, cut: Cut, eps: float) -> float:
    """A step within its limits, on the converter's grid."""
    largest, step = float(problem.largest[way, cut.at, cut.source]), float(problem.step[cut.at])
    eps = min(max(eps, SMALLEST * largest), largest)
    return min(largest, snap(eps, step)) if step else eps
