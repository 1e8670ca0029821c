"""The command `hzo-hil report`. Only words and options; the work is in `hzo_hil.report`."""

from __future__ import annotations

from pathlib import Path

import click

from hzo_hil.devicecli import JSON, as_line


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write it (default: report/ in PATH; of several, ./report)."
)
@click.option(
    "--keep", type=float, default=0.95, show_default=True,
    help="Thresholds: the share of the noise-free outcome that is to be kept.",
)  # fmt: skip
@JSON
def report(paths: tuple[Path, ...], out: Path | None, keep: float, as_json: bool) -> None:
    """Write what was found in PATH..., run folders or study folders, as a page, figures and tables of numbers.

    index.html stands alone; figures/ holds each figure as PDF, PNG and CSV. Several run folders are compared: those
    that differ in the seed alone are one method. The findings are also printed. Nothing is asked of any device.
    """
    from hzo_hil.report.command import write_report

    written = write_report(paths, out, keep)
    for note in written.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        page = {
            "page": str(written.page),
            "figures": written.figures,
            "findings": written.findings,
            "notes": written.notes,
        }
        click.echo(as_line(page))
        return
    for finding in written.findings:
        click.echo(f"- {finding}")
    click.echo(f"report: {written.page} ({written.figures} figures)")
