"""From a device to what was found of it: what is asked, in which order. Knows no files and no tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hzo_hil.devices.api import BoundarySpec, Device
from hzo_hil.devices.errors import BadInput
from hzo_hil.devicesections import DeviceSection
from hzo_hil.fit import design
from hzo_hil.fit.analysis import analysed
from hzo_hil.fit.asking import Asking
from hzo_hil.fit.findings import Finding
from hzo_hil.fit.judged import Verdict
from hzo_hil.fit.look import look
from hzo_hil.fit.rows import Rows, joined
from hzo_hil.fit.target import Target, target_for
from hzo_hil.ledger import Ledger


@dataclass(frozen=True)
class Fit:
    """What a device was found to be. `verdicts`: of the test on queries held back."""

    identity: str
    target: Target
    findings: list[Finding]
    verdicts: list[Verdict]
    ledger: Ledger
    watched_s: float

    @property
    def good(self) -> bool:
        return all(v.ok for v in self.verdicts)


def fit_device(
    section: DeviceSection,
    device: Device,
    *,
    seed: int = 0,
    queries: int = design.DEFAULT_QUERIES,
    seconds: float = 0.0,
    wander: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Measure `device` and find what the simulator of `section` must be set to.

    `queries`: budget, rows. `seconds`: spread them over so long, for drift (not on a device whose time is virtual).
    `wander`: also the amplitude of a laser's wander with the section's period. `seed`: chip where the section names
    none, and the draws of the design. Raises BadInput (also ConfigError, CapabilityError) before anything is asked,
    DeviceError where the device fails or does not follow the simulator at all.
    """
    design.check_budget(queries)
    rng = np.random.default_rng((seed, 0x0F17))
    device.open()
    try:
        caps = device.capabilities
        if seconds and caps.virtual_time:
            raise BadInput(
                f"--seconds {seconds:g}: the time of device {caps.identity!r} is declared and passes only with work:"
                " raise --queries to watch it longer"
            )
        target = target_for(section, caps, seed, rng)
        asking = Asking(device, target, seed)
        try:
            asking.write()
            rows = _asked(asking, target, caps.boundaries[target.stage], queries, seconds, rng, say)
        finally:
            asking.restore()
    finally:
        device.close()
    say("estimating")
    ports = caps.boundaries[target.stage : target.stage + 2]
    found = analysed(target, rows, section, ports, wander, rng)
    return Fit(caps.identity, target, found.findings, found.verdicts, asking.ledger, found.watched_s)


def _asked(
    asking: Asking, target: Target, port: BoundarySpec, queries: int, seconds: float, rng: np.random.Generator,
    say: Callable[[str], None],
) -> Rows:  # fmt: skip
    say("first look")
    first = asking.ask(design.pilot(target, rng))
    seen = look(first, target, max(port.in_step, target.model.input.step))
    plan = design.blocks(target, queries, seen.top, seen.dim, rng)
    count = int(plan.block.max()) + 1
    parts = [replace(first, block=np.zeros_like(first.block))]
    start = asking.seconds
    for block in range(count):
        asking.wait_until(start + block * (seconds - start) / max(count - 1, 1))
        questions = plan.of_block(block)
        parts.append(asking.ask(replace(questions, block=questions.block + 1)))
        say(f"{sum(map(len, parts)):,} of {queries:,} queries")
    return joined(parts)
