"""Which real devices a configuration uses: two runs on one of them wait for each other.

A simulated chip is a program of its own in each run, and a recording can be read by many.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def addresses(config: Mapping[str, Any]) -> frozenset[str]:
    """The url, or driver with its options, of each device in the section `devices`."""
    devices = config.get("devices")
    return (
        frozenset(found for d in devices.values() for found in _of(d)) if isinstance(devices, Mapping) else frozenset()
    )


def _of(device: Any) -> Iterator[str]:
    if not isinstance(device, Mapping):
        return
    if device.get("url"):
        yield str(device["url"])
    elif device.get("driver"):
        yield f"{device['driver']} {json.dumps(device.get('options') or {}, sort_keys=True, default=str)}"
    for member in device.get("members") or []:
        yield from _of(member)
