"""`hzo-hil report`: from folders to a folder. Mistakes are found before anything is written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hzo_hil.devices.errors import BadInput
from hzo_hil.report import about, course, outcomes
from hzo_hil.report.figures import Saved, save, write_csv
from hzo_hil.report.findings import findings
from hzo_hil.report.model import Material
from hzo_hil.report.page import GENERATOR, Part, render
from hzo_hil.report.runs import is_run, read_runs
from hzo_hil.report.sections import Section
from hzo_hil.report.single import single_sections
from hzo_hil.report.studies import is_study, read_study
from hzo_hil.runfiles import explained


@dataclass(frozen=True)
class Written:
    page: Path
    findings: list[str]
    figures: int
    notes: list[str]


def write_report(paths: Sequence[Path], out: Path | None, keep: float) -> Written:
    """Report on run folders (one, or several compared) or on study folders. Raises BadInput.

    `out` is `report/` in the only folder given, else in the working folder. An earlier report there is replaced; a
    folder that holds anything else is refused.
    """
    _needed()
    if not 0 < keep < 1:
        raise BadInput(
            f"--keep is the share of the noise-free outcome that is to be kept, between 0 and 1, not {keep:g}"
        )
    materials = _read(paths)
    place = out if out is not None else (paths[0] if len(paths) == 1 else Path()) / "report"
    _check_free(place)
    with explained(place.parent, f"write {place.name}"):
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".report-", dir=place.parent))
        fresh = beside / "report"
        fresh.mkdir()
        try:
            parts = [_part(m, fresh, place, keep, n if len(materials) > 1 else 0) for n, m in enumerate(materials, 1)]
            title = _title(materials)
            (fresh / "index.html").write_text(render(title, parts), encoding="utf-8")
            if place.exists():
                shutil.rmtree(place)
            fresh.rename(place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return Written(
        place / "index.html", [f for p in parts for f in p.findings],
        sum(len(s) for p in parts for s in p.figures.values()), [n for m in materials for n in m.notes],
    )  # fmt: skip


def _needed() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInput(f"reports need {error.name}, which is not installed: pip install 'hzo-hil[report]'") from error


def _read(paths: Sequence[Path]) -> list[Material]:
    for path in paths:
        if not path.is_dir():
            raise BadInput(f"{path} is no folder: give run folders or study folders")
    studies = [p for p in paths if is_study(p)]
    runs = [p for p in paths if p not in studies]
    for path in runs:
        if not is_run(path):
            raise BadInput(
                f"{path} is neither a run folder (it has no run.json) nor a study folder (no study.json)."
                " `hzo-hil train` prints the one as `run folder`, `hzo-hil study` the other"
            )
    if studies and runs:
        raise BadInput(
            f"{studies[0]} is a study and {runs[0]} a run: report on studies, or compare runs, not both at once"
        )
    return [read_study(p) for p in studies] if studies else [read_runs(runs)]


def _check_free(place: Path) -> None:
    if not place.exists():
        return
    if not place.is_dir():
        raise BadInput(f"{place} is a file: give another folder with --out")
    if any(place.iterdir()) and not _is_report(place / "index.html"):
        raise BadInput(f"{place} holds something that is no report: give another folder with --out")


def _is_report(page: Path) -> bool:
    try:
        return f'name="generator" content="{GENERATOR}"' in page.read_text(encoding="utf-8", errors="replace")[:2000]
    except OSError:
        return False


def _title(materials: Sequence[Material]) -> str:
    if len(materials) > 1:
        return f"{len(materials)} studies: {', '.join(m.name for m in materials)}"
    only = materials[0]
    return {"study": f"Study {only.name}", "run": f"Run {only.name}", "comparison": f"{len(only.runs)} runs compared"}[
        only.kind
    ]


def _part(material: Material, fresh: Path, place: Path, keep: float, number: int) -> Part:
    """`number` is 0 where there is only one. Links are made for `place`, where the folder will be moved."""
    prefix = f"{number}-" if number else ""
    folder = fresh / f"{prefix}figures"
    folder.mkdir()
    sections = [s for s in _sections(material, place, keep) if not s.is_empty]
    saved: dict[str, Sequence[Saved]] = {s.title: [save(f, folder, fresh) for f in s.figures] for s in sections}
    csv = f"{prefix}runs.csv"
    write_csv(fresh / csv, about.run_rows(material))
    return Part(material, findings(material, keep), sections, saved, csv)


def _sections(material: Material, place: Path, keep: float) -> list[Section]:
    courses = course.Courses(material)
    found = single_sections(material) if material.kind == "run" else [outcomes.method_section(material)]
    if material.kind == "study":
        found += [
            outcomes.against_axes(material), outcomes.threshold_section(material, keep),
            outcomes.harm_section(material), outcomes.pairs(material),
        ]  # fmt: skip
    return [
        *found, course.fronts(material), course.curves(material, courses), course.cosines(material, courses),
        course.predictions(material), about.failures(material), about.left_out(material), about.runs(material, place),
        about.device(material), about.reproduce(material),
    ]  # fmt: skip
