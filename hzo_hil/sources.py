"""Where a device came from, so that what uses it can be pickled by its address and not by its handle.

Whoever opens a device registers how; pickling keeps that, and loading opens it anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Stage

_openers: weakref.WeakKeyDictionary[Any, Callable[[], Device]] = weakref.WeakKeyDictionary()


def remember(device: Device, opener: Callable[[], Device]) -> Device:
    """Note how `device` can be had again; `opener` must be picklable."""
    _openers[device] = opener
    return device


def portable(stages: Sequence[Stage]) -> tuple[list[Callable[[], Device]], list[tuple[int, Stage]]]:
    """Stages with each device replaced by its number in a list of openers."""
    devices: list[Device] = []
    openers: list[Callable[[], Device]] = []
    found: list[tuple[int, Stage]] = []
    for stage in stages:
        known = next((i for i, d in enumerate(devices) if d is stage.device), None)
        if known is None:
            opener = _openers.get(stage.device)
            if opener is None:
                raise BadInput(
                    f"device {stage.device.capabilities.identity!r} cannot be pickled: it was made in this process."
                    " Open it"
                    " with hzo_hil.open_device(url or config), or save state_dict() instead"
                )
            known = len(devices)
            devices.append(stage.device)
            openers.append(opener)
        bare = Stage(None, stage.index, stage.leaf, stage.twin, stage.initial, stage.codec_in, stage.codec_out)  # type: ignore[arg-type]
        found.append((known, replace(bare, tiles=stage.tiles, name=stage.name)))
    return openers, found


def reopened(state: tuple[list[Callable[[], Device]], list[tuple[int, Stage]]]) -> list[Stage]:
    openers, stages = state
    devices: list[Device] = []
    for opener in openers:
        device = opener()
        devices.append(remember(device, opener))
    return [replace(stage, device=devices[i]) for i, stage in stages]
