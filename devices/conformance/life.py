"""Opening, closing, telling of itself, keeping declared times; and park, maintain, reboot where a driver has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from hzo_hil.devices.api import Health
from hzo_hil.devices.conformance.bench import Bench, Fault, Passed, Skip, name
from hzo_hil.devices.errors import CapabilityError, DeviceRebooted


def snapshot(bench: Bench) -> Passed:
    found = bench.device.snapshot()
    change = "return a dict of plain numbers, text, lists and dicts (array.tolist(), float(x))"
    if not isinstance(found, Mapping):
        raise Fault(f"snapshot is a {type(found).__name__}", change)
    try:
        text = json.dumps(dict(found))
    except (TypeError, ValueError) as error:
        raise Fault(f"snapshot is no JSON: {error}", change) from None
    return Passed(f"{len(found)} entries, {len(text)} characters of JSON")


def health(bench: Bench) -> Passed:
    bench.ready()
    found = bench.device.health()
    if not isinstance(found, Health):
        raise Fault(f"health is a {type(found).__name__}", "return hzo_hil.devices.api.Health(ok, detail)")
    if not (isinstance(found.ok, bool) and isinstance(found.detail, str)):
        raise Fault(f"health is {found!r}", "ok is True or False, detail is text")
    if not found.ok:
        raise Fault(f"the device says that it is not well: {found.detail or '(no detail)'}", "see what it says")
    return Passed(found.detail or "well")


def reopen(bench: Bench) -> Passed:
    """Closed and opened again, as the same object and as a new one, and written again, it answers as before."""
    bench.ready(again=True)
    whole = bench.segments[-1]
    rows = bench.noise_of(whole).inputs
    before = bench.sample(whole, bench.asking(whole, rows))
    for fresh, how in ((False, "closed and opened"), (True, "closed, and opened as a new object")):
        try:
            bench.reopen(fresh)
            bench.ready()
            after = bench.sample(whole, bench.asking(whole, rows))
        except Exception as error:  # noqa: BLE001 - whatever the driver raises is the finding
            _revive(bench)
            raise Fault(f"{how}: {type(error).__name__}: {error}", "close() releases all that open() takes") from None
        if not (like := bench.rewritten_alike(whole, before, after, tests=2)).alike:
            raise Fault(f"{how}, and written again: {like.text}", "open() must bring the device to the same state")
    return Passed(f"as the same object and as a new one; {like.text}")


def _revive(bench: Bench) -> None:
    """A new object for the checks to come, whatever became of the old one."""
    with suppress(Exception):
        bench.device.close()
    bench.device = bench.opener()
    bench.device.open()
    bench.held.clear()


def promised_time(bench: Bench) -> Passed:
    longest, promised = bench.longest_s, bench.caps.longest_call_s
    if longest > promised:
        raise Fault(
            f"a call took {longest:.3g} s, declared longest_call_s is {promised:.3g} s",
            f"declare longest_call_s={longest * 2:.2g}, or lower max_batch: behind a wire it would count as hung",
        )
    return Passed(f"the longest call took {longest:.3g} s of {promised:.3g} s")


def park(bench: Bench) -> Passed:
    if not callable(getattr(bench.device, "park", None)):
        raise Skip("no park(): nothing to do on Ctrl-C or when the host is lost")

    def twice() -> None:
        bench.device.park()
        bench.device.park()
        bench.held.clear()
        bench.ready()

    return _same_after(bench, "park", twice, "park() must leave the device writable and usable, also when parked twice")


def maintain(bench: Bench) -> Passed:
    if not callable(getattr(bench.device, "maintain", None)):
        raise Skip("no maintain(): drift can stop a run but not be corrected by the device")

    def act() -> None:
        try:
            bench.device.maintain()
        except CapabilityError as error:
            raise Skip(f"no maintain: {error}") from None

    return _same_after(bench, "maintain", act, "maintain() must put every parameter back as it was written")


def reboot(bench: Bench) -> Passed:
    """A device that lost its parameters says DeviceRebooted instead of answering from blank ones."""
    if not callable(getattr(bench.device, "reboot", None)):
        raise Skip("no reboot(): the kit cannot switch it off and on")
    whole = bench.segments[-1]
    rows = bench.noise_of(whole).inputs
    bench.ready()
    before = bench.sample(whole, bench.asking(whole, rows))
    bench.device.reboot()
    change = "after a reboot raise DeviceRebooted from run() until every stage was written"
    try:
        answered = bench.ask(whole, rows)
    except DeviceRebooted:
        pass
    except Exception as error:  # noqa: BLE001 - the wrong refusal is the finding
        raise Fault(f"after a reboot it raised {type(error).__name__}: {error}", change) from None
    else:
        kept = len(before) > 1 or bench.alike(whole, before, answered[None]).alike
        if any(bench.base) and not kept:
            raise Fault("after a reboot it answered with parameters nobody wrote", change)
    bench.held.clear()
    bench.ready()
    after = bench.sample(whole, bench.asking(whole, rows))
    if not (like := bench.rewritten_alike(whole, before, after)).alike:
        raise Fault(f"rebooted and written again: {like.text}", change)
    return Passed(f"it says so, and written again {like.text}")


def _same_after(bench: Bench, what: str, act: Callable[[], Any], change: str) -> Passed:
    bench.ready(again=True)
    whole = bench.segments[-1]
    rows = bench.noise_of(whole).inputs
    before = bench.sample(whole, bench.asking(whole, rows))
    try:
        act()
        after = bench.sample(whole, bench.asking(whole, rows))
    except Skip:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the driver raises is the finding
        _revive(bench)
        raise Fault(f"{what}: {type(error).__name__}: {error}", change) from None
    if not (like := bench.rewritten_alike(whole, before, after)).alike:
        raise Fault(f"after {what} {name(whole)}: {like.text}", change)
    return Passed(f"afterwards {like.text}")
