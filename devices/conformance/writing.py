"""Required: what is written is what is read, what answers follow, and what a second write of it restores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.conformance import values
from hzo_hil.devices.conformance.bench import Array, Bench, Fault, Passed, name

NOTHING = "no stage has parameters: nothing to write"
WRITE_NOISE = 0.1
"""A write of the same values may miss by this part of the change between two random settings, or by the noise."""


def agreement(bench: Bench) -> Passed:
    """read() gives back names, shapes and values of the last write."""
    rng = bench.rng("write and read")
    bench.ready()
    for k in bench.written_stages():
        wanted = values.parameters(bench.caps.stages[k], rng)
        bench.write(k, wanted)
        _check_read(bench, k, wanted)
    bench.ready()
    return Passed("read gives what was written") if bench.written_stages() else Passed(NOTHING)


def _check_read(bench: Bench, stage: int, wanted: Mapping[str, Array], how: str = "") -> None:
    found = bench.device.read(stage)
    at = f"stage {stage}{how}"
    change = "read() returns the values last written (or measured), by name, in the declared shapes"
    if not isinstance(found, Mapping) or set(found) != set(wanted):
        names = sorted(found) if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise Fault(f"{at}: read gave {names}, declared {sorted(wanted)}", change)
    for spec in bench.caps.stages[stage].parameters:
        got = np.asarray(found[spec.name])
        if got.shape != spec.shape:
            raise Fault(f"{at}: read gave {spec.name!r} as {list(got.shape)}, declared {list(spec.shape)}", change)
        off = _distance(spec, got, wanted[spec.name])
        if off > _slack(spec, wanted[spec.name]):
            raise Fault(f"{at}: {spec.name!r} was read back {off:.3g} away from what was written", change)


def _distance(spec: ParameterSpec, got: Array, wanted: Array) -> float:
    change = got.astype(np.float64) - wanted
    if spec.period:
        change -= spec.period * np.round(change / spec.period)
    return float(np.abs(change).max(initial=0.0))


def _slack(spec: ParameterSpec, wanted: Array) -> float:
    finite = np.isfinite(spec.high - spec.low)
    return 1e-4 * (spec.high - spec.low if finite else max(1.0, float(np.abs(wanted).max(initial=0.0))))


def apart(bench: Bench) -> Passed:
    """Arrays given to write() and got from read() are the caller's: changing them changes nothing in the device."""
    bench.ready(again=True)
    for k in bench.written_stages():
        sent = {n: np.array(v, dtype=bench.caps.dtype) for n, v in bench.base[k].items()}
        options: dict[str, Any] = {"key": k + 1} if bench.caps.keyed else {}
        bench.device.write(k, sent, **options)
        segment = bench.segment_of(k)
        rows = bench.noise_of(segment).inputs
        before = bench.sample(segment, bench.asking(segment, rows))
        got = bench.device.read(k)
        for array in (*sent.values(), *got.values()):
            if array.flags.writeable:
                array += np.asarray(0.5, dtype=array.dtype)
        after = bench.sample(segment, bench.asking(segment, rows))
        like = bench.alike(segment, before, after, tests=2 * len(bench.caps.stages))
        bench.held.pop(k, None)
        try:
            _check_read(bench, k, bench.base[k], " after the caller changed its own arrays")
            if not like.alike:
                raise Fault(f"stage {k}: answers followed an array of the caller: {like.text}", "")
        except Fault as fault:
            raise Fault(fault.detail, "keep copies: np.array(values) in write(), .copy() in read()") from None
    return Passed("the device keeps its own copies") if bench.written_stages() else Passed(NOTHING)


def effect(bench: Bench) -> Passed:
    """Every parameter changes the answers."""
    bench.ready()
    rng = bench.rng("writes take effect")
    weakest = np.inf
    count = sum(len(bench.caps.stages[k].parameters) for k in bench.written_stages())
    for k in bench.written_stages():
        segment = bench.segment_of(k)
        rows = bench.noise_of(segment).inputs
        before = bench.sample(segment, bench.asking(segment, rows))
        for spec in bench.caps.stages[k].parameters:
            bench.write(k, values.other(bench.caps.stages[k], spec.name, bench.base[k], rng))
            after = bench.sample(segment, bench.asking(segment, rows))
            like = bench.alike(segment, before, after, tests=count)
            if like.alike:
                raise Fault(
                    f"stage {k}: new values of {spec.name!r} changed no answer of {name(segment)}: {like.text}",
                    "does write() reach the hardware, and wait until it has settled?",
                )
            weakest = min(weakest, like.worst)
        bench.write(k, bench.base[k])
    return (
        Passed(f"{count} parameter arrays, the weakest moves an answer by {weakest:.3g}") if count else Passed(NOTHING)
    )


def restore(bench: Bench) -> Passed:
    """Values written again bring back the answers they gave before."""
    bench.ready()
    rng = bench.rng("re-write")
    advice, worst = "", "nothing"
    stages = bench.written_stages()
    for k in stages:
        segment = bench.segment_of(k)
        rows = bench.noise_of(segment).inputs
        elsewhere = values.parameters(bench.caps.stages[k], rng)
        bench.write(k, bench.base[k])
        a = bench.sample(segment, bench.asking(segment, rows))
        bench.write(k, elsewhere)
        b = bench.sample(segment, bench.asking(segment, rows))
        bench.write(k, bench.base[k])
        again = bench.sample(segment, bench.asking(segment, rows))
        like = bench.alike(segment, a, again, tests=len(stages))
        off = float(np.sqrt(np.mean((again.mean(0) - a.mean(0)) ** 2)))
        moved = float(np.sqrt(np.mean((b.mean(0) - a.mean(0)) ** 2)))
        worst = like.text
        if not like.alike and off > WRITE_NOISE * moved:
            raise Fault(
                f"stage {k}: after other values were written and the first ones again: {like.text}; the other values"
                f" had moved the answers by {moved:.3g}",
                "write every value at each write, wait for it to settle, approach it from one side (hysteresis)",
            )
        if not like.alike:
            bench.write_miss = max(bench.write_miss, 3 * off)
            advice = (
                f"writing is noisy: the same values miss by {off / moved:.1%} of a random change; probe activations"
            )
    return Passed(f"written again, {worst}", advice) if stages else Passed(NOTHING)


def partial(bench: Bench) -> Passed:
    """`where` says what changed; with it or without, the device ends up holding all of what was passed."""
    bench.ready(again=True)
    rng = bench.rng("partial writes")
    stages = bench.written_stages()
    for k in stages:
        spec = bench.caps.stages[k]
        drawn = values.parameters(spec, rng)
        wanted = {n: v.copy() for n, v in bench.base[k].items()}
        where = {}
        for p in spec.parameters:
            chosen = np.sort(rng.choice(p.size, size=max(1, p.size // 3), replace=False))
            if not p.slew:
                wanted[p.name].reshape(-1)[chosen] = drawn[p.name].reshape(-1)[chosen]
            where[p.name] = chosen.astype(np.int64)
        if any(limit.total(wanted) > limit.high for limit in spec.limits):
            wanted = {n: v.copy() for n, v in bench.base[k].items()}
        segment = bench.segment_of(k)
        rows = bench.noise_of(segment).inputs
        bench.write(k, wanted, where)
        some = bench.sample(segment, bench.asking(segment, rows))
        try:
            _check_read(bench, k, wanted, " after a write with where")
        except Fault as fault:
            raise Fault(fault.detail, "set the flat indices in where, or ignore where and set all") from None
        bench.write(k, wanted)
        whole = bench.sample(segment, bench.asking(segment, rows))
        if not (like := bench.rewritten_alike(segment, some, whole, tests=len(stages))).alike:
            raise Fault(
                f"stage {k}: a write with where and a whole write of the same: {like.text}",
                "set the flat indices in where, or ignore where and set all",
            )
        bench.write(k, bench.base[k])
    return Passed("a partial write ends where a whole one does") if stages else Passed(NOTHING)
