"""The command `study`: run one, go on with one, say how one stands, export its table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hzo_hil.devicecli import JSON, as_line
from hzo_hil.devices.errors import BadInput

FOLDERS = Path("studies")


@click.command()
@click.argument("path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Override a field of the study, or of the configuration it varies (YAML value).",
)
@click.option("--study-dir", type=click.Path(path_type=Path), help="Where to keep the study (default: studies/<name>).")
@click.option("--workers", type=click.IntRange(min=1), help="Processes on this machine (default: one a core).")
@click.option("--scheduler", metavar="URL", help="Run on the Dask cluster of this scheduler, tcp://host:port.")
@click.option("--resume", is_flag=True, help="Go on with the study: run what is missing or failed.")
@click.option("--yes", is_flag=True, help="Run it though it has more runs than its limit.")
@click.option("--dry-run", is_flag=True, help="Check every run's configuration, say how many there are, run none.")
@click.option("--status", is_flag=True, help="Say how the study stands, and run none.")
@click.option(
    "--export", type=click.Path(path_type=Path), help="Write the table of a study to FILE.h5, .nc or .csv; run none."
)
@click.option("--quiet", is_flag=True, help="No progress; messages and errors are still shown.")
@JSON
def study(
    path: Path, overrides: tuple[str, ...], study_dir: Path | None, workers: int | None, scheduler: str | None,
    resume: bool, yes: bool, dry_run: bool, status: bool, export: Path | None, quiet: bool, as_json: bool,
) -> int:  # fmt: skip
    """Do the runs of the study that CONFIG (a YAML file, or the folder of a study) describes, and keep their table.

    A study that was stopped or killed goes on with --resume: runs that are done are not done again, a run that had
    begun goes on where it can. A run that fails is recorded and stops nothing; the exit status is then 1.
    """
    if sum([dry_run, status, export is not None]) > 1:
        raise BadInput("--dry-run, --status and --export each run nothing: give one of them")
    if scheduler is not None and workers is not None:
        raise BadInput("--workers are processes on this machine, and --scheduler has workers of its own: give one")
    if status or export is not None:
        return _look(_folder_of(path, study_dir), export, as_json)
    from hzo_hil.study.planning import plan_study
    from hzo_hil.study.running import run_study
    from hzo_hil.study.studyfile import load_study_file

    given = {"workers": workers, "scheduler": scheduler}
    more = [f"executor.{name}={value}" for name, value in given.items() if value is not None]
    if scheduler is not None:
        more += ["executor.slurm=null", "executor.dask=false"]
    section = load_study_file(path / "study.yaml" if path.is_dir() else path, [*overrides, *more])
    planned = plan_study(section, allow_many=yes)
    if dry_run:
        found: dict[str, Any] = {"name": section.name, "runs": len(planned.runs), "target": section.target}
        click.echo(as_line(found) if as_json else f"{section.name}: {len(planned.runs):,} runs of {section.target}")
        return 0
    place = study_dir or (path if path.is_dir() else FOLDERS / section.name)
    try:
        result = run_study(planned, place, resume=resume, quiet=quiet)
    except KeyboardInterrupt:
        click.echo(
            f"stopped; results are kept. Go on with: hzo-hil study {path} --resume --study-dir {place}", err=True
        )
        raise
    click.echo(as_line(result) if as_json else _text(result))
    return 0 if result["failed"] == result["missing"] == result["begun"] == 0 else 1


def _folder_of(path: Path, study_dir: Path | None) -> Path:
    """The folder of a study, given as such or by its file."""
    if study_dir is not None or path.is_dir():
        return study_dir or path
    from hzo_hil.yamlfile import read_yaml

    return FOLDERS / str(read_yaml(path).get("name"))


def _look(place: Path, export: Path | None, as_json: bool) -> int:
    from hzo_hil.study.folder import StudyFolder

    folder = StudyFolder.open(place)
    if export is not None:
        from hzo_hil.study.export import export_study

        written = export_study(folder.path, export)
        click.echo(as_line({"written": str(written)}) if as_json else f"written: {written}")
        return 0
    from hzo_hil.study.status import status_of

    found = status_of(folder)
    click.echo(as_line(found) if as_json else _text(found))
    return 0


def _text(found: Mapping[str, Any]) -> str:
    states = ", ".join(
        f"{found[name]} {name}" for name in ("done", "failed", "begun", "missing", "corrupt") if found[name]
    )
    lines = [f"{found['runs']} runs: {states or 'none'}"]
    lines += [f"failed: {line}" for line in found.get("errors", [])]
    lines += [f"under way: {line}" for line in found.get("under_way", [])]
    if "seconds" in found:
        lines.append(f"time: {found['seconds']:.1f} s")
    lines.append(f"study folder: {found['study_dir']}")
    return "\n".join(lines)
