"""From a description to a device: simulated, driven by your own code, behind a wire, pooled, recorded.

It asks no device anything but its capabilities. Knows nothing of networks, and needs no torch: a lab PC opens devices.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import ConfigError, HzoError
from hzo_hil.devicesections import DeviceSection
from hzo_hil.health import HealthPolicy, watch
from hzo_hil.paths import is_object_path, load_object
from hzo_hil.sections import parse_section
from hzo_hil.yamlfile import read_yaml

if TYPE_CHECKING:
    from hzo_hil.simulators.model import StageModel

ENTRY_POINTS = "hzo_hil.devices"


def open_device(source: str | Path | Mapping[str, Any] | DeviceSection, seed: int = 0) -> Device:
    """A device from a URL, a YAML file, a mapping of its fields, or a section of a configuration.

    `seed` picks the chip where the device names none. Raises ConfigError for what cannot be made.
    """
    section = device_section(source)
    return _make(section.model_dump(), seed)


def device_section(source: str | Path | Mapping[str, Any] | DeviceSection) -> DeviceSection:
    """The description of one device. Raises ConfigError."""
    if isinstance(source, DeviceSection):
        return source
    if isinstance(source, (str, Path)) and "://" in str(source):
        return DeviceSection(url=str(source))
    raw = read_yaml(source) if isinstance(source, (str, Path)) else source
    return parse_section(DeviceSection, raw, str(source) if isinstance(source, (str, Path)) else "device")


def _make(fields: Mapping[str, Any], seed: int) -> Device:
    """Module-level and plain data in, so that pickles can name it."""
    section = DeviceSection.model_validate(fields)
    try:
        device = _source(section, seed)
    except TypeError as error:  # of the keywords in `options`; a driver's own mistakes are told apart below
        raise ConfigError(f"device options {dict(section.options)}: {error}") from error
    if not isinstance(device, Device):
        raise ConfigError(
            f"driver {section.driver!r} gave a {type(device).__name__}, which is no device: it needs"
            " capabilities, open, run, write, read, snapshot, health and close"
        )
    if section.record is not None:
        from hzo_hil.devices.recorded import Recorder

        device = Recorder(device, section.record)
    if section.added_noise:  # outside the recorder, which keeps what the device answered
        device = _noisier(device, section.added_noise, seed)
    if section.datasheet is not None:
        _datasheets[device] = _chip(section.datasheet.kind, section.datasheet.preset, 0, section.datasheet.options)
    if section.health is not None:
        watch(device, HealthPolicy(**section.health.model_dump()))
    try:
        from hzo_hil import sources
    except ImportError:  # a lab PC without torch serves devices and pickles no modules
        return device
    return sources.remember(device, partial(_make, dict(fields), seed))


def _noisier(device: Device, std: float, seed: int) -> Device:
    from hzo_hil.devices.added_noise import AddedNoise
    from hzo_hil.simulators.noise import STREAM_ADDED, normals

    return AddedNoise(device, std, lambda keys, at, width: normals(keys, STREAM_ADDED + at, width, "float64"), seed)


def _source(section: DeviceSection, seed: int) -> Device:
    if section.kind is not None:
        return _simulated(section, seed)
    if section.url is not None:
        from hzo_hil.devices.remote import RemoteDevice

        return RemoteDevice(
            section.url, keys=section.keys, patience_s=section.patience_s, takeover=section.takeover, **section.options
        )
    if section.members is not None:
        from hzo_hil.devices.pool import Pool

        members = [_make(m.model_dump(), seed) for m in section.members]
        return Pool(members, identical=section.identical, **section.options)
    if section.replay is not None:
        from hzo_hil.devices.recorded import Replay

        return Replay(section.replay, match=section.match)
    return _driver(section)


def _simulated(section: DeviceSection, seed: int) -> Device:
    from hzo_hil.devices.simulated import SimulatedDevice

    chosen = section.seed if section.seed is not None else seed
    return SimulatedDevice(
        _chip(str(section.kind), section.preset, chosen, section.options),
        identity=section.identity or f"{section.kind}-{section.preset}-{chosen}",
        inner_boundaries=section.inner_boundaries,
        taps=section.taps,
        max_batch=section.max_batch,
        latency_s=section.latency_s,
        query_s=section.query_s,
        settling_s=section.settling_s,
        dtype=section.dtype,
        longest_call_s=section.longest_call_s,
        laser_wander=section.laser_wander,
        wander_period_s=section.wander_period_s,
        power=section.power,
        power_drift_std=section.power_drift_std,
        power_drift_tau_s=section.power_drift_tau_s,
        seed=chosen,
        drift_step_s=section.drift_step_s,
        engine=section.engine,
    )


def _chip(kind: str, preset: str, seed: int, options: Mapping[str, Any]) -> Sequence[StageModel]:
    from hzo_hil.simulators import chip

    try:
        return chip.build(kind, preset=preset, seed=seed, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"device of kind {kind!r}: {error}") from error


_datasheets: weakref.WeakKeyDictionary[Any, Sequence[StageModel]] = weakref.WeakKeyDictionary()


def models_of(device: Device) -> Sequence[StageModel] | None:
    """The model of each stage, where one is known: a simulated chip's own, or what its data sheet says."""
    found = getattr(device, "models", None)
    return found if found is not None else _datasheets.get(device)


def _driver(section: DeviceSection) -> Device:
    name = str(section.driver)
    if is_object_path(name):
        make = load_object(name, "driver")
    else:
        found = {e.name: e for e in metadata.entry_points(group=ENTRY_POINTS)}
        if name not in found:
            known = ", ".join(sorted(found)) or "none is installed"
            raise ConfigError(
                f"no driver {name!r} in the entry-point group {ENTRY_POINTS} ({known}); or give module:callable"
            )
        try:
            make = found[name].load()
        except Exception as error:
            raise ConfigError(
                f"driver {name!r} ({found[name].value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    try:
        device: Device = make(**section.options)
    except HzoError:
        raise
    except Exception as error:
        raise ConfigError(
            f"driver {name!r} could not be made with {section.options}: {type(error).__name__}: {error}"
        ) from error
    return device


def installed_drivers() -> list[dict[str, str]]:
    """Simulated kinds and installed drivers; a broken driver is listed with its error."""
    from hzo_hil.simulators import chip

    rows = [
        {"name": kind, "from": "simulator", "detail": "presets: " + ", ".join(presets)}
        for kind, presets in chip.known().items()
    ]
    for entry in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        try:
            entry.load()
            detail = entry.value
        except Exception as error:  # noqa: BLE001 - one broken driver must not hide the others
            detail = f"broken: {type(error).__name__}: {error}"
        rows.append({"name": entry.name, "from": entry.dist.name if entry.dist else "?", "detail": detail})
    return rows
