"""Saving and loading the state of a run so that at every moment one complete checkpoint is on the disk.

`last.pt` is the newest, `last.prev.pt` the one before, `last.new.pt` one whose process died between writing and naming
it. It does not know what a state contains, only that it is made
of tensors and plain containers: loading runs no code of the file (`weights_only`).
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hzo_hil.devices.errors import BadInput
from hzo_hil.runfiles import RunFolderError, explained, replace, sync_folder, write_bytes

SCALARS = (type(None), bool, int, float, complex, str, bytes)


def save_checkpoint(folder: str | Path, state: Mapping[str, Any], name: str = "last") -> Path:
    """Write `state` to `<folder>/<name>.pt` in one step; the one before is kept as `<name>.prev.pt`.

    Raises BadInput for a state that could not be loaded again, RunFolderError if it cannot be written; then both
    earlier checkpoints are as they were.
    """
    import torch

    refuse_unplain(state)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    folder = Path(folder)
    path, fresh, previous = _files(folder, name)
    with explained(folder, f"write {path.name}"):
        write_bytes(fresh, buffer.getbuffer())
        if path.exists():
            replace(path, previous)
        replace(fresh, path)
        sync_folder(folder)
    return path


def load_checkpoint(folder: str | Path, name: str = "last") -> dict[str, Any]:
    """The newest complete state saved under `name`, its tensors on the CPU.

    Falls back, with a warning, to another one where the newest is damaged. Raises RunFolderError where none is left.
    """
    folder = Path(folder)
    troubles: list[str] = []
    for candidate in _files(folder, name):
        if not candidate.exists():
            continue
        try:
            state = _load(candidate)
        except Exception as error:  # noqa: BLE001 - damage shows in many ways: zip, pickle, key, runtime and other errors
            troubles.append(f"{candidate.name} is damaged ({type(error).__name__}: {_first_line(error)})")
            continue
        if troubles:
            warnings.warn(f"{folder}: {troubles[0]}; using {candidate.name} in its place", stacklevel=2)
        return state
    if troubles:
        raise RunFolderError(
            f"no usable checkpoint in {folder}: {'; '.join(troubles)}. Take one from a copy of the run"
        )
    raise RunFolderError(f"no checkpoint {name}.pt in {folder}: the run stopped before its first one. Begin a new run")


def has_checkpoint(folder: str | Path, name: str = "last") -> bool:
    """Whether there is anything for `load_checkpoint` to try."""
    return any(path.exists() for path in _files(Path(folder), name))


def refuse_unplain(value: Any, where: str = "state") -> None:
    """Raise BadInput, naming the place, for anything that loading without running code would refuse."""
    import torch

    if type(value) in SCALARS or isinstance(value, torch.Tensor | torch.dtype | torch.device | torch.Size):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            refuse_unplain(key, f"a key of {where}")
            refuse_unplain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            refuse_unplain(item, f"{where}[{index}]")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise BadInput(
            f"{where} is a {kind}, which a checkpoint cannot hold: use tensors (torch.from_numpy for an array), Python"
            " numbers, strings, lists and dicts"
        )


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Where a state may lie, in the order in which to try."""
    return folder / f"{name}.pt", folder / f"{name}.new.pt", folder / f"{name}.prev.pt"


def _load(path: Path) -> dict[str, Any]:
    import torch

    with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums itself
        damaged = archive.testzip()
    if damaged is not None:
        raise RunFolderError(f"the checksum of {damaged} is wrong")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise RunFolderError(f"it holds a {type(state).__name__}, not a state")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
