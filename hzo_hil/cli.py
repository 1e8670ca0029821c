"""The command line. Results go to standard output, everything else to standard error.

Exit status: 0 success, 2 bad input, 1 failure, 130 Ctrl-C, 143 SIGTERM. A user's mistake shows a message, never a
traceback.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from hzo_hil import __version__
from hzo_hil.devicecli import JSON, as_line, device, serve
from hzo_hil.devices.errors import BadInput, HzoError
from hzo_hil.interrupts import Terminated, heed_sigterm, status_of
from hzo_hil.reportcli import report
from hzo_hil.studycli import study
from hzo_hil.tunecli import tune

CONFIG = click.argument("config", type=click.Path(path_type=Path))
SET = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field of the configuration (YAML value)."
)
DATA = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder with mnist/, cifar-10/, vowels/ (default: HZO_DATA)."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hzo-hil")
def app() -> None:
    """Train networks whose stages can only be queried: simulated optics, emulators, real devices."""


@app.command()
@CONFIG
@SET
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Where to keep the run (default: runs/<name>-<time>-<hash>)."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --run-dir (without it: the newest unfinished run of CONFIG under runs/).",
)
@click.option("--other-device", is_flag=True, help="Resume on a device of another identity.")
@click.option("--force", is_flag=True, help="Begin anew in a folder that holds an earlier run, which is moved aside.")
@DATA
@click.option("--quiet", is_flag=True, help="No progress; messages and errors are still shown.")
@JSON
def train(
    config: Path, overrides: tuple[str, ...], run_dir: Path | None, resume: bool, other_device: bool, force: bool,
    data_dir: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train as CONFIG (a YAML file) says and print what was reached.

    A run that was stopped, killed or ran out of its budget goes on with --resume: with another `where` or `budget`, but
    not with another network, method, data, seed or device.
    """
    from hzo_hil import tables, train

    loaded = _load(config, overrides, run_dir, data_dir)
    summary = train.run(loaded, resume=resume, other_device=other_device, force=force, quiet=quiet)
    click.echo(as_line(summary) if as_json else tables.table(summary))


@app.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--device", metavar="URL_OR_FILE", help="Measure on another device: its URL, or a YAML file.")
@click.option(
    "--checkpoint", default="last", type=click.Choice(["last", "best"]), help="Which parameters (default: last)."
)
@click.option("--set", "overrides", multiple=True, metavar="WHERE.B=C", help="Override a field of the section where.")
@DATA
@JSON
def evaluate(
    run: Path, device: str | None, checkpoint: str, overrides: tuple[str, ...], data_dir: Path | None, as_json: bool
) -> None:
    """Measure the parameters of the run folder RUN on the test data, on the run's device or another."""
    from hzo_hil.evaluate import evaluate_run

    result = evaluate_run(run, device, overrides, data_dir, checkpoint)
    click.echo(as_line(result) if as_json else "\n".join(f"{k:>16}  {v}" for k, v in result.items()))


@app.command()
@CONFIG
@SET
@DATA
@JSON
def plan(config: Path, overrides: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Show what training as CONFIG says will ask of its devices, asking nothing (method.plan: auto calibrates first).

    Tree, probes, queries, calls, writes and device time. Counts are exact for a step and for the first epoch;
    evaluation and looking after the device (health) are not in them.
    """
    from hzo_hil import tables
    from hzo_hil.preview import preview

    found = preview(_load(config, overrides, None, data_dir))
    click.echo(as_line(found) if as_json else tables.plan_table(found))


app.add_command(serve)
app.add_command(device)
app.add_command(study)
app.add_command(report)
app.add_command(tune)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration: every field with its bounds and meaning."""
    from hzo_hil.config import schema as config_schema

    click.echo(json.dumps(config_schema(), indent=2))


def _load(config: Path, overrides: tuple[str, ...], run_dir: Path | None = None, data_dir: Path | None = None) -> Any:
    from hzo_hil.config import load_config

    loaded = load_config(config, overrides)
    given = {k: v for k, v in {"run_dir": run_dir, "data_dir": data_dir}.items() if v is not None}
    return loaded.model_copy(update={"where": loaded.where.model_copy(update=given)})


def main(arguments: list[str] | None = None) -> None:
    heed_sigterm()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    try:
        status = app.main(arguments, prog_name="hzo-hil", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.exceptions.Abort) as error:
        cause = error.__cause__ or error  # click raises Abort from it
        click.echo("terminated" if isinstance(cause, Terminated) else "interrupted", err=True)
        return status_of(cause)
    except BadInput as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except HzoError as error:
        click.echo(f"failed: {error}", err=True)
        return 1
    # A command that ends with another status is returned by click here.
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
