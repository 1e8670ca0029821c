"""What a plan costs and how wrong it is, from the tables of a network's cuts.

The one place where cost, noise and truncation of a cut are computed. Pure: plain tables in (`cuttables` makes them),
numbers out. Energies are squared norms per sample; `e` stands for error energy. Model:

    e_k = gain(k, j) e_j + decoder / (2 eps^2) * (noise(k, j) / n + rounding(k, j))
    b_k = b_j + bend * curvature(k, j) * eps^2                                          relative, adds as an amplitude
    error^2 = sum_l [(B own_l e_l + whole_l c_l) / target_l + B floor_l + whole_l b_l^2] / sum_l whole_l,
    whole_l = B own_l + B (B - 1) shared_l

for a cut at k from source j with n repeats, and a batch of B. e is the part of the error that is independent from
sample to sample; c, which adds up and is passed on alike, that of segments whose one Jacobian is measured for all
samples. noise(k, j) weighs the read-out at j by the target there, and what stages inside inject by the targets in
between: noise that passes through J meets J^T T. (Truncation and noise of a difference: More and Wild 2012; the
recursion and the growth of its bias: HZO, section 4.3.)
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
    Jacobian is measured for all samples, and its error is theirs together. `step`: of the
    converter that drives a boundary. `most`: repeats that fit into a call.
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
    parameters; its parts are energies: from noise of probes, truncation and the forward pass. `target_error`: of the
    targets, by boundary 1..depth. Cost is that of the probes of one step, in the problem's unit.
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


def noise_energy(problem: Problem, chosen: Chosen, excess: float) -> float:
    """Error energy that a cut adds, where the target at its source has `excess` error energy already."""
    at, source = chosen.cut.at, chosen.cut.source
    target = problem.target[source]
    # The estimate's own error is weighed like the target itself: large errors compound.
    grown = 1 + excess / target if target > 0 else 1.0
    noise = problem.read[source] * target + problem.inject[at, source]
    fixed = problem.rounding[source] * target
    decoder = problem.decoder[chosen.way, at, source]
    return float(decoder / (2 * chosen.eps**2) * (noise / chosen.repeats + fixed) * grown)


def predict(problem: Problem, chosen: Sequence[Chosen]) -> Prediction:
    """Error and cost of a plan whose cuts are given parents first."""
    depth = problem.depth
    energy, common, bias, gains = np.zeros(depth + 1), np.zeros(depth + 1), np.zeros(depth + 1), problem.gain.tolist()
    energy[depth] = problem.top_error
    for c in chosen:
        at, source = c.cut.at, c.cut.source
        gain = math.prod(gains[at + 1 : source + 1])
        energy[at], common[at] = energy[source] * gain, common[source] * gain
        added = noise_energy(problem, c, energy[source] + common[source])
        (common if problem.common[at, source] else energy)[at] += added
        bias[at] = bias[source] + problem.bend[c.way, at, source] * problem.curvature[at, source] * c.eps**2
    first_noise = _forward_energy(problem)
    whole = problem.whole[1:]
    share = np.divide(problem.own[1:], problem.target[1:], out=np.zeros(depth), where=problem.target[1:] > 0)
    scale = max(float(whole.sum()), 1e-300)
    forward = float(problem.batch * (share * first_noise[1:] + problem.floor[1:]).sum()) / scale
    alike = np.divide(whole, problem.target[1:], out=np.zeros(depth), where=problem.target[1:] > 0)
    noise = float((problem.batch * share * (energy - first_noise)[1:] + alike * common[1:]).sum()) / scale
    truncation = float((whole * bias[1:] ** 2).sum()) / scale
    relative = np.sqrt(
        np.divide((energy + common)[1:], problem.target[1:], out=np.zeros(depth), where=problem.target[1:] > 0)
        + bias[1:] ** 2
    )
    return Prediction(
        math.sqrt(noise + truncation + forward), noise, truncation, forward, tuple(map(float, relative)),
        cost_of(problem, chosen),
    )  # fmt: skip


def _forward_energy(problem: Problem) -> Array:
    """Error energy of every target that the forward pass's noise in the last one alone would leave."""
    found = np.zeros(problem.depth + 1)
    found[-1] = problem.top_error
    for k in range(problem.depth - 1, -1, -1):
        found[k] = found[k + 1] * problem.gain[k + 1]
    return found


def snapped(problem: Problem, way: int, cut: Cut, eps: float) -> float:
    """A step within its limits, on the converter's grid."""
    largest, step = float(problem.largest[way, cut.at, cut.source]), float(problem.step[cut.at])
    eps = min(max(eps, SMALLEST * largest), largest)
    return min(largest, snap(eps, step)) if step else eps
