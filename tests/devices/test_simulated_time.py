"""Device time of a simulated chip: what drifts follows the work done, never how it was cut into calls.

And what it is computed with: the same answers from every engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Segment
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.devices.recorded import Recorder
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators.chip import build
from hzo_hil.simulators.drift import LaserWander, Wander
from hzo_hil.simulators.light import Light
from hzo_hil.simulators.stages import Elementwise, EmulatedLinear, Parameter, Port, StageModel
from tests.simulators import seed_parts

WIDTH = 3
ONE, BOTH = Segment(0, 1), Segment(0, 2)


@dataclass
class Drifting(StageModel):
    """inputs * level * (1 + drift); notes at which times its state was asked for."""

    name: str = "drifting"
    drifts: bool = True
    drifts_from_write: bool = False
    asked: list[float] = field(default_factory=list)

    in_width = out_width = WIDTH
    parameters = (Parameter("level", (WIDTH,)),)

    def initial(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"level": np.ones(WIDTH)}

    def program(self, values: Any, key: int) -> Any:
        return values["level"]

    def at(self, state: Any, seconds: float) -> Any:
        self.asked.append(seconds)
        return state * (1 + Wander("ou", 0.3, 1.0).values(0, 0, 0, WIDTH, seconds))

    def run(self, state: Any, inputs: Any, keys: Any) -> Any:
        return inputs * state.astype(inputs.dtype)

    def ideal(self, xp: Any, values: Any, inputs: Any) -> Any:
        return inputs * values["level"]


def drifting(**options: Any) -> SimulatedDevice:
    """Two stages that drift, under a light that does, 10 ms a stage evaluation: a step of time is 5 rows."""
    light = {"laser_wander": 0.1, "wander_period_s": 3.0, "power_drift_std": 0.1, "power_drift_tau_s": 0.5}
    models = [Drifting(), Elementwise(WIDTH, "tanh"), Drifting()]
    device = SimulatedDevice(models, query_s=0.01, settling_s=0.25, **{**light, **options})
    for stage in (0, 2):
        device.write(stage, {"level": np.full(WIDTH, 1.5)}, key=stage)
    return device


def identity(stages: int = 1, **options: Any) -> SimulatedDevice:
    return SimulatedDevice([Elementwise(WIDTH, "identity") for _ in range(stages)], **options)


def rows(count: int = 60, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(3).uniform(-1, 1, (count, WIDTH)).astype(dtype)


def keys(count: int = 60) -> Any:
    return np.arange(500, 500 + count, dtype=np.uint64)


# --- the clock counts work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("repeats", [1, 3])
def test_answers_do_not_depend_on_how_a_batch_is_split(size, repeats):
    whole, split = drifting(), drifting(latency_s=0.5)
    segment = Segment(0, 3)
    expected = whole.run(segment, rows(), taps=(1, 2), repeats=repeats, keys=keys())
    found = [
        split.run(segment, rows()[i : i + size], taps=(1, 2), repeats=repeats, keys=keys()[i : i + size])
        for i in range(0, 60, size)
    ]
    assert np.array_equal(np.concatenate([f.outputs for f in found]), expected.outputs)
    for boundary in (1, 2):
        assert np.array_equal(np.concatenate([f.taps[boundary] for f in found]), expected.taps[boundary])
    assert split.virtual_clock == whole.virtual_clock
    assert np.ptp(expected.outputs / rows(), axis=0).min() > 0.05  # it did drift meanwhile


@pytest.mark.parametrize("kind", seed_parts.SHAPES)
def test_no_kind_of_chip_depends_on_how_a_batch_is_split(kind):
    """With all its noise: to rounding, which a matrix product in parts differs by."""

    def chip() -> SimulatedDevice:
        options = {**seed_parts.SHAPES[kind], **seed_parts.NOISE[kind]}
        device = SimulatedDevice(build(kind, **options), query_s=0.02, settling_s=1.0, power_drift_std=0.1)
        for stage, model in enumerate(device.models):
            if model.parameters:
                device.write(stage, model.initial(np.random.default_rng(stage)), key=stage)
        return device

    whole, ones, sevens = chip(), chip(), chip()
    every = Segment(0, len(whole.models))
    inputs = np.random.default_rng(0).uniform(0, 1, (28, whole.capabilities.width(0))).astype(np.float32)
    expected = whole.run(every, inputs, keys=keys(28)).outputs
    for device, size in ((ones, 1), (sevens, 7)):
        parts = [device.run(every, inputs[i : i + size], keys=keys(28)[i : i + size]) for i in range(0, 28, size)]
        found = np.concatenate([part.outputs for part in parts])
        assert np.allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_row_is_as_late_as_the_work_before_it():
    device = identity(2, laser_wander=0.2, wander_period_s=2.0, query_s=0.01, settling_s=0.3, latency_s=9.0)
    device.write(0, {})
    device.write(1, {})
    device.run(ONE, np.ones((5, WIDTH), np.float32))
    found = device.run(BOTH, np.ones((40, WIDTH), np.float32)).outputs
    times = 2 * 0.3 + 5 * 0.01 + np.arange(40) * 2 * 0.01
    power = 1 + LaserWander(0.2, 2.0).gain(times) - 1
    assert np.allclose(found, np.tile(power**2, (WIDTH, 1)).T, rtol=1e-6)


def test_every_repeat_has_its_own_time():
    device = identity(laser_wander=0.2, wander_period_s=1.0, query_s=0.02)
    found = device.run(ONE, np.ones((20, WIDTH), np.float32), repeats=8).outputs
    power = LaserWander(0.2, 1.0).gain(np.arange(160) * 0.02).reshape(20, 8).mean(axis=1)
    assert np.allclose(found[:, 0], power, rtol=1e-6)


def test_power_drifts_as_its_law_says():
    device = identity(power=0.7, power_drift_std=0.2, power_drift_tau_s=3.0, query_s=0.01, seed=4)
    found = device.run(ONE, np.ones((500, WIDTH), np.float32)).outputs[:, 0]
    light = Light(0.7, drift_std=0.2, drift_tau_s=3.0, seed=4)
    assert np.allclose(found, light.gains(np.arange(500) * 0.01), rtol=1e-6)
    assert len(np.unique(found)) == 167  # steps of a hundredth of 3 s: 3 rows each
    again = identity(power=0.7, power_drift_std=0.2, power_drift_tau_s=3.0, query_s=0.01, seed=5)
    assert not np.allclose(again.run(ONE, np.ones((500, WIDTH), np.float32)).outputs[:, 0], found, rtol=1e-3)


def test_light_never_turns_dark_side_up():
    found = Light(drift_std=5.0, drift_tau_s=1.0).gains(np.arange(200) * 1.0)
    assert found.min() == 0.0
    assert found.max() > 2


def test_models_that_drift_are_asked_once_a_step():
    device = drifting()
    model = device.models[0]
    device.run(ONE, rows(25), keys=keys(25))  # from 0.50 s to 0.74 s
    device.run(ONE, rows(25), keys=keys(25))  # to 0.99 s
    assert np.allclose(model.asked, [0.5, 0.6, 0.7, 0.8, 0.9])
    device.write(0, {"level": np.ones(WIDTH)})
    device.run(ONE, rows(1), keys=keys(1))
    assert np.allclose(model.asked[5:], [1.2])


def test_a_drift_that_begins_with_each_write_gets_the_time_since():
    model = Drifting(drifts_from_write=True)
    device = SimulatedDevice([model], query_s=0.1, settling_s=1.0)
    for _ in range(2):
        device.write(0, model.initial(np.random.default_rng(0)))
        device.run(ONE, rows(3), keys=keys(3))
    assert np.allclose(model.asked, [0, 0.1, 0.2] * 2)


def test_models_that_do_not_drift_are_never_asked():
    still = Drifting(drifts=False)
    device = SimulatedDevice([still, Drifting()], query_s=1.0, laser_wander=0.1)
    device.write(0, {"level": np.ones(WIDTH)})
    device.write(1, {"level": np.ones(WIDTH)})
    device.run(BOTH, rows(), keys=keys())
    assert not still.asked
    assert len(device.models[1].asked) == 60


def test_no_rows_are_no_work():
    device = drifting()
    before = device.virtual_clock
    assert device.run(Segment(0, 3), rows(0), taps=(1,), keys=keys(0)).outputs.shape == (0, WIDTH)
    assert device.virtual_clock == before


def test_what_was_refused_took_no_time():
    device = drifting()
    before = device.virtual_clock
    with pytest.raises(BadInput):
        device.run(ONE, rows().astype(np.float64))
    with pytest.raises(BadInput):
        device.write(0, {"level": np.ones(1)})
    assert device.virtual_clock == before


# --- the clock can be kept and set -------------------------------------------------------------------------------


def test_a_device_goes_on_from_a_clock_that_was_kept():
    first = drifting()
    first.run(Segment(0, 3), rows(), keys=keys())
    kept = json.loads(json.dumps(first.virtual_clock))
    assert kept == {"evaluations": 180, "writes": 2, "written": {"0": [0, 1, 0], "2": [0, 2, 2]}}
    second = drifting()
    second.virtual_clock = kept
    assert np.array_equal(*(d.run(Segment(0, 3), rows(), keys=keys()).outputs for d in (first, second)))


def test_only_a_write_that_the_kept_clock_knows_takes_no_time_again():
    kept = drifting().virtual_clock
    device = SimulatedDevice([Drifting(), Elementwise(WIDTH, "tanh"), Drifting()], query_s=0.01, settling_s=0.25)
    device.virtual_clock = kept
    level = {"level": np.full(WIDTH, 1.5)}
    device.write(0, level, key=0)
    assert device.virtual_clock == kept
    device.write(2, level, key=3)  # another write than the one before the clock was kept
    device.write(0, level, key=0)  # the second here is a write of its own
    assert device.virtual_clock["writes"] == kept["writes"] + 2


def test_a_device_that_does_not_drift_has_no_clock():
    assert SimulatedDevice(build("onn", "calibrated_chip", layers=1, ports=4), query_s=1.0).virtual_clock is None
    assert not hasattr(RemoteDevice, "virtual_clock")  # a server's clock is its own


def test_a_recorder_shows_the_clock_of_its_device(tmp_path):
    device = drifting()
    recorder = Recorder(device, tmp_path / "session.rec")
    kept = device.virtual_clock
    assert recorder.virtual_clock == kept
    device.run(ONE, rows(), keys=keys())
    recorder.virtual_clock = kept
    assert device.virtual_clock == kept


@pytest.mark.parametrize(
    "state",
    [
        {}, None, {"evaluations": 1.5, "writes": 0, "written": {}}, {"evaluations": -1, "writes": 0, "written": {}},
        {"evaluations": 1, "writes": 0, "written": {"a": [0, 0, 0]}},
        {"evaluations": 1, "writes": 0, "written": {"0": [0]*4}},
    ],
)  # fmt: skip
def test_what_is_no_clock_is_refused_and_changes_nothing(state):
    device = drifting()
    before = device.virtual_clock
    with pytest.raises(BadInput, match="is no state of a device's clock .*: take it from virtual_clock"):
        device.virtual_clock = state
    assert device.virtual_clock == before


# --- power -------------------------------------------------------------------------------------------------------


def test_every_stage_s_answer_is_multiplied_by_the_power():
    device = identity(3, power=0.5)
    reply = device.run(Segment(0, 3), rows(), taps=(1, 2))
    assert np.array_equal(reply.taps[1], rows() / 2)
    assert np.array_equal(reply.taps[2], rows() / 4)
    assert np.array_equal(reply.outputs, rows() / 8)


def test_what_is_declared_stays_true_at_another_power():
    """Read noise of 6,000 values, |z| < 5: false alarm 6e-7."""
    models = [EmulatedLinear(WIDTH, WIDTH, read_noise_std=0.2, out_bits=6, out_bound=2.0, bias=False)]
    device = SimulatedDevice(models, power=0.4, dtype="float64")
    device.write(0, {"weight": np.eye(WIDTH) * 3})
    assert device.capabilities.read_noise == pytest.approx(0.08)
    boundary = device.capabilities.boundaries[1]
    found = device.run(ONE, np.linspace(-1, 1, 3000)[:, None] * np.ones(WIDTH)).outputs
    assert (boundary.out_low, boundary.out_high) == (found.min(), found.max()) == pytest.approx((-0.8, 0.8))
    assert np.allclose(found / boundary.out_step, np.rint(found / boundary.out_step), atol=1e-9)
    free = SimulatedDevice([EmulatedLinear(WIDTH, WIDTH, read_noise_std=0.2, bias=False)], power=0.4)
    free.write(0, {"weight": np.zeros((WIDTH, WIDTH))})
    dark = free.run(ONE, rows(2000)).outputs
    assert abs(dark.var() / free.capabilities.read_noise**2 - 1) * 3000**0.5 < 5


def test_inputs_are_declared_as_the_models_take_them():
    models = [Elementwise(WIDTH, input=Port(-1, 1, 0.5), output=Port(0, 2, 0.25))]
    first, last = SimulatedDevice(models, power=2.0).capabilities.boundaries
    assert (first.low, first.high, first.in_step) == (-1, 1, 0.5)
    assert (last.out_low, last.out_high, last.out_step) == (0, 4, 0.5)


def test_a_snapshot_tells_light_and_engine():
    device = identity(power=0.5, laser_wander=0.1, wander_period_s=3.0, power_drift_std=0.01, seed=7, query_s=1.0)
    found = json.loads(json.dumps(device.snapshot(), allow_nan=False))
    assert found["light"] == {
        "power": 0.5, "laser": {"amplitude": 0.1, "period_s": 3.0}, "drift_std": 0.01, "drift_tau_s": 10.0, "seed": 7,
    }  # fmt: skip
    assert (found["engine"], found["drift_step_s"]) == ("native", 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0.0}, "device 'simulated': power must be finite and above 0, not 0.0"),
        ({"power_drift_std": -1.0}, "device 'simulated': drift: std must be finite and not negative, not -1.0"),
        ({"power_drift_tau_s": 0.0}, "drift: tau_s must be finite and above 0 s, not 0.0"),
        ({"laser_wander": 1.0}, r"laser wander: amplitude 1.0 must be in \[0, 1\)"),
        ({"drift_step_s": 0.0}, "drift_step_s must be finite and above 0 s, not 0.0"),
        ({"engine": "gpu"}, "device 'simulated': unknown engine 'gpu': choose native, torch, cuda or cuda:N"),
        (
            {"engine": "cuda:99"},
            "engine 'cuda:99': torch sees .* GPU.*Take one of those, or engine 'native' or 'torch'",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, message):
    with pytest.raises(CapabilityError, match=message):
        identity(**options)


# --- engines -----------------------------------------------------------------------------------------------------

NO_CUDA = pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a CUDA device")
CUDA = pytest.param("cuda", marks=NO_CUDA)


def onn(engine: str, **options: Any) -> SimulatedDevice:
    models = build("onn", "calibrated_chip", layers=2, ports=6, shot_phase_std=0.02)
    device = SimulatedDevice(models, engine=engine, **options)
    for stage in (0, 2):
        device.write(stage, models[stage].initial(np.random.default_rng(0)), key=stage)
    return device


@pytest.mark.parametrize("engine", ["torch", CUDA])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_engine_answers_alike(engine, dtype):
    """To rounding: there is no converter in front of what is read."""
    inputs = np.random.default_rng(3).uniform(-1, 1, (60, 6)).astype(dtype)
    options = {"dtype": dtype, "query_s": 0.01, "laser_wander": 0.1, "power_drift_std": 0.1}
    native, other = (onn(e, **options).run(Segment(0, 3), inputs, (1, 2), 2, keys()) for e in ("native", engine))
    assert other.outputs.dtype == dtype
    assert other.outputs.flags.c_contiguous
    for one, two in [(native.outputs, other.outputs), *((native.taps[b], other.taps[b]) for b in (1, 2))]:
        assert np.allclose(one, two, rtol=0, atol=3e-5 if dtype == "float32" else 1e-6)


def test_a_torch_engine_never_touches_or_returns_the_caller_s_arrays():
    device = SimulatedDevice([Elementwise(WIDTH, "identity")], engine="torch")
    inputs = rows()
    before = inputs.copy()
    device.run(ONE, inputs).outputs[:] = 0
    assert np.array_equal(inputs, before)


def test_an_engine_of_torch_says_that_torch_is_missing(run_python):
    code = (
        "from hzo_hil.devices.simulated import SimulatedDevice\n"
        "from hzo_hil.simulators.stages import Elementwise\n"
        "SimulatedDevice([Elementwise(2)], engine={engine!r})\n"
    )
    for engine in ("torch", "cuda"):
        done = run_python(code.format(engine=engine), without=["torch"])
        assert f"CapabilityError: device 'simulated': engine '{engine}' needs torch, which does not load" in done.stderr
    done = run_python(code.format(engine="native") + "import sys\nassert 'torch' not in sys.modules\n")
    assert done.returncode == 0, done.stderr
