"""The table of a study for other programs: HDF5, netCDF or CSV, with what the columns mean.

In HDF5 and netCDF every column is a variable over the dimension `row`, with label and unit as attributes, and the
content of study.json is the attribute `study` of the file, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hzo_hil.devices.errors import BadInput
from hzo_hil.runfiles import explained, replace
from hzo_hil.study.table import load_study, needed

if TYPE_CHECKING:
    from pandas import DataFrame

ENDINGS = (".h5", ".hdf5", ".nc", ".csv")


def export_study(path: Path, to: Path) -> Path:
    """Write the table of the study folder `path`, in the form that the ending of `to` names. Raises BadInput."""
    if to.suffix.lower() not in ENDINGS:
        raise BadInput(f"--export {to}: the ending says the form, and is one of {', '.join(ENDINGS)}")
    frame = load_study(path)
    partial = to.with_name(to.name + ".tmp")
    with explained(to.parent, f"write {to.name}"):
        if to.suffix.lower() == ".csv":
            frame.to_csv(partial, index=False)
        else:
            _write_arrays(frame, partial)
        replace(partial, to)
    return to


def _write_arrays(frame: DataFrame, place: Path) -> None:
    """Through h5netcdf, whose files are netCDF-4 and HDF5 at once."""
    needed("h5netcdf")
    xarray = needed("xarray")
    about: Mapping[str, Any] = frame.attrs["study"]
    meanings = {entry["name"]: entry for part in ("axes", "metrics") for entry in about[part]}
    variables = {str(name): ("row", _plain(frame[name]), _meaning(meanings.get(str(name)))) for name in frame}
    dataset = xarray.Dataset(variables, attrs={"study": json.dumps(about)})
    dataset.to_netcdf(place, engine="h5netcdf")


def _plain(column: Any) -> Any:
    """Numbers as they are, texts with nothing where there is none."""
    if column.dtype.kind in "iuf":
        return column.to_numpy()
    if column.dtype.kind == "b":
        return column.to_numpy().astype("int8")
    return column.fillna("").astype(str).to_numpy(dtype=object)


def _meaning(entry: Mapping[str, Any] | None) -> dict[str, str]:
    names = {"label": "long_name", "unit": "units", "role": "role", "note": "note"}
    return {} if entry is None else {new: str(entry[old]) for old, new in names.items() if entry.get(old) is not None}
