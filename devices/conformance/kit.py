"""The list of checks, and the run of them: every check, whatever became of those before."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from hzo_hil.devices.api import Device
from hzo_hil.devices.conformance import answers, life, measured, optional, refusals, writing
from hzo_hil.devices.conformance.bench import Bench, Fault, Passed, Skip
from hzo_hil.devices.conformance.likeness import STATISTICAL_ROWS, TOTAL_ALPHA
from hzo_hil.devices.conformance.report import Group, Report, Row
from hzo_hil.devices.errors import BadInput, HzoError, LinkLost


@dataclass(frozen=True)
class Check:
    name: str
    group: Group
    run: Callable[[Bench], Passed]


CHECKS = (
    Check("description", "core", answers.description),
    Check("shapes", "core", answers.shapes),
    Check("dtypes", "core", answers.dtypes),
    Check("noise", "measured", measured.noise),
    Check("inputs are left alone", "core", answers.hands_off),
    Check("answers are kept", "core", answers.keeps),
    Check("ranges", "core", answers.in_range),
    Check("beyond the range", "core", answers.beyond_range),
    Check("batching equals singles", "core", answers.batching),
    Check("order independence", "core", answers.order),
    Check("repeat safety", "core", answers.repeats_alike),
    Check("write and read", "core", writing.agreement),
    Check("its own copies", "core", writing.apart),
    Check("writes take effect", "core", writing.effect),
    Check("re-write restores", "core", writing.restore),
    Check("partial writes", "core", writing.partial),
    Check("refuses a wrong width", "core", refusals.width),
    Check("refuses a wrong dtype", "core", refusals.dtype),
    Check("refuses NaN", "core", refusals.not_finite),
    Check("refuses an unknown segment", "core", refusals.segment),
    Check("refuses an unknown stage", "core", refusals.stage),
    Check("refuses wrong parameters", "core", refusals.parameters),
    Check("parameters beyond their range", "core", refusals.beyond),
    Check("snapshot", "core", life.snapshot),
    Check("health", "core", life.health),
    Check("close and reopen", "core", life.reopen),
    Check("taps", "optional", optional.taps),
    Check("repeats", "optional", optional.averaging),
    Check("inner boundaries", "optional", optional.inner),
    Check("limits across channels", "optional", optional.limits),
    Check("noise keys", "optional", optional.keys),
    Check("declared noise", "optional", optional.read_noise),
    Check("linear", "optional", optional.linear),
    Check("diagonal", "optional", optional.diagonal),
    Check("local", "optional", optional.local),
    Check("uniform", "optional", optional.uniform),
    Check("its own probes", "optional", optional.own_probes),
    Check("largest batch", "optional", optional.batch_bound),
    Check("output converter", "measured", measured.output_converter),
    Check("input converter", "measured", measured.input_converter),
    Check("linear range", "measured", measured.linear_range),
    Check("park", "optional", life.park),
    Check("maintain", "optional", life.maintain),
    Check("reboot", "optional", life.reboot),
    Check("speed", "measured", measured.speed),
    Check("drift", "measured", measured.drift),
    Check("declared times", "core", life.promised_time),
)
NAMES = tuple(c.name for c in CHECKS)
PATIENCE = 3
"""So many checks in a row that lost the device end the run: each may have waited as long as its link is patient."""


def check(
    open_device: Callable[[], Device],
    *,
    seed: int = 0,
    budget_rows: int = 100_000,
    quick: bool = False,
    only: Collection[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Certify a driver: `Report.passed`, `.table()`, `.as_json()`.

    `open_device` makes a device each time it is called (after the one before was closed). Random parameters within the
    declared ranges are written, and what the device held before is written back at the end. `budget_rows`: rows it aims
    to ask at most; `quick`: fewer rows and shots; `only`: names of checks. `say` gets one line a check.
    Raises BadInput for an unknown name, and what `open_device` itself raises of this project's errors.
    """
    if unknown := sorted(set(only) - set(NAMES)):
        raise BadInput(f"the kit has no check {', '.join(map(repr, unknown))}; it has: {', '.join(NAMES)}")
    chosen = [c for c in CHECKS if not only or c.name in only]
    bench = Bench(open_device, seed, budget_rows, quick)
    try:
        bench.start()
    except HzoError:
        raise
    except Exception as error:  # noqa: BLE001 - a driver that cannot be opened is a finding
        return _unopened(bench, chosen, error)
    rows: list[Row] = []
    lost = 0
    try:
        for one in chosen:
            row, gone = _run(one, bench) if lost < PATIENCE else (_lost(one), True)
            lost = lost + 1 if gone else 0
            rows.append(row)
            say(f"{row.outcome:<5} {row.name}")
    finally:
        bench.finish()
    bench.figures["seconds of the longest call (longest_call_s)"] = (
        f"{bench.longest_s:.3g} ({bench.caps.longest_call_s:g})"
    )
    bench.figures["rows asked"] = bench.rows_asked
    bench.figures["calls"] = bench.calls
    return Report(bench.caps.identity, rows, bench.figures, TOTAL_ALPHA)


def _run(one: Check, bench: Bench) -> tuple[Row, bool]:
    """The check's row, and whether the device was lost in it."""
    try:
        passed = one.run(bench)
    except Skip as skip:
        return Row(one.name, one.group, "skip", str(skip)), False
    except Fault as fault:
        bench.held.clear()  # what a faulty device holds is not known
        return Row(one.name, one.group, "fail", fault.detail, fault.change), False
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is a finding of this check
        bench.held.clear()
        text = f"{type(error).__name__}: {error}"
        return Row(one.name, one.group, "fail", text, "this question is one a host may ask"), isinstance(
            error, LinkLost
        )
    return Row(one.name, one.group, "pass", passed.detail, passed.advice), False


def _lost(one: Check) -> Row:
    return Row(one.name, one.group, "fail", f"not judged: the device was lost in {PATIENCE} checks in a row")


def _unopened(bench: Bench, chosen: list[Check], error: Exception) -> Report:
    identity = getattr(getattr(bench.device, "capabilities", None), "identity", "") or "device"
    text = getattr(error, "detail", f"{type(error).__name__}: {error}")
    first = Row(
        "opens",
        "core",
        "fail",
        text,
        getattr(error, "change", "") or "open() must reach the device, or raise a DeviceError",
    )
    return Report(identity, [first, *(Row(c.name, c.group, "fail", "not judged: it did not open") for c in chosen)])


assert len(CHECKS) <= STATISTICAL_ROWS + 10  # those of refusals, shapes and life without statistics are at least ten
