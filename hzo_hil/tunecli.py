"""The command `tune`: settings for the methods of a study, by as many trials for each."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hzo_hil.devicecli import JSON, as_line
from hzo_hil.devices.errors import BadInput


@click.command()
@click.argument("path", metavar="STUDY", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field, as `study` does.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials of each method (default: the study's tune.trials).")
@click.option("--workers", type=click.IntRange(min=1), help="Processes on this machine (default: one a core).")
@click.option("--out", type=click.Path(path_type=Path), help="The study to write (default: NAME_tuned.yaml).")
@click.option("--force", is_flag=True, help="Write over an earlier one.")
@JSON
def tune(
    path: Path, overrides: tuple[str, ...], trials: int | None, workers: int | None, out: Path | None, force: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Look for the best settings of each method of STUDY, and write the study that has them.

    Every method named in its section `tune` gets the same number of trials, each with a part of the budget, at a seed
    that is none of the study's.
    """
    import yaml

    from hzo_hil.study.studyfile import load_study_file, plain_study
    from hzo_hil.study.tuning import tuned_study

    section = load_study_file(path, overrides)
    place = out or Path(f"{section.name}_tuned.yaml")
    if place.exists() and not force:
        raise BadInput(f"{place} exists: give another --out, or --force to write over it")
    found, rows = tuned_study(section, trials, lambda text: click.echo(text, err=True), workers or os.cpu_count() or 1)
    place.write_text(yaml.safe_dump(plain_study(found), sort_keys=False), encoding="utf-8")
    if as_json:
        click.echo(as_line({"written": str(place), "methods": rows}))
        return 0
    click.echo(f"written: {place}")
    return 0
