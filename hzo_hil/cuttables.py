"""The tables of a network's cuts: what each way to probe each of them takes, and what was measured of the stages.

Reads what a network declares and what was calibrated; sends nothing. What follows from the tables, `cutmodel` computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.calibration import Calibration, Measured
from hzo_hil.cutmodel import PAIR, SETS, Problem
from hzo_hil.impulses import Impulses
from hzo_hil.network import Network
from hzo_hil.probes import probe_set
from hzo_hil.scheduler import rows_per_call

Array = NDArray[Any]
MOST = 4096
"""Repeats, where the device sets no limit: beyond, what does not average (drift, rounding) is all that is left."""


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
    once = share and network.linear(at, source)
    part = 1.0 / batch if once else 1.0
    if reach != "dense":
        seen = 1.0 if reach == "diagonal" else reach.seen
        colours = network.colouring(at, source, once)
        noise = colours.noise if isinstance(colours, Impulses) else seen
        return [Way("coordinate", PAIR * colours.count * part, noise, 1.0 / seen, 1.0)]
    found = [Way("coordinate", PAIR * width * part, float(width), 1.0 / width, 1.0)]
    if width > 1:
        count = probe_set("hadamard").count(width)
        found.append(Way("hadamard", PAIR * count * part, width / count, 1.0, 1.0))
    return found


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
