"""What devices hold: leases on their stages, and the writes that bring them to what a query needs.

The only caller of a device's write. It knows links and values, never networks, queries or targets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from hzo_hil.devices.errors import BadStep, DeviceError, DeviceGone, DeviceRebooted, LinkLost, OverLimit
from hzo_hil.ledger import Account, Books
from hzo_hil.link import Link
from hzo_hil.parameters import slewed

Array = NDArray[Any]
Image = tuple[tuple[Any, ...], Mapping[str, Array], int]
"""What a physical stage must hold: (tenant, values, noise key)."""
HEALTH = "health"
"""The purpose of looking after a device, and the tenant of what is written for it, which every owner puts up with."""


@dataclass
class Policy:
    """How patient the host is. `timeout_s`: without any answer for so long, a query is given up and asked again."""

    retries: int = 3
    timeout_s: float = 60.0
    exclusive: bool = False


class Programming:
    """Brings stages to the images of one module, and pays for it."""

    def __init__(self, policy: Policy, books: Books) -> None:
        self.policy = policy
        self.books = books
        self.expected: dict[tuple[int, int], tuple[Any, ...]] = {}
        """Tenants that a checkpoint says were on (device, stage): writing them again was paid for before."""

    def bring(self, link: Link, images: Mapping[int, Image], purpose: str) -> None:
        """Write what is not there yet; a lost write is repeated whole, as a query is."""
        lost = 0
        while True:
            try:
                return self._bring_once(link, images, purpose)
            except DeviceGone:
                raise
            except (LinkLost, DeviceRebooted) as error:
                lost += 1
                self.books.count("lost" if isinstance(error, LinkLost) else "reboots")
                if isinstance(error, DeviceRebooted):
                    link.forget()
                if lost > self.policy.retries:
                    raise BadStep(
                        f"device {link.name!r} lost a write and {self.policy.retries} repeats of it ({error}). The step"
                        " was dropped; what it must hold is written whole before the next query"
                    ) from error

    def _bring_once(self, link: Link, images: Mapping[int, Image], purpose: str) -> None:
        for stage, image in images.items():
            tenant = image[0]
            held = link.held.get(stage)
            if held is not None and held.tenant == tenant:
                continue
            paid = self.expected.pop((id(link.device), stage), None) == tenant and held is None
            if held is not None and held.tenant[0] != tenant[0] and HEALTH not in (held.tenant[0], tenant[0]):
                self._change_owner(link, stage)
            if link.pipelined:
                # Nothing may be in flight on a pipelined device while its parameters change.
                link.drain(self.policy.timeout_s)
            self._write(link, stage, image, None if paid else purpose)

    def _change_owner(self, link: Link, stage: int) -> None:
        if self.policy.exclusive:
            raise DeviceError(
                f"stage {stage} of device {link.name!r} holds another module's parameters and this one asked for"
                " exclusive use. Use one module a stage, or exclusive=False to re-write at every change of owner"
            )
        self.books.count("owner_changes")

    def _write(self, link: Link, stage: int, image: Image, purpose: str | None) -> None:
        """Write a stage, in as many steps as its slew limit asks for. Without a purpose: an event, not a cost."""
        tenant, values, key = image
        check_limits(link, stage, values)
        settling = link.capabilities.settling_s
        steps = _steps(link, stage, values)
        for number, step in enumerate(steps, start=1):
            # A stage on its way is nobody's yet: whatever interrupts the writes, they go on from there.
            link.write(stage, step, tenant if number == len(steps) else (tenant[0], "on its way"), key)
            if purpose is None:
                self.books.count("restored")
            else:
                size = sum(v.nbytes for v in step.values())
                self.books.charge(purpose, Account(writes=1, bytes=size, device_seconds=settling))
            if settling and not link.capabilities.virtual_time:
                time.sleep(settling)


def check_limits(link: Link, stage: int, values: Mapping[str, Array]) -> None:
    """Raise OverLimit where a stage's values together exceed what the device allows (total power)."""
    spec = link.capabilities.stages[stage]
    for limit in spec.limits:
        total = limit.total(values)
        if total > limit.high:
            raise OverLimit(
                f"device {link.name!r}, stage {stage} ({spec.name!r}): {limit.name} would be {total:.6g} {limit.unit},"
                f" above its limit of {limit.high:g} {limit.unit}. Nothing was written. Lower the learning rate, add"
                " weight decay, or start from smaller values"
            )


def _steps(link: Link, stage: int, wanted: Mapping[str, Array]) -> list[Mapping[str, Array]]:
    """The values of each write on the way from what the stage holds to what is wanted."""
    specs = link.capabilities.stages[stage].parameters
    if not any(s.slew for s in specs):
        return [wanted]
    held = link.held.get(stage)
    before = held.values if held is not None else link.call(lambda: link.device.read(stage))
    paths = {s.name: slewed(s, before.get(s.name) if before else None, wanted[s.name]) for s in specs}
    longest = max(len(p) for p in paths.values())
    return [{n: p[min(i, len(p) - 1)] for n, p in paths.items()} for i in range(longest)]
