"""What a device need not have: each check names the capability it is for, and is skipped without it."""

from __future__ import annotations

import math

import numpy as np

from hzo_hil.devices.api import Axis, Local, Probes, Segment
from hzo_hil.devices.conformance import values
from hzo_hil.devices.conformance.bench import (
    Array,
    Bench,
    Fault,
    NotJudged,
    Passed,
    Skip,
    batch_limit,
    described,
    name,
)
from hzo_hil.devices.conformance.likeness import ROW_ALPHA, chi_square_quantile
from hzo_hil.devices.errors import HzoError

_PROBED = 16  # inputs


def taps(bench: Bench) -> Passed:
    """Read within a longer query, a boundary shows what a query that ends there shows; outputs do not notice."""
    if not bench.caps.taps:
        raise Skip("capability taps is not declared")
    whole = Segment(0, len(bench.caps.stages))
    inner = [b for b in range(1, whole.hi) if bench.caps.boundaries[b].read]
    if not inner:
        raise Skip("no inner boundary can be read")
    bench.ready()
    rows = bench.noise_of(whole).inputs
    plain, tapped = bench.interleaved(
        whole, bench.asking(whole, rows), lambda s: bench.reply(whole, rows, s, taps=inner)[whole.hi]
    )
    if not (like := bench.alike(whole, plain, tapped, tests=1 + len(inner))).alike:
        raise Fault(f"with taps the outputs differ: {like.text}", "a tap must not alter what flows on")
    for b in inner:
        short = Segment(0, b)
        bench.noise_of(short)
        a, c = bench.interleaved(
            short,
            lambda s, b=b: bench.reply(whole, rows, s, taps=[b])[b],  # type: ignore[misc]
            lambda s, short=short: bench.ask(short, rows, s),  # type: ignore[misc]
        )
        if not (like := bench.alike(short, a, c, tests=1 + len(inner))).alike:
            raise Fault(
                f"the tap at boundary {b} and a query that ends there: {like.text}",
                "Reply.taps[b] is what the read-out at boundary b gives, with its converter",
            )
    return Passed(f"{len(inner)} taps, {like.text}")


def averaging(bench: Bench) -> Passed:
    """n repeats in the device lower the noise by sqrt(n), and change nothing else."""
    if not bench.caps.repeats:
        raise Skip("capability repeats is not declared")
    bench.ready()
    n, worst = 16, ""
    for segment in bench.segments:
        noise = bench.noise_of(segment)
        answers = np.stack([bench.ask(segment, noise.inputs, s, repeats=n) for s in range(2 * bench.shots)])
        std = math.sqrt(float(answers.var(axis=0, ddof=1).mean()))
        off = float(np.abs(answers.mean(0) - noise.answers.mean(0)).max())
        step = bench.caps.boundaries[segment.hi].out_step
        if noise.std <= max(bench.rounding(segment), step / 2):
            if off > bench.rounding(segment) + step:
                raise Fault(f"{name(segment)}: {n} repeats changed the answer by {off:.3g}", "repeats are averaged")
            worst = "no noise to average"
            continue
        # Only the part of the noise that scatters within a call can be averaged: bounds leave room for the rest.
        low, high = _ratio_bounds(answers[0].size, 2 * bench.shots, len(bench.segments))
        ratio = noise.std / std if std else math.inf
        if ratio < math.sqrt(n) * low * 0.8:
            raise Fault(
                f"{name(segment)}: {n} repeats lower the noise {ratio:.2f} times, expected {math.sqrt(n):g}"
                f" (false-alarm rate {ROW_ALPHA:.2g})",
                "average independent shots in the device, or do not declare repeats",
            )
        worst = f"{n} repeats lower the noise {ratio:.2f} times (up to {math.sqrt(n) * high:.2f} is chance)"
    return Passed(worst)


def _ratio_bounds(elements: int, shots: int, tests: int) -> tuple[float, float]:
    """What chance makes of the ratio of two standard deviations, were all elements one (correlated) column."""
    freedom = (shots - 1) * max(1.0, math.sqrt(elements))
    spread = math.sqrt(chi_square_quantile(ROW_ALPHA / (2 * tests), freedom) / freedom)
    return 1 / spread**2, spread**2


def inner(bench: Bench) -> Passed:
    """Driven with what was read at an inner boundary, the rest of the device goes on where the first part ended."""
    stops = [b for b, s in enumerate(bench.caps.boundaries) if 0 < b < len(bench.caps.stages) and s.drive and s.read]
    if not stops:
        raise Skip("no inner boundary can be both driven and read")
    bench.ready()
    whole = Segment(0, len(bench.caps.stages))
    rows = bench.noise_of(whole).inputs
    worst = 0.0
    for b in stops[:: max(1, len(stops) // 4)]:
        low, high = bench.caps.boundaries[b].low, bench.caps.boundaries[b].high
        first, second = Segment(0, b), Segment(b, whole.hi)

        def joined(
            shot: int, first: Segment = first, second: Segment = second, ends: tuple[float, float] = (low, high)
        ) -> Array:
            middle = np.clip(bench.ask(first, rows, shot), *ends)
            return bench.ask(second, middle.astype(bench.caps.dtype), shot)

        shots = 1 if bench.noise_of(whole).std <= bench.rounding(whole) else bench.shots
        one = np.stack([bench.ask(whole, rows, s) for s in range(shots)])
        two = np.stack([joined(s) for s in range(shots)])
        like = bench.alike(whole, one, two, tests=len(stops))
        off = float(np.sqrt(np.mean((one.mean(0) - two.mean(0)) ** 2)) / max(np.sqrt(np.mean(one.mean(0) ** 2)), 1e-30))
        # Reading out and driving again adds converters and clips: that much is allowed.
        if not like.alike and off > 0.1:
            raise Fault(
                f"read and driven again at boundary {b}, the answers are {off:.1%} off: {like.text}",
                "values read at a boundary and driven there must have the same unit, sign and order of ports",
            )
        worst = max(worst, off)
    return Passed(f"{len(stops)} inner boundaries, at most {worst:.1%} off")


def limits(bench: Bench) -> Passed:
    """A write beyond a limit across channels is refused or brought below it."""
    found = [(k, limit) for k, s in enumerate(bench.caps.stages) for limit in s.limits]
    if not found:
        raise Skip("no limit across channels is declared")
    bench.ready()
    tried = 0
    for k, limit in found:
        spec = bench.caps.stages[k]
        wanted = {n: np.array(v, dtype=bench.caps.dtype) for n, v in bench.base[k].items()}
        for p in spec.parameters:
            if p.name in limit.parameters:
                low, high = values.span(p.low, p.high)
                far = max((low, high), key=abs)
                wanted[p.name] = np.full(p.shape, far, dtype=bench.caps.dtype)
        if limit.total(wanted) <= limit.high * 1.01:
            continue
        tried += 1
        try:
            bench.device.write(k, wanted)
        except Exception:  # noqa: BLE001 - any refusal will do here
            bench.ready(again=True)
            continue
        bench.held.pop(k, None)
        total = limit.total({n: np.asarray(v, dtype=np.float64) for n, v in bench.device.read(k).items()})
        bench.ready()
        if total > limit.high * (1 + 1e-5):
            raise Fault(
                f"stage {k}: a write of {total:.4g} {limit.unit} was set, limit {limit.name!r} is {limit.high:g}",
                "add the channels up in write() and raise BadInput before anything is set",
            )
    return Passed(f"{tried} writes beyond a limit refused or brought below it")


def keys(bench: Bench) -> Passed:
    """The same key, the same noise; another key, other noise."""
    if not bench.caps.keyed:
        raise Skip("capability keyed is not declared (it is for simulations)")
    bench.ready()
    noisy = 0
    for segment in bench.segments:
        noise = bench.noise_of(segment)
        again = bench.ask(segment, noise.inputs, 0)
        like = bench.alike(segment, noise.answers[:1], again[None])
        if not like.alike:
            raise Fault(f"{name(segment)}: the same keys: {like.text}", "draw all noise of a row from its key")
        if noise.std > bench.rounding(segment):
            noisy += 1
    declared = bench.caps.read_noise or 0.0
    if declared > 0 and not noisy:
        raise Fault(
            f"other keys gave the same answers although read_noise is {declared:g}",
            "draw the noise of a row from its key",
        )
    return Passed(f"noise of {noisy} of {len(bench.segments)} segments follows its keys")


def read_noise(bench: Bench) -> Passed:
    """What a dark input scatters by is no more than declared."""
    declared = bench.caps.read_noise
    if declared is None:
        raise Skip("read_noise is not declared (see what was measured): a step size cannot be chosen by it")
    short = [s for s in bench.segments if len(s) == 1]
    if not short:
        raise Skip("no single stage can be asked: noise of several stages adds up")
    bench.ready()
    worst = 0.0
    for segment in short:
        spec = bench.caps.boundaries[segment.lo]
        dark = np.full((bench.rows, bench.caps.width(segment.lo)), np.clip(0.0, spec.low, spec.high), bench.caps.dtype)
        shots = 2 * bench.shots
        answers = np.stack([bench.ask(segment, dark, s) for s in range(shots)])
        std = math.sqrt(float(answers.var(axis=0, ddof=1).mean()))
        step = bench.caps.boundaries[segment.hi].out_step
        chance = _ratio_bounds(answers[0].size, shots, len(short))[1] ** 0.5
        # Steps follow the cube root of the noise: twice as much hardly matters, more does.
        allowed = 2 * chance * (declared + step / 2) + bench.rounding(segment)
        if std > allowed:
            raise Fault(
                f"{name(segment)} scatters by {std:.3g} in the dark, declared {declared:.3g}, up to {allowed:.3g} would"
                f" be chance (false-alarm rate {ROW_ALPHA:.2g})",
                f"declare read_noise={std:.2g}: steps chosen by less would drown in it",
            )
        worst = max(worst, std)
    return Passed(f"{worst:.3g} in the dark, declared {declared:.3g}")


def linear(bench: Bench) -> Passed:
    """A stage declared linear changes by the same wherever it is changed from."""
    found = [(k, bench.segment_of(k)) for k, s in enumerate(bench.caps.stages) if s.linear]
    found = [(k, s) for k, s in found if len(s) == 1]
    if not found:
        raise Skip("no stage that can be asked alone is declared linear")
    bench.ready()
    worst = 0.0
    for k, segment in found[:: max(1, len(found) // 4)]:
        rng = bench.rng(f"linear {k}")
        spec = bench.caps.boundaries[segment.lo]
        low, high = values.span(spec.low, spec.high)
        middle = (low + high) / 2
        near, far = (middle + 0.6 * (bench.inputs(segment, rng).astype(float) - middle) for _ in range(2))
        sums = [near, far, near + far - middle, np.full_like(near, middle)]
        asks = [bench.asking(segment, v.astype(bench.caps.dtype)) for v in sums]
        exact = bench.noise_of(segment).std <= bench.rounding(segment)
        a, b, ab, zero = (np.stack([ask(s) for s in range(1 if exact else bench.shots)]) for ask in asks)
        like = bench.alike(segment, (ab + zero) / 2, (a + b) / 2, tests=len(found))
        off = float(np.sqrt(np.mean((ab + zero - a - b).mean(0) ** 2)))
        moved = float(np.sqrt(np.mean((ab - zero).mean(0) ** 2)))
        steps = bench.caps.boundaries[segment.hi].out_step + spec.in_step
        if not like.alike and off > 0.02 * moved + 2 * steps:
            raise Fault(
                f"stage {k} is declared linear, and answers to sums are {off / max(moved, 1e-30):.1%} off: {like.text}",
                "do not declare linear, or narrow the range to where it is",
            )
        worst = max(worst, off / max(moved, 1e-30))
    return Passed(f"{len(found)} linear stages, sums {worst:.2%} off")


def diagonal(bench: Bench) -> Passed:
    """A stage declared diagonal answers at a port from that port alone."""
    found = [(k, bench.segment_of(k)) for k, s in enumerate(bench.caps.stages) if s.structure == "diagonal"]
    found = [(k, s) for k, s in found if len(s) == 1]
    if not found:
        raise Skip("no stage that can be asked alone is declared diagonal")
    bench.ready()
    for k, segment in found:
        rows = bench.noise_of(segment).inputs
        port = k % rows.shape[1]
        moved = rows.copy()
        moved[:, port] = rows[::-1, port]
        a, b = bench.interleaved(segment, bench.asking(segment, rows), bench.asking(segment, moved))
        others = np.arange(rows.shape[1]) != port
        if others.any() and not (like := bench.alike(segment, a[..., others], b[..., others], tests=len(found))).alike:
            raise Fault(
                f"stage {k} is declared diagonal, and port {port} changes others: {like.text}",
                "declare structure='dense': cross-talk would be taken for no response",
            )
    return Passed(f"{len(found)} diagonal stages")


def local(bench: Bench) -> Passed:
    """An output of a stage declared local does not notice what happens beyond its reach."""
    found = [(k, bench.segment_of(k), s.structure) for k, s in enumerate(bench.caps.stages)]
    alone = [(k, s, reach) for k, s, reach in found if isinstance(reach, Local) and len(s) == 1]
    if not alone:
        raise Skip("no stage that can be asked alone is declared local")
    bench.ready()
    looked = 0
    for k, segment, reach in alone:
        rows, rng = bench.noise_of(segment).inputs, bench.rng(f"local {k}")
        for output in rng.integers(0, reach.widths[1], 3).tolist():
            moved = rows[::-1].copy()
            seen = reach.inputs_of(output)
            if len(seen) == rows.shape[1]:
                continue  # it sees all there is
            moved[:, seen] = rows[:, seen]
            a, b = bench.interleaved(segment, bench.asking(segment, rows), bench.asking(segment, moved))
            one = slice(output, output + 1)
            like = bench.alike(segment, a[..., one], b[..., one], tests=3 * len(alone))
            if not like.alike:
                raise Fault(
                    f"stage {k} is declared local, and output {output} follows inputs beyond its reach: {like.text}",
                    "declare a larger kernel, or structure='dense'; a norm over pixels or batches belongs on the host",
                )
            looked += 1
    return Passed(f"{looked} outputs of {len(alone)} local stages")


def uniform(bench: Bench) -> Passed:
    """A stage declared uniform answers to a patch at one place as to the same patch at another."""
    found = [(k, bench.segment_of(k), s.structure) for k, s in enumerate(bench.caps.stages)]
    alone = [(k, s, reach) for k, s, reach in found if isinstance(reach, Local) and reach.uniform and len(s) == 1]
    if not alone:
        raise Skip("no stage that can be asked alone is declared uniform")
    bench.ready()
    looked = 0
    for k, segment, reach in alone:
        rows, rng = bench.noise_of(segment).inputs, bench.rng(f"uniform {k}")
        for output in rng.integers(0, reach.widths[1], 3).tolist():
            others = reach.alike(output)
            others = others[others != output]
            if not len(others):
                continue  # it sees an edge that no other does
            other = int(rng.choice(others))
            here, there = reach.window(output), reach.window(other)
            here, there = here[here >= 0], there[there >= 0]
            first, moved, base = (rows[::-1].copy() for _ in range(3))
            first[:, here] = rows[:, here]
            moved[:, there], base[:, there] = rows[:, here], rows[::-1][:, here]
            asks = [bench.asking(segment, block) for block in (first, rows[::-1].copy(), moved, base)]
            exact = bench.noise_of(segment).std <= bench.rounding(segment)
            places = (output, output, other, other)
            shots = range(1 if exact else bench.shots)
            # Changes are compared: answers to one and the same patch may differ, as dark levels do.
            a, b, c, d = (np.stack([ask(s)[:, [p]] for s in shots]) for ask, p in zip(asks, places, strict=True))
            like = bench.alike(segment, a + d, b + c, tests=3 * len(alone))
            off = float(np.abs((a + d - b - c).mean(0)).max())
            if not like.alike and off > 4 * bench.rounding(segment) + 2 * bench.caps.boundaries[segment.hi].out_step:
                raise Fault(
                    f"stage {k} is declared uniform, and output {output} follows a patch otherwise than output {other}"
                    f" follows the same: {like.text}",
                    "declare uniform=False: a kernel measured at one place would be taken for all",
                )
            looked += 1
    return Passed(f"{looked} outputs of {len(alone)} uniform stages")


def own_probes(bench: Bench) -> Passed:
    """A device that probes by itself finds what its answers to the rows of the host come to."""
    if getattr(bench.device, "run_probes", None) is None:
        raise Skip("it has no method run_probes")
    bench.ready()
    ends = [(s.low, s.high, s.out_low, s.out_high) for s in bench.caps.boundaries]
    found = [s for s in bench.segments if not np.isfinite([*ends[s.lo][:2], *ends[s.hi][2:]]).any()]
    if not found:
        raise Skip("every segment has ends of its range, which only the host heeds")
    worst = 0.0
    for segment in found:
        rng, base = bench.rng(f"own probes {name(segment)}"), bench.noise_of(segment).inputs[:2]
        few, step = min(base.shape[1], _PROBED), 0.1
        weights = rng.standard_normal((len(base), bench.caps.width(segment.hi))).astype(bench.caps.dtype)
        colours = np.where(np.arange(base.shape[1]) < few, np.arange(base.shape[1]), -1)
        axis = Axis(np.ones((weights.shape[1], base.shape[1]), dtype=bool), colours)
        moves = step * np.eye(few, base.shape[1], dtype=base.dtype)
        for paired in (True, False):
            lower = base[:, None] - moves if paired else np.repeat(base[:, None], few, 1)
            ups, downs = (
                bench.ask(segment, rows.reshape(-1, base.shape[1]).astype(base.dtype)).reshape(len(base), few, -1)
                for rows in (base[:, None] + moves, lower)
            )
            expected = np.vecdot(ups - downs, weights[:, None].astype(float)) / (step * (1 + paired))
            answer = bench.device.run_probes(Probes(segment, base.copy(), (axis,), step, paired, weights))
            if not isinstance(answer, np.ndarray) or answer.shape != base.shape:
                raise Fault(
                    f"{name(segment)}: run_probes() gave {described(answer)}, not numbers {list(base.shape)}",
                    "answer one number for each input: see devices.api.Probes",
                )
            noise = bench.noise_of(segment).std + bench.rounding(segment)
            # 8 of the noise are 5.6 deviations of a difference of answers: 1 in 10^5 sound devices may fail.
            limit = 8 * noise * float(np.linalg.norm(weights, axis=1).max()) / step
            off = float(np.abs(answer[:, :few] - expected).max())
            if off > limit or np.any(answer[:, few:]):
                raise Fault(
                    f"{name(segment)}: run_probes() is {off:.3g} off what rows give, where noise explains {limit:.3g}",
                    "weigh what moved by `weights`, over how far apart the rows are; 0 for inputs without a colour",
                )
            worst = max(worst, off)
    return Passed(f"{len(found)} segments, at most {worst:.2g} off what rows give")


def batch_bound(bench: Bench) -> Passed:
    """More rows than declared are refused, or answered all the same."""
    if not bench.caps.max_batch:
        raise Skip("max_batch is not declared: any number of rows")
    bench.ready()
    whole = bench.segments[-1]
    most = batch_limit(bench.caps, whole)
    if most > 4096:
        raise Skip(f"max_batch of {most} is more than the kit asks at once")
    rows = bench.inputs(whole, bench.rng("batch bound"), most + 1)
    try:
        found = getattr(bench.raw(whole, rows), "outputs", None)
    except HzoError:
        return Passed(f"{most + 1} rows are refused")
    except (ValueError, TypeError):
        return Passed(f"{most + 1} rows are refused")
    if not isinstance(found, np.ndarray) or found.shape != (most + 1, bench.caps.width(whole.hi)):
        raise Fault(
            f"{most + 1} rows, one more than max_batch, lost some", "raise BadInput for more than max_batch rows"
        )
    if not np.isfinite(found).all():
        raise NotJudged("not judged: answers are not finite", "see ranges")
    return Passed(f"{most + 1} rows are answered, too")
