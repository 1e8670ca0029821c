"""What layers and devices say of themselves in the rows of a run's metrics; nothing is asked for it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hzo_hil.calibration import GAIN_HIGH, GAIN_LOW
from hzo_hil.devices.api import Device
from hzo_hil.module import Opaque


def devices_of(layers: Sequence[Opaque]) -> list[Device]:
    """Every device of some layers, once."""
    return list({id(d): d for layer in layers for d in layer.network.devices}.values())


def monitors(layers: Sequence[Opaque]) -> dict[str, float]:
    """What devices last said of themselves (power, temperature), what watching found, mishaps of links."""
    found = {f"monitor/{name}": v for o in layers for name, v in sorted(o.dispatch.monitors.items())}
    for device in devices_of(layers):
        counters: Mapping[str, Any] = getattr(device, "counters", {})
        for name, number in counters.items():
            if name != "pings":
                found[f"link/{name}"] = found.get(f"link/{name}", 0) + number
    return found


def gains(layers: Sequence[Opaque], warned: set[str]) -> dict[str, float]:
    """Of every stage since the last call, `gain/LAYER/STAGE`, and of all stages together, `gain/LAYER/all`.

    `warned`: names of layers of whose gains a warning was given; it grows.
    """
    row: dict[str, float] = {}
    for layer in layers:
        found = layer.gains.stages()
        layer.gains.clear()
        row |= {f"gain/{layer.name}/{k}": gain for k, gain in found.items()}
        if found:
            row[f"gain/{layer.name}/all"] = math.prod(found.values())
        outside = {k: gain for k, gain in found.items() if not GAIN_LOW <= gain <= GAIN_HIGH}
        if outside and layer.name not in warned:
            warned.add(layer.name)
            worst = max(outside, key=lambda k: abs(math.log(max(outside[k], 1e-300))))
            warnings.warn(
                f"{layer.name}: the mean-square gain of {len(outside)} of {len(found)} stages along this epoch's"
                f" targets was outside {GAIN_LOW:.2g}..{GAIN_HIGH:.2g}; stage {worst}: {outside[worst]:.3g}. Over"
                " many stages noise is amplified, or the target vanishes in noise. Scale weights or a codec's gain,"
                " or start from orthogonal weights (said once; see gain/ in the metrics)",
                stacklevel=2,
            )
    return row
