"""A device around a device: everything is passed on. What a wrapper is for, it overrides.

What only some devices have (twins of a simulated one, counters of a link, `by_sample` of a pool) is the device's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hzo_hil.devices.api import Array, Capabilities, Device, Health


class Wrapper:
    """`device`, as it is; `run` is left to the wrapper."""

    run_probes: Any = None
    """Answers that a device weighs itself would pass by what a wrapper does to them."""
    place: Any = None
    """Wrappers look at arrays."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "device":
            raise AttributeError(name)
        return getattr(self.device, name)

    @property
    def capabilities(self) -> Capabilities:
        return self.device.capabilities

    @property
    def virtual_clock(self) -> Any:
        return getattr(self.device, "virtual_clock", None)

    @virtual_clock.setter
    def virtual_clock(self, state: Any) -> None:
        device: Any = self.device
        device.virtual_clock = state

    def open(self) -> None:
        self.device.open()

    def write(
        self, stage: int, parameters: Mapping[str, Array], where: Mapping[str, Array] | None = None, **options: Any
    ) -> None:
        self.device.write(stage, parameters, where=where, **options)

    def read(self, stage: int) -> Mapping[str, Array]:
        return self.device.read(stage)

    def snapshot(self) -> Mapping[str, Any]:
        return self.device.snapshot()

    def health(self) -> Health:
        return self.device.health()

    def close(self) -> None:
        self.device.close()
