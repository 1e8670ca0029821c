"""Required: what a device answers. Shapes, dtypes, ranges, and that an answer depends on its own row alone."""

from __future__ import annotations

import json

import numpy as np

from hzo_hil.devices import manifest
from hzo_hil.devices.api import BoundarySpec, Device, Segment
from hzo_hil.devices.conformance.bench import Bench, Fault, Passed, batch_limit, described, name
from hzo_hil.devices.errors import HzoError


def description(bench: Bench) -> Passed:
    """Capabilities survive JSON, name the device, and stay the same."""
    if not isinstance(bench.device, Device):
        raise Fault(
            f"{type(bench.device).__name__} lacks a member of a device",
            "give it capabilities, open, run, write, read, snapshot, health and close",
        )
    caps = bench.caps
    if not caps.identity:
        raise Fault("identity is empty", "name the specimen: runs and recordings are kept under its name")
    try:
        again = manifest.from_json(json.loads(json.dumps(manifest.to_json(caps))))
    except (HzoError, TypeError, ValueError) as error:
        raise Fault(f"capabilities do not survive JSON: {error}", "use plain numbers and text in the specs") from None
    if again != caps:
        raise Fault("capabilities come back from JSON changed", "use plain floats, ints, tuples and text in the specs")
    if bench.device.capabilities != caps:
        raise Fault("capabilities differ from those at opening", "make them once; they must not follow the hardware")
    return Passed(f"{len(caps.stages)} stages, {sum(p.size for s in caps.stages for p in s.parameters)} parameters")


def shapes(bench: Bench) -> Passed:
    """[batch, width] for batches of any size up to the declared limit."""
    bench.ready()
    for segment in bench.segments:
        most = min(batch_limit(bench.caps, segment), 33 if bench.quick else 257)
        for rows in sorted({1, 2, 3, 5, most} & set(range(1, most + 1))):
            inputs = bench.inputs(segment, bench.rng("shapes"), rows)
            reply = bench.raw(segment, inputs)
            found, wanted = getattr(reply, "outputs", None), (rows, bench.caps.width(segment.hi))
            if not isinstance(found, np.ndarray) or found.shape != wanted:
                got = described(found) if hasattr(reply, "outputs") else f"a {type(reply).__name__} without outputs"
                raise Fault(
                    f"{rows} rows through {name(segment)} gave {got}, expected [{rows}, {wanted[1]}]",
                    "return Reply(outputs) with a NumPy array [batch, out_width], also for one row and odd batches",
                )
    return Passed(f"batches of 1 to {most} rows")


def dtypes(bench: Bench) -> Passed:
    """Real numbers, not narrower than declared."""
    bench.ready()
    for segment in bench.segments:
        found = bench.raw(segment, bench.inputs(segment, bench.rng("dtypes"))).outputs
        kind = getattr(found, "dtype", np.dtype(object))
        narrow = kind.kind == "f" and kind.itemsize < np.dtype(bench.caps.dtype).itemsize
        if kind.kind not in "fiu" or narrow:
            raise Fault(
                f"{name(segment)} answered in {kind}, declared {bench.caps.dtype}",
                f"convert answers: outputs.astype(np.{bench.caps.dtype})",
            )
    return Passed(f"answers are {bench.caps.dtype} or wider")


def hands_off(bench: Bench) -> Passed:
    """The arrays handed in stay as they are: the host uses them again."""
    bench.ready()
    for segment in bench.segments:
        inputs = bench.inputs(segment, bench.rng("hands off"))
        kept = inputs.copy()
        bench.raw(segment, inputs)
        if not np.array_equal(inputs, kept):
            raise Fault(f"{name(segment)}: run() changed its inputs", "copy inputs before you scale or clip them")
    return Passed("inputs are left as they are")


def keeps(bench: Bench) -> Passed:
    """An answer is not overwritten by the next one."""
    bench.ready()
    rng = bench.rng("answers are kept")
    for segment in bench.segments:
        first = bench.raw(segment, bench.inputs(segment, rng)).outputs
        kept = np.array(first)
        bench.raw(segment, bench.inputs(segment, rng))
        if not np.array_equal(first, kept):
            raise Fault(
                f"{name(segment)}: an answer changed when the next query ran",
                "return a new array each time: outputs.copy(), not the driver's own buffer",
            )
    return Passed("answers stay as they were given")


def in_range(bench: Bench) -> Passed:
    """Every input within the declared range is answered with finite numbers within the read-out's."""
    bench.ready()
    for segment in bench.segments:
        rows = _ends(bench, segment)
        found = bench.ask(segment, rows)
        if not np.isfinite(found).all():
            raise Fault(
                f"{name(segment)} answered NaN or infinity to inputs within the declared range",
                "narrow low/high of the boundary to what the device can take, or fix the read-out",
            )
        spec = bench.caps.boundaries[segment.hi]
        slack = 1e-5 * max(abs(v) for v in (spec.out_low, spec.out_high, 1.0) if np.isfinite(v))
        if found.min() < spec.out_low - slack or found.max() > spec.out_high + slack:
            raise Fault(
                f"{name(segment)} answered {found.min():.6g} to {found.max():.6g}, declared {spec.out_low:g} to"
                f" {spec.out_high:g}",
                "declare out_low and out_high of the boundary as the read-out's real ends",
            )
    return Passed("finite and within the declared ends, also for inputs at the ends of their range")


def _ends(bench: Bench, segment: Segment) -> np.ndarray:
    spec: BoundarySpec = bench.caps.boundaries[segment.lo]
    rows = bench.inputs(segment, bench.rng("ranges"))
    rows[0] = spec.low if np.isfinite(spec.low) else rows[0]
    rows[-1] = spec.high if np.isfinite(spec.high) else rows[-1]
    return rows


def beyond_range(bench: Bench) -> Passed:
    """What cannot be driven is refused or clipped, never sent."""
    bench.ready()
    bounded, how = 0, set()
    for segment in bench.segments:
        spec = bench.caps.boundaries[segment.lo]
        if not (np.isfinite(spec.low) or np.isfinite(spec.high)):
            continue
        bounded += 1
        rows = bench.inputs(segment, bench.rng("beyond the range"))
        far = np.array(rows)
        size = max([abs(v) for v in (spec.low, spec.high) if np.isfinite(v)] + [1.0])
        far[0, :] = spec.high + size if np.isfinite(spec.high) else spec.low - size
        if np.isfinite(spec.low):
            far[-1, :] = spec.low - size
        clipped = np.clip(far, spec.low, spec.high).astype(far.dtype)
        try:
            bench.ask(segment, far)
        except HzoError:
            how.add("refused")
            bench.ask(segment, rows)
            continue
        except (ValueError, TypeError):
            how.add("refused")
            bench.ask(segment, rows)
            continue
        how.add("clipped")
        a, b = bench.interleaved(segment, bench.asking(segment, far), bench.asking(segment, clipped))
        if not (like := bench.alike(segment, a, b)).alike:
            raise Fault(
                f"{name(segment)}: inputs outside {spec.low:g} to {spec.high:g} were neither refused nor clipped:"
                f" the answer {like.text}",
                "raise BadInput, or np.clip(inputs, low, high), before anything is driven",
            )
    if not bounded:
        return Passed("no range declared: every finite input may be driven")
    return Passed(f"inputs outside their range are {' or '.join(sorted(how))}")


def batching(bench: Bench) -> Passed:
    """A batch is answered as its rows one at a time."""
    bench.ready()
    worst = ""
    for segment in bench.segments:
        rows = bench.inputs(segment, bench.rng(f"batching {name(segment)}"))

        def singles(shot: int, segment: Segment = segment, rows: np.ndarray = rows) -> np.ndarray:
            return np.concatenate([bench.ask(segment, rows[i : i + 1], shot, [i]) for i in range(len(rows))])

        a, b = bench.interleaved(segment, bench.asking(segment, rows), singles)
        if not (like := bench.alike(segment, a, b)).alike:
            raise Fault(
                f"{name(segment)}: a batch of {len(rows)} and its rows alone: {like.text}",
                "treat every row alone: look for a sum, mean or scale taken over the batch, or a transposed array",
            )
        worst = like.text
    return Passed(f"batch against singles {worst}")


def order(bench: Bench) -> Passed:
    """The answer to a row does not depend on its neighbours or on what was asked before."""
    bench.ready()
    worst = ""
    for segment in bench.segments:
        rng = bench.rng(f"order {name(segment)}")
        rows = bench.inputs(segment, rng)
        turned = np.arange(len(rows))[::-1]
        a, b = bench.interleaved(segment, bench.asking(segment, rows), bench.asking(segment, rows[turned], turned))
        b = b[:, turned]
        if not (like := bench.alike(segment, a, b)).alike:
            raise Fault(
                f"{name(segment)}: rows in another order: {like.text}",
                "answers must come in the order of the rows, and a row must settle before it is read",
            )
        worst = like.text
    return Passed(f"rows in another order {worst}")


def repeats_alike(bench: Bench) -> Passed:
    """Asking the same again, at once, is answered alike: a lost answer is asked for again."""
    bench.ready()
    worst = ""
    for segment in bench.segments:
        rng = bench.rng(f"repeat safety {name(segment)}")
        rows, another = bench.inputs(segment, rng), bench.inputs(segment, rng)
        firsts, seconds = [], []
        for shot in range(1 if bench.exact(segment) else bench.shots):
            bench.ask(segment, another, shot)
            firsts.append(bench.ask(segment, rows, shot))
            seconds.append(bench.ask(segment, rows, shot))
        if not (like := bench.alike(segment, np.stack(firsts), np.stack(seconds))).alike:
            raise Fault(
                f"{name(segment)}: the same query again: {like.text}",
                "nothing may change by being asked: look for caches, counters and settling times that are too short",
            )
        worst = like.text
    return Passed(f"the same again {worst}")
