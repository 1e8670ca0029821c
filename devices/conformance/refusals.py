"""Required: what cannot be right is refused in words or made harmless, and the device works on afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hzo_hil.devices.api import ParameterSpec, Segment
from hzo_hil.devices.conformance.bench import Array, Bench, Fault, Passed, described, name
from hzo_hil.devices.errors import BadInput, DeviceRebooted, LinkLost

Case = tuple[str, Callable[[], Any]]
FIX = "check inputs at the top of run() and raise BadInput (hzo_hil.devices.errors), saying what is wrong"
FIX_WRITE = "check the values at the top of write(), before anything is set, and raise BadInput"


def width(bench: Bench) -> Passed:
    def cases(segment: Segment, rows: Array) -> Iterable[Case]:
        wide = np.ascontiguousarray(np.pad(rows, ((0, 0), (0, 1))))
        yield f"{wide.shape[1]} columns", lambda: bench.raw(segment, wide)
        if rows.shape[1] > 1:
            yield f"{rows.shape[1] - 1} columns", lambda: bench.raw(segment, np.ascontiguousarray(rows[:, 1:]))
        yield "a single row without its batch axis", lambda: bench.raw(segment, rows[0].copy())

    return _queries(bench, cases)


def dtype(bench: Bench) -> Passed:
    def cases(segment: Segment, rows: Array) -> Iterable[Case]:
        yield "complex numbers", lambda: bench.raw(segment, rows + 1j * np.ones_like(rows))
        yield "text", lambda: bench.raw(segment, np.full(rows.shape, "one"))

    found = _queries(bench, cases)
    segment, rows = _reference(bench)
    wider = rows.astype("float64" if bench.caps.dtype == "float32" else "float32")
    try:
        answer = bench.ask(segment, wider)
    except Exception:  # noqa: BLE001 - refusing is right as well
        return found
    kept = bench.sample(segment, bench.asking(segment, rows))
    if len(kept) == 1 and not bench.alike(segment, answer[None], kept).alike:
        raise Fault(f"{wider.dtype} inputs were taken and answered wrongly", "convert with astype, or raise BadInput")
    return found


def not_finite(bench: Bench) -> Passed:
    def cases(segment: Segment, rows: Array) -> Iterable[Case]:
        for value in (np.nan, np.inf):
            bad = rows.copy()
            bad[0, 0] = value
            yield f"an input of {value}", lambda bad=bad: bench.raw(segment, bad)  # type: ignore[misc]

    return _queries(bench, cases)


def segment(bench: Bench) -> Passed:
    count = len(bench.caps.stages)

    def cases(whole: Segment, rows: Array) -> Iterable[Case]:
        yield f"stages 1..{count + 1} of {count}", lambda: bench.raw(Segment(0, count + 1), rows)
        for k, spec in enumerate(bench.caps.boundaries[1:-1], start=1):
            if not spec.read:
                yield f"a reading at boundary {k}", lambda k=k: bench.raw(Segment(0, k), rows)  # type: ignore[misc]
            if not spec.drive:
                inner = np.zeros((len(rows), bench.caps.width(k)), dtype=rows.dtype)
                where = Segment(k, count)
                yield f"driving boundary {k}", lambda w=where, i=inner: bench.raw(w, i)  # type: ignore[misc]

    return _queries(bench, cases)


def stage(bench: Bench) -> Passed:
    count = len(bench.caps.stages)
    some = _as_sent(bench, bench.base[-1]) or {"no_such_parameter": np.zeros(1, bench.caps.dtype)}
    return _writes(
        bench,
        [
            (f"a write to stage {count} of 0..{count - 1}", lambda: bench.device.write(count, some)),
            ("a write to stage -1", lambda: bench.device.write(-1, some)),
            (f"a reading of stage {count}", lambda: bench.device.read(count)),
        ],
    )


def parameters(bench: Bench) -> Passed:
    """Missing, unknown and misshapen parameters, and values that are no numbers."""
    cases: list[Case] = []
    for k in bench.written_stages():
        good = _as_sent(bench, bench.base[k])
        first = next(iter(good))
        longer = np.append(good[first].reshape(-1), good[first].reshape(-1)[:1])
        bad = good[first].copy()
        bad.reshape(-1)[0] = np.nan
        for what, values in (
            ("without a parameter", {n: v for n, v in good.items() if n != first}),
            ("with an unknown parameter", {**good, "no_such_parameter": good[first]}),
            (f"of a {first!r} that is too long", {**good, first: longer}),
            (f"of NaN in {first!r}", {**good, first: bad}),
        ):
            cases.append((f"a write to stage {k} {what}", lambda k=k, v=values: bench.device.write(k, v)))  # type: ignore[misc]
    return _writes(bench, cases)


def beyond(bench: Bench) -> Passed:
    """Parameters outside their range are refused, or clipped: what is read back lies inside."""
    bench.ready(again=True)
    tried, how = 0, set()
    segment, rows = _reference(bench)
    before = bench.sample(segment, bench.asking(segment, rows))
    for k in bench.written_stages():
        for spec in bench.caps.stages[k].parameters:
            for value in _outside(spec):
                tried += 1
                values = _as_sent(bench, bench.base[k])
                values[spec.name].reshape(-1)[0] = value
                try:
                    bench.device.write(k, values)
                except Exception as error:  # noqa: BLE001 - any refusal will do here
                    _check_refusal(error, f"{spec.name!r} = {value:g}")
                    how.add("refused")
                    continue
                finally:
                    bench.held.pop(k, None)
                how.add("clipped")
                read = np.asarray(bench.device.read(k)[spec.name], dtype=np.float64)
                slack = 1e-5 * max(abs(v) for v in (spec.low, spec.high, 1.0) if np.isfinite(v))
                if read.min() < spec.low - slack or read.max() > spec.high + slack:
                    raise Fault(
                        f"stage {k}: {spec.name!r} = {value:g} was set, outside {spec.low:g} to {spec.high:g}",
                        FIX_WRITE + ", or clip them: what is out of range can destroy a heater",
                    )
    bench.ready(again=True)
    _unharmed(bench, segment, rows, before, "a parameter outside its range")
    return Passed(f"{tried} values outside are {' or '.join(sorted(how))}" if tried else "no parameter has a range")


def _outside(spec: ParameterSpec) -> list[float]:
    if spec.period:
        return []  # wraps: no value is outside
    size = max([abs(v) for v in (spec.low, spec.high) if np.isfinite(v)] + [1.0])
    return [end + sign * size for end, sign in ((spec.low, -1), (spec.high, 1)) if np.isfinite(end)]


def _as_sent(bench: Bench, values: dict[str, Array]) -> dict[str, Array]:
    return {n: np.array(v, dtype=bench.caps.dtype) for n, v in values.items()}


def _reference(bench: Bench) -> tuple[Segment, Array]:
    whole = bench.segments[-1]
    return whole, bench.noise_of(whole).inputs


def _queries(bench: Bench, cases: Callable[[Segment, Array], Iterable[Case]]) -> Passed:
    bench.ready()
    whole, rows = _reference(bench)
    before = bench.sample(whole, bench.asking(whole, rows))
    advice = ""
    tried = 0
    for what, act in cases(whole, rows):
        tried += 1
        try:
            found = act()
        except Exception as error:  # noqa: BLE001 - the kit judges whatever a driver raises
            advice = _check_refusal(error, what) or advice
        else:
            raise Fault(f"{what} was answered with {described(getattr(found, 'outputs', None))}", FIX)
        _unharmed(bench, whole, rows, before, what)
    return Passed(f"{tried} kinds refused, and it works on", advice)


def _writes(bench: Bench, cases: list[Case]) -> Passed:
    bench.ready()
    whole, rows = _reference(bench)
    before = bench.sample(whole, bench.asking(whole, rows))
    advice = ""
    for what, act in cases:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - as above
            advice = _check_refusal(error, what) or advice
        else:
            bench.ready(again=True)
            raise Fault(f"{what} was taken", FIX_WRITE)
    _unharmed(bench, whole, rows, before, "bad writes")
    return Passed(f"{len(cases)} kinds refused, and what it held is still there", advice)


def _check_refusal(error: Exception, what: str) -> str:
    """Advice about how it was refused."""
    if isinstance(error, (LinkLost, DeviceRebooted)):
        raise Fault(f"{what} made the device unreachable: {error}", FIX)
    if isinstance(error, BadInput):
        return ""
    return f"{what} was refused with {type(error).__name__}; BadInput would say that the caller is at fault"


def _unharmed(bench: Bench, segment: Segment, rows: Array, before: Array, what: str) -> None:
    try:
        after = bench.sample(segment, bench.asking(segment, rows))
    except Exception as error:  # noqa: BLE001 - as above
        raise Fault(f"after {what} {name(segment)} answers no more: {error}", FIX) from None
    if not (like := bench.alike(segment, before, after, tests=40)).alike:
        raise Fault(f"after {what} its answers have changed: it {like.text}", FIX)
