"""What a cut costs and how wrong it is: the tables that the planner searches, and the error of a whole plan.

The one place where rows, device time, noise and truncation of a cut are computed. Pure: reads what a network declares
and what was calibrated; sends nothing. Energies are squared norms per sample; `e` stands for error energy. Model:

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

from hzo_hil.calibration import Calibration, Measured
from hzo_hil.differences import snap
from hzo_hil.network import Network
from hzo_hil.plan import Cut
from hzo_hil.probes import probe_set
from hzo_hil.scheduler import rows_per_call

Array = NDArray[Any]
SETS = ("coordinate", "hadamard")
PAIR = 2
MOST = 4096
"""Repeats, where the device sets no limit: beyond, what does not average (drift, rounding) is all that is left."""
SMALLEST = 1e-5
"""Steps are no smaller than this part of the largest: without noise, the rounding of numbers is all that is left."""


@dataclass(frozen=True)
class Way:
    """One way to probe a cut. `rows` per sample before repeats (of rows asked once for a batch, its share); `decoder`:
    sum over elements m and probes p of D_mp^2 times the share of the target's energy that m answers for; `bend`:
    truncation relative to that of a probe that moves every input by eps; `reach`: an element's largest move, in eps.
    """

    probes: str
    rows: float
    decoder: float
    bend: float
    reach: float


def ways(network: Network, at: int, source: int, batch: int, share: bool = True) -> list[Way]:
    """The ways a planner may choose from. Each is central: forward differences cost half and have four times the noise
    and a bias that no repeat removes.
    """
    width, reach = network.width(at), network.structure(at, source)
    part = 1.0 / batch if share and network.linear(at, source) else 1.0
    if reach != "dense":
        seen = 1.0 if reach == "diagonal" else reach.seen
        return [Way("coordinate", PAIR * network.colouring(at, source).count * part, seen, 1.0 / seen, 1.0)]
    found = [Way("coordinate", PAIR * width * part, float(width), 1.0 / width, 1.0)]
    if width > 1:
        count = probe_set("hadamard").count(width)
        found.append(Way("hadamard", PAIR * count * part, width / count, 1.0, 1.0))
    return found


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


def problem_of(
    network: Network,
    found: Calibration,
    batch: int,
    *,
    count: str = "seconds",
    largest: float = math.inf,
    share: bool = True,
) -> Problem:
    """`count`: what is to be saved, `seconds` of the device (stage evaluations where neither declared nor measured) or
    `queries`. `largest`: a step per element that must not be exceeded.
    `share`: Jacobians of linear segments are measured once for the batch.
    """
    depth = network.depth
    shape = (depth + 1, depth + 1)
    gain = np.array([1.0] + [s.gain.value for s in found.stages])
    tables: dict[str, Array] = {n: np.full((len(SETS), *shape), np.inf) for n in ("rows", "decoder", "bend", "largest")}
    cost, calls, fits = np.full(shape, np.inf), np.zeros(shape), np.full(shape, np.inf)
    inject, curvature, turned = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    averages = np.zeros(shape, dtype=bool)
    common = np.zeros(shape, dtype=bool)
    target = np.asarray(found.target)
    noise = np.array([0.0] + [s.noise.value**2 for s in found.stages])
    seconds = found.call_s.value > 0 or found.evaluation_s.value > 0
    unit = "queries" if count == "queries" else "device seconds" if seconds else "stage evaluations"
    most, moved = MOST, np.zeros(depth)
    for at in range(depth):
        reach = 1.0
        for source in range(at + 1, depth + 1):
            if source > at + 1:
                reach *= gain[source - 1]
            own = 0.0 if network.stages[source - 1].linear else _hedged(found.stages[source - 1].curvature)
            # A probe has grown by the gain of what lies before, and the truncation error of a stage by its square.
            bent = own if source == at + 1 else curvature[at, source - 1] + found.bending.value * own * reach
            common[at, source] = share and network.linear(at, source)
            curvature[at, source] = 0.0 if network.linear(at, source) else bent
            if not network.stages[source - 1].linear:
                moved[at] += found.stages[source - 1].turning.value ** 2 * reach
            turned[at, source] = found.unsteady[at] * target[at] * moved[at]
            if not network.reachable(at, source):
                continue
            hops = network.route(at, source)
            ends = {h.hi for h in hops}
            for inside in range(at + 1, source):
                # A hop's end is read out and driven again: all of its noise goes on.
                passed = 1.0 if inside in ends else found.carried.value
                inject[at, source] += passed * noise[inside] * target[inside]
            for way in ways(network, at, source, batch, share):
                number = SETS.index(way.probes)
                tables["rows"][number, at, source] = way.rows
                tables["decoder"][number, at, source] = way.decoder
                tables["bend"][number, at, source] = way.bend
                tables["largest"][number, at, source] = _largest(network, found, at, source, way, largest)
            parts = sum(len(h.parts) for h in hops)
            evaluations = sum(len(h.parts) * len(h.segment) for h in hops)
            fits[at, source] = min(rows_per_call(h.device.capabilities, h.in_ports, 1, PAIR) for h in hops)
            averages[at, source] = all(h.device.capabilities.repeats for h in hops)
            most = min(most, *(_most(h) for h in hops))
            if unit == "queries":
                cost[at, source] = parts
            elif unit == "stage evaluations":
                cost[at, source] = evaluations
            else:
                cost[at, source] = evaluations * found.evaluation_s.value
                calls[at, source] = parts * found.call_s.value
    steps = np.array([network.converter_step(k) for k in range(depth)])
    out = np.array([0.0] + [_rounding(s.out_step, s.noise.value) for s in found.stages])
    stagewise = {n: np.array([0.0, *getattr(found, n)]) for n in ("own", "shared", "floor")}
    return Problem(
        depth, batch, unit, **tables, row_cost=cost, call_cost=calls, call_rows=fits, averages=averages,
        common=common, read=noise, rounding=out, inject=inject, target=target, gain=gain, curvature=curvature,
        alignment=found.alignment.value, turned=turned, **stagewise, top_error=found.top_error, step=steps, most=most,
    )  # fmt: skip


def _hedged(curvature: Measured) -> float:
    """One standard error above the estimate: a planner picks the cuts whose curvature came out low, and a step that is
    too large costs more than one that is too small.
    """
    return (curvature.value + curvature.high) / 2


def _rounding(step: float, noise: float) -> float:
    """Variance of a converter's rounding where noise does not dither it (else the noise measured has it in it)."""
    return step**2 / 12 if noise < step / 2 else 0.0


def _largest(network: Network, found: Calibration, at: int, source: int, way: Way, largest: float) -> float:
    """The largest step that may be asked for: within the range, and not beyond what curvature was measured with."""
    low, high = network.limits(at)
    step = network.converter_step(at)
    # The ends of a pair lie inside the range whatever the base point: a quarter of the span, as for the default step.
    bound = min((high - low) / 4 / way.reach, largest)
    if not network.linear(at, source):
        bound = min(bound, found.stages[at].largest / math.sqrt(way.bend))
    elif math.isinf(bound):
        bound = 1.0  # nothing bends and nothing ends: as `differences.largest_step`
    return max(step, math.floor(bound / step * (1 + 1e-9)) * step) if step else bound


def _most(hop: Any) -> int:
    capabilities = hop.device.capabilities
    if capabilities.repeats or not capabilities.max_batch:
        return MOST
    return int(min(MOST, max(1, capabilities.max_batch // PAIR)))


# --- a plan's cost and error -----------------------------------------------------------------------------------


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
