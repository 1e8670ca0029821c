"""The table of a study: a row a run, as a DataFrame, and the Parquet file that keeps it.

pandas and pyarrow are loaded when they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hzo_hil.devices.errors import BadInput
from hzo_hil.runfiles import explained, replace
from hzo_hil.study.folder import StudyFolder
from hzo_hil.study.runfolder import read_result

if TYPE_CHECKING:
    from pandas import DataFrame, Series

TEXTS = ("run", "status", "error", "error_type")
OWN = ("run", "status", "error", "error_type", "seconds", "attempt")


def load_study(path: str | Path) -> DataFrame:
    """The table of a study folder: a row for each planned run, in order.

    Columns: `run` (hash), `status` (done, failed, missing), `error`, `error_type`, `seconds` (of the run), `attempt`,
    one for each axis, one for each number. `attrs["study"]` is the content of study.json. Runs under way are missing.
    Raises BadInput where there is no study.
    """
    pandas = needed("pandas")
    folder = StudyFolder.open(Path(path))
    about = folder.about
    found = [_row(folder.run(planned["run"]), planned) for planned in folder.plan]
    axes, numbers = ([entry["name"] for entry in about[part]] for part in ("axes", "metrics"))
    columns = dict.fromkeys([*OWN, *axes, *numbers, *(name for row in found for name in row)])
    frame: DataFrame = pandas.DataFrame(found, columns=list(columns))
    for name in columns:
        frame[name] = _column(frame[name], text=name in TEXTS)
    frame.attrs["study"] = about
    return frame


def _row(run: Path, planned: Mapping[str, Any]) -> dict[str, Any]:
    axes = dict(planned["axes"])
    try:
        result = read_result(run)
    except ValueError as error:
        return {"run": run.name, "status": "missing", "error": f"result.json is damaged: {error}", **axes}
    if result is None:
        return {"run": run.name, "status": "missing", **axes}
    own = {name: result.get(name) for name in OWN if name != "run"}
    numbers = {n if n not in OWN and n not in axes else f"metric_{n}": v for n, v in result["metrics"].items()}
    return {"run": run.name, **own, **axes, **numbers}


def _column(cells: Series[Any], text: bool) -> Series[Any]:
    """Cells of one type: numbers, truths or texts; what is mixed, or is lists, becomes JSON."""
    if text or cells.dtype != object:
        return cells
    kinds = {type(cell) for cell in cells if cell is not None and cell == cell}
    if not kinds:
        return cells.astype(float)
    if len(kinds) == 1 and kinds <= {str, bool}:
        return cells
    return cells.map(lambda cell: cell if cell is None or cell != cell else json.dumps(cell))


def write_parquet(folder: StudyFolder) -> Path:
    """Compact all results into results.parquet, replaced in one step."""
    needed("pyarrow")
    frame = load_study(folder.path)
    place = folder.path / "results.parquet"
    partial = place.with_name(place.name + ".tmp")
    with explained(folder.path, "write results.parquet"):
        frame.to_parquet(partial, index=False)
        replace(partial, place)
    return place


def needed(module: str, extra: str = "study") -> Any:
    """Import what an extra brings. Raises BadInput where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise BadInput(f"this needs {error.name or module}: pip install 'hzo-hil[{extra}]'") from error
