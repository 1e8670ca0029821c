"""`hzo-hil device fit`: what it finds of devices of known parameters, what it says it cannot find, what it refuses.

Parameters are compared with their stated 95 % intervals at fixed seeds; how often these hold is what
`benchmarks/fit.py` measures.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hzo_hil.devices.api import Reply
from hzo_hil.devices.errors import BadReply, CapabilityError, DeviceError
from hzo_hil.devices.server import Server
from hzo_hil.fit import Fit, fit_device
from hzo_hil.fit.design import DEFAULT_QUERIES
from hzo_hil.opening import device_section, open_device

ROOT = Path(__file__).resolve().parents[2]
Fields = dict[str, Any]
CHIP: Fields = {"kind": "emulator", "options": {"widths": [6, 8], "activation": "none"}}
TRUTH: Fields = {"read_noise_std": 0.02, "in_bits": 6, "in_bound": 0.9, "out_bits": 8, "out_bound": 2.2}
MESH: Fields = {"kind": "onn", "preset": "calibrated_chip", "options": {"layers": 1, "ports": 8, "activation": "tanh"}}


def like(chip: Fields, *, options: Fields | None = None, **fields: Any) -> Fields:
    """The chip with more options and fields."""
    return {**chip, "options": {**chip["options"], **(options or {})}, **fields}


def fitted(config: Fields, device: Any, **more: Any) -> Fit:
    opened = open_device(device, seed=5) if isinstance(device, dict) else device
    return fit_device(device_section(config), opened, **({"seed": 5, "queries": 1024} | more))


def estimates(fit: Fit) -> dict[str, Any]:
    return {f.name: f.estimate for f in fit.findings}


def assert_holds(fit: Fit, **truth: float) -> None:
    found = estimates(fit)
    for name, value in truth.items():
        assert found[name] is not None, f"{name} was not identified"
        assert found[name].low <= value <= found[name].high, (name, value, found[name])


class Wrapped:
    """A sound device that answers otherwise (`spoil`), or declares otherwise."""

    def __init__(self, inner: Any, boundaries: Fields | None = None, **declared: Any) -> None:
        self.inner, self.boundaries, self.declared = inner, boundaries or {}, declared
        self.asked = 0

    @property
    def capabilities(self) -> Any:
        caps = self.inner.capabilities
        said = tuple(replace(b, **self.boundaries) for b in caps.boundaries)
        return replace(caps, boundaries=said, **self.declared)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, segment: Any, inputs: Any, **options: Any) -> Reply:
        self.asked += len(inputs)
        return Reply(self.spoil(self.inner.run(segment, inputs, **options).outputs))

    def spoil(self, outputs: Any) -> Any:
        return outputs


# --- what is found -------------------------------------------------------------------------------------------------


def test_gain_noise_and_both_converters() -> None:
    fit = fitted(CHIP, like(CHIP, options=TRUTH, power=1.3))
    assert_holds(fit, power=1.3, in_step=0.9 / 31, out_step=2.2 / 127, **TRUTH)
    assert fit.good
    found = estimates(fit)
    assert (found["in_bits"].value, found["out_bits"].value) == (6, 8)
    for name, width in (("power", 0.01), ("read_noise_std", 0.1), ("in_bound", 0.001), ("out_bound", 0.01)):
        assert (found[name].high - found[name].low) / found[name].value < width, name


def test_more_queries_narrow_the_intervals() -> None:
    few, many = (fitted(CHIP, like(CHIP, options=TRUTH), queries=n) for n in (512, 8192))
    for name in ("power", "read_noise_std", "out_bound"):
        widths = [e.high - e.low for e in (estimates(few)[name], estimates(many)[name])]
        assert widths[1] < 0.5 * widths[0], name


def test_declared_steps_and_ranges_are_measured_not_believed() -> None:
    device = open_device(like(CHIP, options=TRUTH), seed=5)
    nothing = {"low": -math.inf, "high": math.inf, "out_low": -math.inf, "out_high": math.inf}
    wrong = {"in_step": 0.05, "out_step": 0.1}
    assert_holds(fitted(CHIP, Wrapped(device, wrong)), **TRUTH)
    start = like(CHIP, options={"in_bits": 4, "in_bound": 0.8, "out_bits": 4, "out_bound": 3.0})
    assert_holds(fitted(start, Wrapped(device, nothing | {"in_step": 0.0, "out_step": 0.0})), **TRUTH)


def test_a_mesh_without_converters() -> None:
    fit = fitted(MESH, like(MESH, options={"noise_std": 0.012}, power=0.8))
    assert_holds(fit, power=0.8, noise_std=0.012)
    found = {f.name: f for f in fit.findings}
    assert found["out_bits"].estimate is not None and found["out_bits"].estimate.value == 0
    assert "no end was seen" in found["out_bound"].reason
    assert "no step above" in found["in_bits"].reason and found["in_bits"].setting == 0
    assert "the device's declared time does not pass" in found["power_drift_tau_s"].reason
    assert "besides the 0.00145 that CONFIG's other options give" in found["noise_std"].note


def test_noise_that_follows_the_intensity() -> None:
    chip = like(MESH, preset="ideal", options={"detection": "intensity", "load": 166.0})
    fit = fitted(chip, like(chip, options={"noise_std": 1e-3, "bandwidth": 4e10}), queries=2048)
    assert_holds(fit, power=1.0, noise_std=1e-3, bandwidth=4e10)
    low, high = estimates(fit)["bandwidth"].low, estimates(fit)["bandwidth"].high
    assert 2e10 < low and high < 6e10


def test_drift_of_the_power() -> None:
    chip = like(MESH, query_s=0.04)
    fit = fitted(
        chip, like(chip, options={"noise_std": 0.005}, power_drift_std=0.03, power_drift_tau_s=1.0), queries=2048
    )
    assert_holds(fit, power=1.0, noise_std=0.005, power_drift_std=0.03, power_drift_tau_s=1.0)
    assert estimates(fit)["power_drift_std"].low > 0.015
    assert fit.watched_s == pytest.approx(2048 * 0.04, rel=0.01)


def test_drift_under_converters_stretches_no_step() -> None:
    chip = like(CHIP, query_s=0.04)
    device = like(chip, options=TRUTH, power_drift_std=0.03, power_drift_tau_s=1.0)
    assert_holds(fitted(chip, device, queries=2048), power_drift_std=0.03, power_drift_tau_s=1.0, **TRUTH)


def test_no_drift_is_bounded_from_above_and_a_slow_one_says_so() -> None:
    still = fitted(MESH, like(MESH, options={"noise_std": 0.005}, query_s=0.04))
    found = {f.name: f for f in still.findings}
    assert found["power_drift_std"].setting == 0 and 0 < found["power_drift_std"].estimate.high < 0.01  # type: ignore[union-attr]
    assert "no drift seen" in found["power_drift_tau_s"].reason
    slow = like(MESH, query_s=0.04, power_drift_std=0.03, power_drift_tau_s=200.0)
    found = {f.name: f for f in fitted(MESH, slow).findings}
    assert found["power_drift_tau_s"].estimate.high == math.inf  # type: ignore[union-attr]
    assert "drift may be larger and slower" in found["power_drift_tau_s"].note


def test_a_lasers_wander_where_it_is_asked_for() -> None:
    chip = like(MESH, query_s=0.04, wander_period_s=9.0)
    fit = fitted(chip, like(chip, options={"noise_std": 0.005}, laser_wander=0.06), wander=True)
    assert_holds(fit, power=1.0, laser_wander=0.06)
    assert "laser_wander" not in estimates(fitted(chip, chip))


def test_intervals_end_where_the_data_do() -> None:
    """An exact device: nothing to see but its gain."""
    fit = fitted(CHIP, like(CHIP, power=1.7))
    assert_holds(fit, power=1.7, read_noise_std=0.0, in_step=0.0)
    assert fit.good and estimates(fit)["read_noise_std"].high < 1e-4


@pytest.mark.parametrize(
    ("chip", "noise"),
    [
        ({"kind": "ring_bank", "options": {"widths": [6, 8], "activation": "none", "in_bound": 1.0}}, "noise_std"),
        ({"kind": "crossbar", "preset": "pcm", "options": {"widths": [8, 6], "activation": "none"}}, "noise_std"),
        ({"kind": "tensor_core", "options": {"widths": [12, 6], "activation": "none", "core": 4}}, "noise_std"),
        ({"kind": "svd_onn", "options": {"widths": [6, 6], "activation": "none"}}, "noise_std"),
        ({"kind": "emulator", "options": {"widths": [6, 8], "activation": "none", "signed": False, "bias": False}},
         "read_noise_std"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_every_kind_of_chip_with_a_linear_stage(chip: Fields, noise: str) -> None:
    fit = fitted(
        chip,
        like(chip, options={noise: 0.02, "in_bits": 6, "in_bound": 1.0, "out_bits": 9, "out_bound": 2.0}, power=1.2),
    )
    signed = device_section(chip).kind not in ("ring_bank",) and chip["options"].get("signed", True)
    assert_holds(
        fit, power=1.2, in_bits=6, in_bound=1.0, out_step=2.0 / (255 if chip["options"].get("signed", True) else 511)
    )
    assert_holds(fit, in_step=1.0 / (31 if signed else 63), **{noise: 0.02})
    assert fit.good


def test_the_clock_of_the_host_where_time_is_not_declared() -> None:
    device = Wrapped(open_device(like(CHIP, options=TRUTH), seed=5), keyed=False, virtual_time=False)
    fit = fitted(CHIP, device, seconds=0.3, queries=512)
    assert 0.25 < fit.watched_s < 5
    assert_holds(fit, power=1.0, in_bits=6, out_bits=8)


# --- how it asks ---------------------------------------------------------------------------------------------------


def test_every_query_is_counted_and_the_budget_is_kept() -> None:
    device = Wrapped(
        open_device(like(CHIP, options=TRUTH, max_batch=7, latency_s=0.1, query_s=0.01, settling_s=2.0), seed=5)
    )
    spent = fitted(CHIP, device, queries=500).ledger
    account = spent.accounts["calibration"]
    assert account.queries == device.asked == 500 == spent.total.queries
    assert account.stage_evaluations == 500 and account.writes == 1 and account.calls >= 500 / 7
    assert account.device_seconds == pytest.approx(0.1 * account.calls + 5.0 + 2.0)


def test_what_the_stage_held_is_put_back() -> None:
    device = open_device(like(CHIP, options=TRUTH), seed=5)
    rng = np.random.default_rng(1)
    held = {"weight": rng.standard_normal((8, 6)).astype(np.float32), "bias": np.ones(8, np.float32)}
    device.write(0, held)
    fitted(CHIP, device, queries=300)
    assert all(np.array_equal(device.read(0)[name], value) for name, value in held.items())


def test_the_same_seed_gives_the_same_fit() -> None:
    a, b = (fitted(CHIP, like(CHIP, options=TRUTH), queries=300) for _ in range(2))
    assert [f.estimate for f in a.findings] == [f.estimate for f in b.findings]


@contextmanager
def served(device: Any) -> Iterator[str]:
    server, stop = Server(device, "tcp://127.0.0.1:0"), threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
    thread.start()
    try:
        yield "zmq+" + server.url.removeprefix("zmq+")
    finally:
        stop.set()
        thread.join(20)


def test_a_served_device_is_fitted_as_the_device_itself() -> None:
    """Over a socket, drift and all: keys and declared time travel."""
    described = like(CHIP, options=TRUTH, power=0.9, query_s=0.04, power_drift_std=0.02, power_drift_tau_s=1.0)
    local = fitted(CHIP, described)
    with served(open_device(described, seed=5)) as url:
        remote = fitted(CHIP, open_device(url))
    assert [f.estimate for f in remote.findings] == [f.estimate for f in local.findings]
    assert_holds(remote, power=0.9, power_drift_std=0.02, **TRUTH)


# --- bad fits ------------------------------------------------------------------------------------------------------


class Lifted(Wrapped):
    def spoil(self, outputs: Any) -> Any:
        return outputs + np.float32(0.05)


class Bent(Wrapped):
    def spoil(self, outputs: Any) -> Any:
        return np.tanh(outputs)


class Broken(Wrapped):
    def spoil(self, outputs: Any) -> Any:
        return outputs * np.float32(np.nan)


class Dark(Wrapped):
    def spoil(self, outputs: Any) -> Any:
        return 0 * outputs


def test_a_device_that_is_not_what_config_says_is_a_bad_fit() -> None:
    """At a false-alarm rate of 1 in 1000 for a sound one, and far beyond."""
    noisy = like(CHIP, options={"read_noise_std": 0.01})
    for make, wrong in ((Lifted, "mean of dark answers"), (Bent, "bright answers")):
        fit = fitted(CHIP, make(open_device(noisy, seed=5)))
        assert not fit.good and wrong in {v.name for v in fit.verdicts if not v.ok}
    other = fitted(like(MESH, seed=1), like(MESH, seed=2))
    assert not other.good and min(v.probability for v in other.verdicts) < 1e-20


def test_a_device_that_does_not_answer_is_told_at_once() -> None:
    device = open_device(like(CHIP, options=TRUTH), seed=5)
    with pytest.raises(DeviceError, match="bright and dark answers do not differ"):
        fitted(CHIP, Dark(device))
    with pytest.raises(BadReply, match="64 rows were answered by .* 512 values NaN or infinite"):
        fitted(CHIP, Broken(device))
    harsh = like(MESH, preset="l2ight_chip")
    lost = Wrapped(open_device(like(harsh, seed=2), seed=5))
    with pytest.raises(DeviceError, match="explains .* of the answers: it is another chip"):
        fitted(like(harsh, seed=1), lost)
    assert lost.asked == 64
    with pytest.raises(DeviceError, match="answers take 3 values only: a read-out so coarse cannot be fitted"):
        fitted(CHIP, like(CHIP, options={"out_bits": 2, "out_bound": 1.0}))


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    made = {"config": CHIP, "device": like(CHIP, options=TRUTH, power=1.3, seed=5), "other": {**MESH}}
    for name, fields in made.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return {name: tmp_path / f"{name}.yaml" for name in made} | {"folder": tmp_path}


def test_the_command_writes_a_device_and_a_report(hzo: Any, files: dict[str, Path]) -> None:
    done = hzo("device", "fit", files["config"], "--device", files["device"], "--queries", 1024)
    assert done.status == 0, done.err
    assert "1,024 queries" in done.out and "purpose calibration" in done.out and "as it should" in done.out
    text = (files["folder"] / "config_fitted.yaml").read_text(encoding="utf-8")
    assert re.search(r"# \[1\.2\d*, 1\.3\d*\] \(CONFIG: 1\).*\npower: 1\.[23]", text)
    report = json.loads((files["folder"] / "config_fitted.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in report["parameters"]}
    assert rows["power"]["low"] < 1.3 < rows["power"]["high"] and rows["power"]["config"] == 1.0
    assert rows["power_drift_std"]["identified"] is False and rows["power_drift_std"]["reason"]
    assert (report["queries"], report["purpose"], report["good"]) == (1024, "calibration", True)
    again = fitted(yaml.safe_load(text), open_device(files["folder"] / "config_fitted.yaml"))
    assert_holds(again, power=rows["power"]["setting"], in_bits=6, out_bits=8)


def test_json_on_one_line(hzo: Any, files: dict[str, Path]) -> None:
    out = files["folder"] / "a.yaml"
    done = hzo("device", "fit", files["config"], "--device", files["device"], "--queries", 300, "-o", out, "--json")
    assert done.status == 0 and len(done.out.splitlines()) == 1
    assert done.json["queries"] == 300 and done.json["out"] == str(out)


def test_nothing_is_overwritten_without_force(hzo: Any, files: dict[str, Path]) -> None:
    out = files["folder"] / "mine.yaml"
    out.write_text("kept", encoding="utf-8")
    ask = ("device", "fit", files["config"], "--device", files["device"], "--queries", 300, "--out", out)
    found = hzo(*ask)
    assert found.status == 2 and "mine.yaml exists: --force overwrites it" in found.err
    assert out.read_text(encoding="utf-8") == "kept" and not out.with_suffix(".json").exists()
    assert hzo(*ask, "--force").status == 0
    assert "power:" in out.read_text(encoding="utf-8")


def test_only_what_is_asked_for_is_taken_over(hzo: Any, files: dict[str, Path]) -> None:
    ask = ("device", "fit", files["config"], "--device", files["device"], "--queries", 300, "-o", "only.yaml")
    assert hzo(*ask, "--only", "power", "--only", "in_bits").status == 0
    fields = yaml.safe_load((files["folder"] / "only.yaml").read_text(encoding="utf-8"))
    assert set(fields["options"]) == {"widths", "activation", "in_bits"} and fields["power"] != 1
    assert open_device(fields | {"options": fields["options"] | {"in_bound": 1.0}}).capabilities


def test_a_drift_measured_on_the_hosts_clock_gives_a_file_that_opens(hzo: Any, files: dict[str, Path]) -> None:
    """A simulated power drifts with the device's work, so that queries must take time there."""
    drifting = like(CHIP, options=TRUTH, query_s=0.04, power_drift_std=0.05, power_drift_tau_s=1.0)
    (files["folder"] / "drifting.yaml").write_text(yaml.safe_dump(drifting), encoding="utf-8")
    done = hzo("device", "fit", files["config"], "--device", "drifting.yaml", "--queries", 1024, "-o", "new.yaml")
    assert done.status == 0, done.out + done.err
    fields = yaml.safe_load((files["folder"] / "new.yaml").read_text(encoding="utf-8"))
    assert fields["power_drift_std"] > 0 and fields["query_s"] == pytest.approx(0.04, rel=0.05)
    assert open_device(files["folder"] / "new.yaml").capabilities.query_s == fields["query_s"]


def test_a_bad_fit_says_so_and_is_status_1(hzo: Any, files: dict[str, Path]) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        (files["folder"] / f"{name}.yaml").write_text(yaml.safe_dump(like(MESH, seed=seed)), encoding="utf-8")
    done = hzo("device", "fit", "one.yaml", "--device", "two.yaml", "--queries", 300)
    assert done.status == 1
    assert "BAD FIT: bright answers are not those of CONFIG's chip" in done.out and "NOT AS IT SHOULD" in done.out
    assert "BAD FIT" in (files["folder"] / "one_fitted.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("CONFIG", "--device", "OTHER"), "6 inputs and 8 outputs in CONFIG, 8 and 8 on the device"),
        (("CONFIG", "--device", "DEVICE", "--queries", "100"), "100 queries is too small: fitting needs at least 256"),
        (("CONFIG", "--device", "DEVICE", "--only", "gain"), "nothing called 'gain' is fitted; choose from power, "),
        (("CONFIG", "--device", "DEVICE", "--seconds", "5"), "passes only with work: raise --queries"),
        (("CONFIG", "--device", "DEVICE", "--seconds", "-5"), "--seconds is 0"),
        (("CONFIG", "--device", "DEVICE", "-o", "nowhere/a.yaml"), "its folder is not there"),
        (("CONFIG", "--device", "DEVICE", "-o", "a.json"), "would hold both the configuration and the report"),
        (("CONFIG", "--device", "nobody.yaml"), "cannot read configuration nobody.yaml"),
        (("zmq+tcp://127.0.0.1:9", "--device", "DEVICE"), "describes no simulated chip"),
        (("CONFIG",), "Missing option '--device'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_a_query_is_asked(
    arguments: tuple[str, ...], words: str, hzo: Any, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a device was asked")

    for name in ("run", "write"):
        monkeypatch.setattr(f"hzo_hil.devices.simulated.SimulatedDevice.{name}", refuse)
    places = {"CONFIG": files["config"], "DEVICE": files["device"], "OTHER": files["other"]}
    found = hzo("device", "fit", *(places.get(a, a) for a in arguments))
    assert found.status == 2 and words in found.err, found.err
    assert {p.suffix for p in files["folder"].iterdir()} == {".yaml"} and len(list(files["folder"].iterdir())) == 3


@pytest.mark.parametrize(
    ("config", "device", "words"),
    [
        (like(MESH, options={"layers": 2}), MESH, "CONFIG has 3 stages, device 'onn-calibrated_chip-5' has 1 (mesh1)"),
        (like(CHIP, options={"widths": [6, 7]}), CHIP, "6 inputs and 7 outputs in CONFIG, 6 and 8 on the device"),
        (like(CHIP, options={"bias": False}), CHIP, "stage 0 ('linear1' in CONFIG, 'linear1' of device"),
        (like(MESH, options={"layers": 2}), like(MESH, options={"layers": 2}, inner_boundaries=False),
         "stage 0 ('mesh1'): boundary 1 behind it cannot be read"),
        (like(CHIP, options={"last_activation": True, "activation": "tanh"}),
         like(CHIP, options={"last_activation": True, "activation": "tanh"}),
         "its converter and noise lie before the activation 'tanh'"),
        (like(CHIP, options={"accumulate_format": "fp16"}), CHIP, "accumulate_format 'fp16' rounds numbers on the way"),
    ],
)  # fmt: skip
def test_shapes_and_boundaries_that_do_not_fit_are_named(config: Fields, device: Fields, words: str) -> None:
    asked = Wrapped(open_device(device, seed=5))
    with pytest.raises(CapabilityError) as error:
        fitted(config, asked)
    assert words in str(error.value) and asked.asked == 0


def test_help_names_every_parameter_and_option(hzo: Any) -> None:
    text = " ".join(hzo("device", "fit", "--help").out.split())
    options = (
        "--device",
        "--out",
        "--report",
        "--force",
        "--queries",
        "--seconds",
        "--only",
        "--wander",
        "--seed",
        "--keys",
    )
    names = (
        "power_drift_std",
        "power_drift_tau_s",
        "noise_std",
        "read_noise_std",
        "bandwidth",
        "in_bits",
        "in_bound",
        "out_bits",
        "out_bound",
    )
    assert all(word in text for word in options + names)
    assert f"[default: {DEFAULT_QUERIES}]" in text


def test_fitting_needs_no_torch(run_python: Any, files: dict[str, Path]) -> None:
    """A lab PC without it fits its own device."""
    ask = ["device", "fit", str(files["config"]), "--device", str(files["device"]), "--queries", "300", "-o", "x.yaml"]
    # Not as `without`: scipy takes a None among the modules for a torch that is there.
    code = (
        "import importlib.abc, sys\n"
        "class Without(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ImportError('no torch here')\n"
        f"sys.meta_path.insert(0, Without()); sys.path.insert(0, {str(ROOT)!r})\n"
        f"from hzo_hil import cli; cli.main({ask!r})\n"
    )
    done = run_python(code, cwd=files["folder"])
    assert done.returncode == 0, done.stderr
    assert (files["folder"] / "x.yaml").exists()
