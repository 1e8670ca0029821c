"""Figures (noise, drift, converters, linear range, speed), and the rows that hold them to what is declared."""

from __future__ import annotations

import time

import numpy as np

from hzo_hil.devices.api import Segment
from hzo_hil.devices.conformance import values
from hzo_hil.devices.conformance.bench import Array, Bench, Fault, Passed, batch_limit, name
from hzo_hil.devices.conformance.stairs import grid_of, stair_of

DRIFT_LIMIT = 0.02
"""Of the answers' size: more over the few seconds of a check would mislead the halves of a pair."""


def noise(bench: Bench) -> Passed:
    """Standard deviation at fixed input of every segment the kit asks."""
    found = {name(s): bench.noise_of(s).std for s in bench.segments}
    bench.figures["noise (std at fixed input)"] = found
    largest = max(found.values())
    relative = largest / max(bench.noise_of(s).scale for s in bench.segments)
    advice = ""
    if bench.caps.read_noise is None and largest > 0:
        advice = f"declare read_noise={largest:.2g}, so that steps are chosen by it"
    return Passed(f"{largest:.3g}, {relative:.2%} of the largest answer", advice)


def drift(bench: Bench) -> Passed:
    """The first answers of the check and the same questions at its end."""
    bench.ready(again=True)
    whole = bench.segments[-1]
    first = bench.noise_of(whole)
    last = np.stack([bench.ask(whole, first.inputs, shot) for shot in range(len(first.answers))])
    moved = last.mean(0) - first.answers.mean(0)
    off = float(np.sqrt(np.mean(moved**2)))
    size = max(float(np.sqrt(np.mean(first.answers**2))), 1e-30)
    bench.figures["drift over the check (rms, of the answers)"] = off / size
    like = bench.rewritten_alike(whole, first.answers, last, tests=1)
    if not like.alike and off > max(DRIFT_LIMIT * size, first.std):
        raise Fault(
            f"answers drifted by {off / size:.1%} over the check: {like.text}",
            "warm up, lock or stabilise it; or give it maintain(), and train with health: canary and reference queries",
        )
    advice = "" if like.alike else "it drifts: let a run watch it (health: canary), or correct it (health: reference)"
    return Passed(f"{off / size:.2%} of the answers over the check; {like.text}", advice)


def output_converter(bench: Bench) -> Passed:
    """The step of the grid that answers lie on, against what is declared."""
    bench.ready()
    rows = 128 if bench.quick else 512
    told = []
    for segment in bench.segments:
        spec = bench.caps.boundaries[segment.hi]
        answers = bench.ask(segment, bench.inputs(segment, bench.rng("output converter"), rows))
        found = grid_of(answers, bench.rounding(segment))
        told.append(found)
        bench.figures.setdefault("output step, found (declared)", {})[name(segment)] = (
            f"{found or 0:.4g} ({spec.out_step:.4g})"
        )
        if spec.out_step and not _on_grid(answers, spec.out_step, spec.out_low, bench.rounding(segment)):
            raise Fault(
                f"{name(segment)}: answers do not lie on steps of {spec.out_step:g}"
                + (f", but of {found:.4g}" if found else ""),
                f"declare out_step={found or 0:.4g} (0: no converter)",
            )
        if found and spec.out_step and found > 1.5 * spec.out_step:
            raise Fault(
                f"{name(segment)}: answers lie {found:.4g} apart, declared {spec.out_step:g}",
                f"declare out_step={found:.4g}: a change below it is not seen",
            )
    undeclared = [
        f for s, f in zip(bench.segments, told, strict=True) if f and not bench.caps.boundaries[s.hi].out_step
    ]
    if undeclared:
        raise Fault(
            f"answers lie on steps of {undeclared[0]:.4g}, declared is no converter",
            f"declare out_step={undeclared[0]:.4g} of the boundary read",
        )
    return Passed("as declared" if any(told) else "no steps seen")


def _on_grid(answers: Array, step: float, low: float, rounding: float) -> bool:
    start = low if np.isfinite(low) else 0.0
    for origin in (start, 0.0):
        phase = (answers - origin) / step
        if (np.abs(phase - np.rint(phase)) <= 0.01 + rounding / step).mean() > 0.99:
            return True
    return False


def input_converter(bench: Bench) -> Passed:
    """The step that inputs are rounded to, against what is declared, from fine ramps of one input."""
    bench.ready()
    told = []
    for segment in [s for s in bench.segments if len(s) == 1] or bench.segments:
        spec = bench.caps.boundaries[segment.lo]
        found = _input_step(bench, segment)
        shown = "cannot be told" if found is None else f"{found:.4g}"
        bench.figures.setdefault("input step, found (declared)", {})[name(segment)] = f"{shown} ({spec.in_step:.4g})"
        if found is not None and abs(found - spec.in_step) > 0.15 * max(found, spec.in_step):
            raise Fault(
                f"{name(segment)}: inputs are rounded to {found:.4g}, declared {spec.in_step:g} (0: not rounded)",
                f"declare in_step={found:.3g} of the boundary driven: a probe is made of whole steps",
            )
        told.append(found)
    hidden = sum(f is None for f in told)
    return Passed(
        "as declared" + (f"; hidden by noise or read-out in {hidden} of {len(told)} segments" if hidden else "")
    )


def _input_step(bench: Bench, segment: Segment) -> float | None:
    """From ramps of 24 declared steps, or of 10 % and 1 % of the range; None where it cannot be told."""
    spec = bench.caps.boundaries[segment.lo]
    low, high = values.span(spec.low, spec.high)
    if not bench.exact(segment):
        return None
    widths = [24.3 * spec.in_step] if spec.in_step else [0.1 * (high - low), 0.01 * (high - low)]
    found = None
    for wide in widths:
        found = stair_of(*_ramp(bench, segment, min(wide, 0.9 * (high - low))), bench.rounding(segment) / 100)
        if found:
            break
    return found


def _ramp(bench: Bench, segment: Segment, wide: float) -> tuple[Array, Array]:
    """One input rising by `wide` in 256 rows, and the answers, under one noise key where there are keys."""
    spec, count = bench.caps.boundaries[segment.lo], 256
    low, high = values.span(spec.low, spec.high)
    rows = np.repeat(bench.noise_of(segment).inputs[:1], count, axis=0)
    ramp = ((low + high) / 2 + wide * (np.arange(count) / count - 0.5)).astype(bench.caps.dtype)
    rows[:, 0] = ramp
    return ramp.astype(np.float64), bench.ask(segment, rows, ids=np.zeros(count, dtype=np.int64))


def linear_range(bench: Bench) -> Passed:
    """How far an input can be moved from the middle of its range before the answer is 5 % off a straight line."""
    bench.ready()
    found = {}
    for segment in bench.segments:
        spec = bench.caps.boundaries[segment.lo]
        low, high = values.span(spec.low, spec.high)
        middle, reach = (low + high) / 2, (high - low) / 2
        rng = bench.rng(f"linear range {name(segment)}")
        direction = rng.choice([-1.0, 1.0], bench.caps.width(segment.lo))
        along = np.linspace(-1, 1, 33) * reach
        rows = np.clip(middle + along[:, None] * direction, low, high).astype(bench.caps.dtype)
        shots = bench.sample(segment, bench.asking(segment, rows))
        noise = bench.noise_of(segment).std / len(shots) ** 0.5
        steps = bench.caps.boundaries[segment.hi].out_step, spec.in_step * bench.caps.width(segment.lo)
        found[name(segment)] = _straight(along, shots.mean(0), noise, *steps)
    bench.figures["linear range (+- of the middle, within 5 %)"] = found
    return Passed("see figures")


def _straight(along: Array, answers: Array, noise: float, out_step: float, in_step: float) -> float:
    """The largest |x| up to which every answer is within 5 % of the line through the innermost points."""
    centre = len(along) // 2
    inside = slice(centre - 3, centre + 4)
    slope = (along[inside, None] * (answers[inside] - answers[centre])).sum(0) / (along[inside] ** 2).sum()
    line = answers[centre] + along[:, None] * slope
    size = np.sqrt(np.mean((line - answers[centre]) ** 2, axis=1))
    off = np.sqrt(np.mean((answers - line) ** 2, axis=1))
    steps = out_step + in_step * float(np.sqrt(np.mean(slope**2)))
    good = off <= 0.05 * size + 3 * noise + steps + 1e-6 * np.abs(answers).max()
    reach = 0.0
    for k in range(1, centre + 1):
        if not (good[centre - k] and good[centre + k]):
            break
        reach = float(along[centre + k])
    return reach


def speed(bench: Bench) -> Passed:
    """Seconds of a call of one row; rows a second in batches."""
    bench.ready()
    whole = bench.segments[-1]
    one = bench.inputs(whole, bench.rng("latency"), 1)
    seconds = []
    for shot in range(5 if bench.quick else 21):
        begun = time.perf_counter()
        bench.ask(whole, one, shot)
        seconds.append(time.perf_counter() - begun)
    latency = float(np.median(seconds))
    left = max(bench.rows, min(bench.budget_rows - bench.rows_asked, 2_000 if bench.quick else 20_000))
    size = min(batch_limit(bench.caps, whole), 256, left)
    many = bench.inputs(whole, bench.rng("throughput"), size)
    begun, asked = time.perf_counter(), 0
    while asked < left and time.perf_counter() - begun < (0.2 if bench.quick else 1.0):
        bench.ask(whole, many)
        asked += size
    rate = asked / max(time.perf_counter() - begun, 1e-9)
    bench.figures["seconds a call of one row (median)"] = latency
    bench.figures[f"rows a second in batches of {size}"] = rate
    return Passed(f"{latency:.3g} s a call, {rate:.4g} rows/s in batches of {size}")
