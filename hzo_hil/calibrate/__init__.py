"""Calibrate a network on its devices: a few hundred queries, once, for what the planner must know.

Two forward passes of a small batch; one look (see `looks`) at every stage alone (see `survey`) and at some long
segments that end at the last boundary; the first look again at the end, for drift; one write, timed. Everything is
asked for the purpose `calibration`. Knows neither plans nor tolerances.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.calibrate.again import look_again as look_again
from hzo_hil.calibrate.asking import PURPOSE, Asker
from hzo_hil.calibrate.leaves import LeafOf, energies, products_of
from hzo_hil.calibrate.looks import Design, Look, alignment, curvatures, look, slope_through_zero, turnings
from hzo_hil.calibrate.survey import BRIEF, designed, looked, survey, unsteady
from hzo_hil.calibration import Calibration, Measured, StageFigures
from hzo_hil.devices.errors import BadInput
from hzo_hil.dispatch import Dispatch
from hzo_hil.network import Network
from hzo_hil.streams import stream_key
from hzo_hil.updates import LeafRule

Array = NDArray[Any]
ROWS, ROWS_WITHOUT_TAPS = 16, 8
"""Samples of the two forward passes; fewer where every stage is a query of its own."""
_LONG = 4
"""Segments at most."""


@dataclass(frozen=True)
class Seen:
    """Two forward passes of the same inputs: activations by boundary, and the target at the last, [samples, width]."""

    passes: tuple[dict[int, Array], dict[int, Array]]
    tops: tuple[Array, Array]


def rows_of(network: Network, offered: int) -> int:
    """How many samples of a batch calibration uses."""
    taps = all(d.capabilities.taps for d in network.devices)
    return min(offered, ROWS if taps else ROWS_WITHOUT_TAPS)


def fingerprint(network: Network) -> str:
    """Of what a calibration is for: devices by identity, stages, their widths and parameters."""
    text = repr(
        [
            (s.device.capabilities.identity, s.segment.lo, s.segment.hi, s.in_width, s.out_width, sorted(s.parameters))
            for s in network.stages
        ]
    )
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def calibrate(
    dispatch: Dispatch,
    seen: Seen,
    rules: Sequence[LeafRule | None],
    wanted: Sequence[bool],
    leaf_of: LeafOf,
    *,
    key: int,
) -> Calibration:
    """Raises DeviceError where a device's answers do not depend on what it is asked, BadInput where the last target is
    zero. `seen` has been paid for by who made it.
    """
    network = dispatch.network
    depth = network.depth
    if not np.any(seen.tops[0]):
        raise BadInput(
            "the loss used for calibration does not depend on the network's outputs (its gradient there is zero): no"
            " error can be predicted relative to it. Calibrate with the loss and the data of training"
        )
    asker = Asker(dispatch, stream_key(key, "queries"))
    activations = {k: (a + seen.passes[1][k]) / 2 for k, a in seen.passes[0].items()}
    spent = dispatch.books.own.accounts[PURPOSE]
    before = (spent.queries, spent.writes, spent.device_seconds, spent.calls)
    moved = unsteady(seen.passes, depth)
    found = survey(asker, activations, moved, len(seen.tops[0]), key)
    looks = list(found.looks)
    bent = curvatures(looks)
    turned = turnings(looks, [1.0 if s.structure == "diagonal" else 1 / 3 for s in network.stages])
    stages = tuple(
        StageFigures(
            x.noise, x.gain_interval(stream_key(key, "bootstrap", k)), bent[k], turned[k], found.likeness[k],
            network.stages[k].read.out_step / abs(network.stages[k].codec_out.gain) or _grid(x.outputs),
            float(np.sqrt(np.mean(activations[k].astype(np.float64) ** 2))), 2 * x.step,
        )
        for k, x in enumerate(looks)
    )  # fmt: skip
    curved = [k for k, s in enumerate(network.stages) if not s.linear]
    carried, bending = _composed(asker, activations, looks, bent, key)
    settling = _settling(dispatch, asker, found.first)
    # To the nanosecond: the last digits of a difference hang on what was spent before, which a resumed run begins anew.
    seconds = round(spent.device_seconds - before[2], 9)
    drift, unit = _drift(asker, found.first, found.twice[0], seconds, spent.calls - before[3])
    products = products_of(seen.tops[0], [x.gain for x in looks], found.likeness)
    own, shared, floor = energies(network, rules, wanted, seen.passes, products, leaf_of, stream_key(key, "leaves"))
    changed = (seen.tops[0] - seen.tops[1]).astype(np.float64)
    call_s, evaluation_s = _seconds(network, asker)
    return Calibration(
        tuple(d.capabilities.identity for d in network.devices), fingerprint(network), len(seen.tops[0]), stages,
        _growth(found.twice), carried, bending, alignment([looks[k] for k in curved], [bent[k] for k in curved]), moved,
        tuple(float(np.mean(np.diag(p))) for p in products),
        float(np.mean(np.sum(changed**2, axis=1)) / 2), tuple(own), tuple(shared), tuple(floor), call_s, evaluation_s,
        settling, drift, unit, spent.queries - before[0], spent.writes - before[1],
    )  # fmt: skip


# --- segments ---------------------------------------------------------------------------------------------------


def _composed(
    asker: Asker, activations: dict[int, Array], looks: list[Look], bent: list[Measured], key: int
) -> tuple[Measured, Measured]:
    """How noise and curvature of stages add up along a segment, from segments that end at the last boundary."""
    network = asker.dispatch.network
    depth = network.depth
    starts = sorted({max(0, depth - 2**n) for n in range(1, 1 + math.ceil(math.log2(max(depth, 2))))})
    starts = [k for k in starts if depth - k > 1 and len(network.route(k, depth)) == 1 and network.reachable(k, depth)]
    starts = [starts[i] for i in sorted({round(v) for v in np.linspace(0, len(starts) - 1, _LONG)})] if starts else []
    noise: list[tuple[float, float, float]] = []
    curve: list[tuple[float, float, float]] = []
    for k in starts:
        found = looked(asker, k, depth, designed(network, k, activations[k], key, BRIEF))
        reach, inside, later = 1.0, 0.0, 0.0
        for m in range(depth - 1, k, -1):
            reach *= looks[m].gain
            inside += looks[m - 1].noise.value ** 2 * reach
        reach = 1.0
        for m in range(k + 1, depth):
            reach *= looks[m - 1].gain
            later += bent[m].value * reach
        read = looks[-1].noise.value ** 2
        if found.noise.value > 0:
            noise.append((inside, found.noise.value**2 - read, found.noise.value**-4))
        square, error = found.bend
        if found.gain > 0 and square > 2 * error and found.gain > found.slope_noise:
            curve.append((later, (square / found.gain) ** 0.5 - bent[k].value, 1.0))
    return _fitted(noise, 1.0, unknown=0.0), _fitted(curve, 2.0, unknown=1.0)


def _fitted(points: list[tuple[float, float, float]], high: float, unknown: float) -> Measured:
    x, y, weights = np.array(points).reshape(-1, 3).T
    return slope_through_zero(x, y, weights, 0.0, high, unknown)


def _growth(looks: Sequence[Look]) -> Measured:
    """Noise variance per squared amplitude of the answer, beyond what it is at zero."""
    amplitudes, variances = [], []
    for x in looks:
        half = len(x.outputs) // 2
        one, two = x.outputs[:half].astype(np.float64), x.outputs[half:].astype(np.float64)
        square = ((one + two) / 2) ** 2
        variance = (one - two) ** 2 / 2
        amplitudes.append((square - square.mean()).ravel())
        variances.append((variance - variance.mean()).ravel())
    found, moved = np.concatenate(amplitudes), np.concatenate(variances)
    return slope_through_zero(found, moved, np.ones_like(found), -np.inf, np.inf, 0.0)


def _grid(outputs: Array) -> float:
    """The step of the read-out's converter, where its answers show one: few values, evenly apart. Else 0."""
    values = np.unique(outputs)
    if values.size < 3 or values.size > outputs.size / 3:
        return 0.0
    gaps = np.diff(values)
    step = float(gaps.min())
    return step if np.allclose(gaps / step, np.rint(gaps / step), atol=0.05) else 0.0


# --- time ------------------------------------------------------------------------------------------------------


def _seconds(network: Network, asker: Asker) -> tuple[Measured, Measured]:
    """Seconds per call and per stage evaluation: declared by devices whose time is, else fitted to what was timed."""
    declared = [d.capabilities for d in network.devices if d.capabilities.virtual_time]
    if declared or not asker.timed.rows:
        found = (max((c.latency_s for c in declared), default=0.0), max((c.query_s for c in declared), default=0.0))
        return Measured.known(found[0]), Measured.known(found[1])
    calls, evaluations, seconds = (np.array(v, dtype=float) for v in zip(*asker.timed.rows, strict=True))
    table = np.stack([calls, evaluations], axis=1)
    solved, *_ = np.linalg.lstsq(table, seconds, rcond=None)
    solved = np.maximum(solved, 0.0)
    rest = float(np.mean((seconds - table @ solved) ** 2))
    errors = 2 * np.sqrt(np.maximum(np.diag(np.linalg.pinv(table.T @ table)) * rest, 0.0))
    per_call, per_evaluation = (
        Measured(float(v), max(float(v - e), 0.0), float(v + e)) for v, e in zip(solved, errors, strict=True)
    )
    return per_call, per_evaluation


def _settling(dispatch: Dispatch, asker: Asker, asked: Design) -> Measured:
    """Seconds of a write: declared where the device's time is, else what writing one stage again took."""
    network = dispatch.network
    stage = network.stages[0]
    capabilities = stage.device.capabilities
    if capabilities.virtual_time or not stage.parameters or network.shared:
        return Measured.known(capabilities.settling_s)
    physical = next(iter(stage.parameters.values()))[0]
    row = asked.rows[:1]
    took = []
    for again in (False, True):
        if again:
            dispatch.link(stage.device).held.pop(physical, None)
        started = time.perf_counter()
        asker.answers(0, 1, row)
        took.append(time.perf_counter() - started)
    return Measured(max(took[1] - took[0], 0.0), 0.0, took[1])


def _drift(asker: Asker, asked: Design, first: Look, seconds: float, calls: int) -> tuple[Measured, str]:
    """Relative change of the first look's answers since, per device second (per call where none has passed)."""
    later = look(asked, asker.answers(0, 1, asked.rows))
    old, new = (x.outputs.astype(np.float64).reshape(2, -1).mean(axis=0) for x in (first, later))
    power = max(float(old @ old), 1e-300)
    change = float(old @ (new - old)) / power
    error = 2 * float(((first.noise.value**2 + later.noise.value**2) / 2 / power) ** 0.5)
    per, unit = (seconds, "device second") if seconds > 0 else (float(max(calls, 1)), "call")
    return Measured(change / per, (change - error) / per, (change + error) / per), unit
