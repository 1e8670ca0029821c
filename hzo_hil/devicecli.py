"""The commands about devices: `serve`, and `device list | new | check | calibrate | fit | keys`.

All but `calibrate` need neither torch nor a GPU.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hzo_hil.devices.errors import ConfigError

if TYPE_CHECKING:
    from hzo_hil.devicesections import DeviceSection

JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, on one line, the last of standard output."
)
SEED = click.option("--seed", default=0, show_default=True, help="Which chip, where the file names none.")
KEYS = click.option(
    "--keys", type=click.Path(path_type=Path), help="Folder made by `device keys`: encrypts and authenticates."
)


@click.command()
@click.argument("source", metavar="CONFIG")
@click.option("--bind", required=True, metavar="URL", help="Where to listen: tcp://127.0.0.1:5555, serial:///dev/ttyX.")
@SEED
@KEYS
@click.option("--allow", type=click.Path(path_type=Path), help="Folder of the public keys let in (default: in --keys).")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without keys: anybody can use the device.")
@click.option(
    "--park-after", default=30.0, show_default=True, metavar="S", help="Park when the host is silent so long."
)
@click.option("--credit", default=16, show_default=True, help="Queries a host may have in flight.")
@click.option("--longest-call", type=float, metavar="S", help="No call takes longer (default: what the device says).")
@click.option(
    "--encoding",
    default="f4",
    type=click.Choice(["f4", "i2", "i1"]),
    show_default=True,
    help="Of numbers on a serial line; i2 and i1 are scaled from the declared ranges.",
)
@click.option("--mtu", default=512, show_default=True, help="Bytes of a frame on a serial line, 64 to 512.")
def serve(
    source: str, bind: str, seed: int, keys: Path | None, allow: Path | None, insecure: bool, park_after: float,
    credit: int, longest_call: float | None, encoding: str, mtu: int,
) -> None:  # fmt: skip
    """Let another process or machine use the device that CONFIG (a YAML file) describes.

    Any device: a simulated chip, your own driver. Stop with Ctrl-C or SIGTERM: the device is parked.
    """
    from hzo_hil.devices.serving import server_for

    log_to_stderr()
    server = server_for(
        _opener(source, seed)(), bind, keys=keys, allow=allow, insecure=insecure, park_after_s=park_after,
        credit=credit, longest_call_s=longest_call, encoding=encoding, mtu=mtu,
    )  # fmt: skip
    server.serve()


@click.group()
def device() -> None:
    """Devices: what there is, drivers of your own, whether one keeps its word."""


@device.command("list")
@JSON
def device_list(as_json: bool) -> None:
    """List simulated kinds with their presets, and installed drivers; a broken driver is listed with its error."""
    from hzo_hil.opening import installed_drivers

    rows = installed_drivers()
    click.echo(as_line(rows) if as_json else "\n".join(f"{r['name']:<14}{r['from']:<14}{r['detail']}" for r in rows))


@device.command("new")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(), help="Where to make it (default: here).")
def device_new(name: str, folder: Path) -> None:
    """Write a working driver package NAME to start from: driver, tests, configuration."""
    from hzo_hil.devices.scaffold import create

    made = create(name, folder)
    click.echo("\n".join(str(path) for path in made))


@device.command("check")
@click.argument("source", metavar="URL_OR_CONFIG")
@SEED
@KEYS
@click.option("--quick", is_flag=True, help="Fewer rows: weaker statistical checks.")
@JSON
def device_check(source: str, seed: int, keys: Path | None, quick: bool, as_json: bool) -> None:
    """Certify a device: does it keep its word, what are its noise, drift, converter steps, range and speed.

    Writes test parameters to it. Exit status 1 where a check fails.
    """
    from tqdm import tqdm

    from hzo_hil.devices.conformance import check

    log_to_stderr()
    with tqdm(bar_format="{desc}", leave=False, disable=None) as line:  # on a terminal only
        report = check(_opener(source, seed, keys), seed=seed, quick=quick, say=line.set_description_str)
    click.echo(as_line(report.as_json()) if as_json else report.table())
    if not report.passed:
        raise click.exceptions.Exit(1)


@device.command("calibrate")
@click.argument("source", metavar="URL_OR_CONFIG")
@SEED
@KEYS
@JSON
def device_calibrate(source: str, seed: int, keys: Path | None, as_json: bool) -> None:
    """Measure what the planner must know of a device: noise, gain, curvature, time, drift, each with a 95 % interval.

    A few hundred queries, at starting values that are written to it. A run with method.plan: auto does this by itself,
    at its own data; nothing is kept here. Warns of gains that make noise, or the target, vanish over many stages.
    """
    from dataclasses import asdict

    from hzo_hil.calibrationtext import calibration_table
    from hzo_hil.modelcalibration import calibrate_device
    from hzo_hil.staging import stages_alone

    log_to_stderr()
    found, spent = calibrate_device(stages_alone(_opener(source, seed, keys)(), seed), seed)
    if as_json:
        click.echo(as_line({**asdict(found), "warnings": found.warnings(), "account": asdict(spent)}))
    else:
        click.echo(calibration_table(found))


@device.command("fit")
@click.argument("config", metavar="CONFIG")
@click.option("--device", "source", required=True, metavar="URL_OR_FILE", help="The device to measure.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The fitted file (default: CONFIG_fitted.yaml, here)."
)
@click.option("--report", type=click.Path(path_type=Path), help="JSON report (default: as --out, ending in .json).")
@click.option("--force", is_flag=True, help="Overwrite both.")
@click.option("--queries", type=int, help="Budget: rows to ask. Intervals narrow as 1/sqrt(N).  [default: 4096]")
@click.option("--seconds", default=0.0, metavar="S", help="Spread them over so long, to see slow drift (default: not).")
@click.option("--only", multiple=True, metavar="NAME", help="Take over this parameter only (may be repeated).")
@click.option("--wander", is_flag=True, help="Also the amplitude of a laser_wander with CONFIG's wander_period_s.")
@SEED
@KEYS
@JSON
def device_fit(
    config: str, source: str, out: Path | None, report: Path | None, force: bool, queries: int | None, seconds: float,
    only: tuple[str, ...], wander: bool, seed: int, keys: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Set the simulator of CONFIG to what a device is measured to be.

    CONFIG is the YAML file of a simulated chip (kind, preset, options, seed) that is right up to its gain, noise,
    converters and drift. Fitted are power, power_drift_std and power_drift_tau_s, noise_std (read_noise_std), for
    intensity detectors bandwidth, in_bits, in_bound, out_bits and out_bound, each with a 95 % interval; what the device
    does not show is named with the reason and left as CONFIG has it. One stage is written; what it held is put back.

    The file written opens as a device, with the intervals as comments; the report has all figures. Exit status 1 where
    queries held back show that the device is not what CONFIG describes.
    """
    from hzo_hil.fit.command import fit_to_files

    log_to_stderr()
    result = fit_to_files(
        config, _described(config), _opener(source, seed, keys), out=out, report=report, force=force, queries=queries,
        seconds=seconds, only=only, wander=wander, seed=seed,
    )  # fmt: skip
    click.echo(as_line(result.report) if as_json else result.text)
    if not result.good:
        raise click.exceptions.Exit(1)


@device.command("keys")
@click.argument("folder", type=click.Path(path_type=Path))
def device_keys(folder: Path) -> None:
    """Make CURVE keys for a device and a host in FOLDER. Private files are readable by you alone."""
    from hzo_hil.devices.keys import make_keys

    made = make_keys(folder)
    click.echo("\n".join(str(path) for path in made))


def _opener(source: str, seed: int, keys: Path | None = None) -> Callable[[], Any]:
    """What opens the device: a URL, a device's file, or a run's file with one device."""
    from hzo_hil.opening import open_device

    section = _described(source)
    if keys is not None:
        section = section.model_copy(update={"keys": keys})
    return lambda: open_device(section, seed)


def _described(source: str) -> DeviceSection:
    """The section of a URL, a device's file, or a run's file with one device."""
    from hzo_hil.opening import device_section
    from hzo_hil.yamlfile import read_yaml

    described: Any = source
    if "://" not in source:
        described = read_yaml(source)
        if "devices" in described:
            devices = described["devices"] or {}
            if len(devices) != 1:
                raise ConfigError(f"{source} describes {len(devices)} devices: give the file of one device")
            described = next(iter(devices.values()))
    return device_section(described)


def as_line(value: Any) -> str:
    """JSON on one line, valid for every reader: what is not finite is null."""
    import json

    from hzo_hil.runfiles import plain

    return json.dumps(plain(value), allow_nan=False)


def log_to_stderr() -> None:
    """What links and servers have to say, with the time, beside the command's own output."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", force=True
    )
