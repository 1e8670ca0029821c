"""The run folder of a training: a new one, or one to go on with if it is the same experiment on the same devices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hzo_hil.config import WHERE_FIELDS, WHERE_SECTIONS, Config
from hzo_hil.devices.api import Device, Health
from hzo_hil.devices.errors import ConfigError
from hzo_hil.link import link_to
from hzo_hil.records import RunFolder, RunFolderError, differences, what_hash


def take_folder(config: Config, resume: bool, force: bool) -> RunFolder:
    """Held until it is closed. Raises ConfigError where a run to be resumed was another experiment, with the fields
    that differ, and RunFolderError where another process trains in it.
    """
    plain = config.model_dump(mode="json")
    if not resume:
        return RunFolder.create(config.where.run_dir, plain, force=force, where_fields=WHERE_FIELDS)
    place = config.where.run_dir or _latest(config)
    folder = RunFolder.open(place)
    if folder.about.get("what_hash") != what_hash(plain, WHERE_FIELDS):
        changed = differences(folder.config, plain, WHERE_FIELDS) or ["(its config.yaml was edited since)"]
        listed = "\n  ".join(changed)
        raise ConfigError(
            f"{place} was run with another configuration and cannot be resumed with this one:\n  {listed}\nOnly the"
            f" sections {' and '.join(WHERE_SECTIONS)}, and where a device is reached, may change. Start a new run, or"
            " resume with the folder's own config.yaml"
        )
    folder.hold()
    return folder


def _latest(config: Config) -> Path:
    what = what_hash(config.model_dump(mode="json"), WHERE_FIELDS)
    found = []
    for path in Path("runs").glob(f"{config.name}-*/run.json"):
        try:
            folder = RunFolder.open(path.parent)
        except RunFolderError:
            continue  # not the one that is looked for
        if folder.about.get("what_hash") == what and folder.status != "finished":
            found.append(path)
    if not found:
        raise ConfigError(
            f"--resume: no unfinished run of this configuration under {Path('runs').resolve()}; give --run-dir"
        )
    return max(found, key=lambda p: p.stat().st_mtime).parent


def keep_device(
    folder: RunFolder, devices: Mapping[str, Device], resumed: bool, other_device: bool
) -> dict[str, Health]:
    """Write what the devices say of themselves; on resuming they must be the same ones. How they are, by name."""
    here = {name: device.capabilities.identity for name, device in devices.items()}
    file = folder.path / "device.json"
    if resumed and file.is_file() and not other_device:
        before = _identities(file)
        if before != here:
            raise ConfigError(
                f"{folder.path} was trained on {_named(before)} and would go on with {_named(here)}. Its parameters fit"
                " the first device's imperfections; if that is meant, add --other-device"
            )
    snapshots = {name: link_to(d).call(d.snapshot) for name, d in devices.items()}
    health = {name: link_to(d).call(d.health) for name, d in devices.items()}
    folder.write_device({"identity": here, "health": {n: h.detail for n, h in health.items()}, "snapshot": snapshots})
    return health


def _identities(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}): which device was used is not known. If it is this one, add --other-device"
        ) from error


def _named(identities: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {identity}" for name, identity in identities.items())
