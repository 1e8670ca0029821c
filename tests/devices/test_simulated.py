"""The simulated device: the contract kept, noise by keys, every misuse named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hzo_hil.devices.api import Device, Segment
from hzo_hil.devices.errors import BadInput, CapabilityError, DeviceError
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators.chip import build
from hzo_hil.simulators.stages import Elementwise, EmulatedLinear, Port

PORTS = 6
WHOLE = Segment(0, 5)


def chip(preset: str = "calibrated_chip", written: bool = True, models=None, **options) -> SimulatedDevice:
    device = SimulatedDevice(models or build("onn", preset, layers=3, ports=PORTS), **options)
    if written:
        rng = np.random.default_rng(0)
        for stage, model in enumerate(device.models):
            if model.parameters:
                device.write(stage, model.initial(rng), key=stage)
    return device


def rows(count: int = 40, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, PORTS)).astype(dtype)


KEYS = np.arange(100, 140, dtype=np.uint64)


def test_it_is_a_device_and_says_what_it_can_do():
    device = chip(latency_s=1e-3, query_s=1e-6, settling_s=0.01, max_batch=64)
    ability = device.capabilities
    assert isinstance(device, Device)
    assert [s.in_width for s in ability.stages] == [PORTS] * 5
    assert [s.structure for s in ability.stages] == ["dense", "diagonal", "dense", "diagonal", "dense"]
    assert [s.linear for s in ability.stages] == [True, False, True, False, True]
    assert (ability.keyed, ability.virtual_time, ability.taps, ability.repeats) == (True, True, True, True)
    assert (ability.latency_s, ability.query_s, ability.settling_s, ability.max_batch) == (1e-3, 1e-6, 0.01, 64)
    assert len(ability.stages[0].parameters[0].levels) == 147
    assert 0 < ability.read_noise < 0.01
    assert device.health().ok
    assert repr(device) == "SimulatedDevice('simulated', 5 stages)"


def test_ports_become_boundaries():
    models = [Elementwise(2, input=Port(-1, 1, 0.5), output=Port(0, 2, 0.25)), Elementwise(2, input=Port(-3, 3))]
    first, middle, last = SimulatedDevice(models).capabilities.boundaries
    assert (first.low, first.high, first.in_step, first.out_high) == (-1, 1, 0.5, np.inf)
    assert (middle.low, middle.high, middle.out_low, middle.out_high, middle.out_step) == (-3, 3, 0, 2, 0.25)
    assert (last.high, last.out_high) == (np.inf, np.inf)


def test_stages_run_in_order():
    device = chip("ideal", dtype="float64")
    expected = rows(dtype=np.float64)
    for stage, model in enumerate(device.models):
        expected = model.ideal(np, device.read(stage), expected)
        found = device.run(Segment(0, stage + 1), rows(dtype=np.float64)).outputs
        assert np.allclose(found, expected, atol=1e-12)
    middle = device.run(Segment(0, 3), rows(dtype=np.float64)).outputs
    assert np.allclose(device.run(Segment(3, 5), middle).outputs, found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_gets_the_same_answer_in_any_batch(dtype):
    device = chip(dtype=dtype)
    whole = device.run(WHOLE, rows(dtype=dtype), keys=KEYS).outputs
    order = np.random.default_rng(0).permutation(40)
    parts = [device.run(WHOLE, rows(dtype=dtype)[p], keys=KEYS[p]).outputs for p in np.array_split(order, 6)]
    assert whole.dtype == dtype
    assert whole.flags.c_contiguous
    assert np.allclose(np.concatenate(parts), whole[order], rtol=1e-6, atol=1e-6)


def test_taps_read_without_touching_what_flows_on():
    device = chip()
    plain = device.run(WHOLE, rows(), keys=KEYS)
    tapped = device.run(WHOLE, rows(), taps=(1, 2, 4), keys=KEYS)
    assert np.array_equal(plain.outputs, tapped.outputs)
    assert not plain.taps
    for boundary in (1, 2, 4):
        assert np.array_equal(tapped.taps[boundary], device.run(Segment(0, boundary), rows(), keys=KEYS).outputs)
    tapped.taps[2][:] = 0
    assert np.array_equal(device.run(WHOLE, rows(), taps=(2,), keys=KEYS).outputs, plain.outputs)


def test_stages_under_one_key_have_noise_of_their_own():
    """Correlation of 12,000 pairs, |z| < 5: false alarm 6e-7."""
    models = [Elementwise(PORTS, "identity", detector=m.detector) for m in build("onn", "calibrated_chip", ports=4)[:2]]
    device = SimulatedDevice(models)
    zero, keys = np.zeros((2000, PORTS), np.float32), np.arange(2000, dtype=np.uint64)
    first, second = (device.run(Segment(s, s + 1), zero, keys=keys).outputs for s in (0, 1))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) * first.size**0.5 < 5


def test_repeats_average_independent_shots():
    """Variance of 9,600 outputs against 1/16 of that of single shots, |z| < 5: false alarm 6e-7."""
    device = SimulatedDevice([EmulatedLinear(PORTS, PORTS, read_noise_std=0.5)], dtype="float64")
    device.write(0, {"weight": np.zeros((PORTS, PORTS)), "bias": np.zeros(PORTS)})
    zero, keys = np.zeros((1600, PORTS)), np.arange(1600, dtype=np.uint64)
    averaged = device.run(Segment(0, 1), zero, repeats=16, keys=keys).outputs
    assert abs(averaged.var() / (0.25 / 16) - 1) * (averaged.size / 2) ** 0.5 < 5
    once = device.run(Segment(0, 1), zero, keys=keys).outputs
    assert np.array_equal(once, device.run(Segment(0, 1), zero, repeats=1, keys=keys).outputs)


def test_taps_are_averaged_like_outputs():
    device = chip()
    tapped = device.run(WHOLE, rows(), taps=(1,), repeats=3, keys=KEYS)
    assert np.array_equal(tapped.taps[1], device.run(Segment(0, 1), rows(), repeats=3, keys=KEYS).outputs)


def test_without_keys_every_query_is_a_new_shot_and_a_new_device_repeats_them():
    first, second = chip(), chip()
    a, b = first.run(WHOLE, rows()).outputs, first.run(WHOLE, rows()).outputs
    assert not np.array_equal(a, b)
    assert np.array_equal(second.run(WHOLE, rows()).outputs, a)


def test_the_programming_key_names_the_noise_of_a_write():
    device = chip(models=build("onn", layers=1, ports=PORTS, programming_std=0.1))
    values = device.read(0)

    def answer(**key):
        device.write(0, values, **key)
        return device.run(Segment(0, 1), rows()).outputs

    assert np.array_equal(answer(key=5), answer(key=5))
    assert not np.allclose(answer(key=5), answer(key=6), atol=1e-3)
    assert not np.allclose(answer(), answer(), atol=1e-3)


def test_what_was_written_comes_back_as_a_copy():
    device = chip()
    values = {n: v.copy() for n, v in device.read(0).items()}
    device.read(0)["theta"][:] = 9
    assert all(np.array_equal(device.read(0)[n], v) for n, v in values.items())
    given = {n: v.astype(np.float32) for n, v in values.items()}
    device.write(0, given)
    given["theta"][:] = 9
    assert np.array_equal(device.read(0)["theta"], values["theta"].astype(np.float32))
    assert device.read(1) == {}


def test_the_caller_s_arrays_are_never_touched_or_returned():
    device = SimulatedDevice([Elementwise(PORTS, "identity")])
    inputs = rows()
    before = inputs.copy()
    outputs = device.run(Segment(0, 1), inputs).outputs
    outputs[:] = 0
    assert np.array_equal(inputs, before)


def test_a_snapshot_tells_chips_and_settings_apart():
    device = chip()
    before = json.loads(json.dumps(device.snapshot(), allow_nan=False))
    assert before["identity"] == "simulated"
    assert before["models"][0]["errors"]["phase_bias"] == 0.15
    assert before == device.snapshot()
    device.write(0, {n: v + 0.1 for n, v in device.read(0).items()})
    assert device.snapshot()["written"] != before["written"]
    assert device.snapshot()["models"] == before["models"]


def test_a_closed_chip_has_no_inner_boundaries():
    device = chip(inner_boundaries=False)
    ability = device.capabilities
    assert [b.drive for b in ability.boundaries] == [True, False, False, False, False, True]
    assert [b.read for b in ability.boundaries] == [True, False, False, False, False, True]
    assert not ability.taps
    with pytest.raises(CapabilityError, match=r"segment \(2, 5\]: boundary 2 cannot be driven"):
        device.run(Segment(2, 5), rows())
    with pytest.raises(CapabilityError, match=r"segment \(0, 3\]: boundary 3 cannot be read"):
        device.run(Segment(0, 3), rows())
    with pytest.raises(CapabilityError, match="boundary 2 cannot be tapped"):
        device.run(WHOLE, rows(), taps=(2,))
    assert device.run(WHOLE, rows()).outputs.shape == (40, PORTS)


def test_inputs_outside_the_range_are_clipped_or_refused():
    models = build("onn", layers=1, ports=PORTS, in_bound=0.5)
    clipping, refusing = chip(models=models), chip(models=models, clip_inputs=False)
    edge = np.clip(rows(), -0.5, 0.5)
    assert np.array_equal(clipping.run(Segment(0, 1), rows()).outputs, clipping.run(Segment(0, 1), edge).outputs)
    assert np.array_equal(refusing.run(Segment(0, 1), edge).outputs, clipping.run(Segment(0, 1), edge).outputs)
    with pytest.raises(BadInput, match=r"leave the range -0\.5 to 0\.5 of boundary 0: scale them, or set clip_inputs"):
        refusing.run(Segment(0, 1), rows())


def test_a_query_before_the_first_write_is_an_error_of_the_device():
    device = chip(written=False)
    with pytest.raises(DeviceError, match=r"stage 0 \('mesh1'\) was never written: write its parameters"):
        device.run(WHOLE, rows())
    with pytest.raises(DeviceError, match=r"stage 2 \('mesh2'\) was never written"):
        device.read(2)
    assert device.run(Segment(1, 2), rows()).outputs.shape == (40, PORTS)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (rows()[:, :5], {}, r"inputs must be \[batch, 6\], not \[40, 5\]"),
        (rows()[0], {}, r"inputs must be \[batch, 6\], not \[6\]"),
        (rows().astype(np.float64), {}, "inputs must be float32, not float64: convert them"),
        (np.where(rows() > 0, np.float32(np.nan), rows()), {}, "inputs hold NaN or infinity"),
        (np.tile(rows(), (2, 1)), {}, "80 rows in one call, at most 64: split the batch"),
        (rows(), {"keys": KEYS[:3]}, r"keys must be uint64 \[40\], not uint64 \[3\]"),
        (rows(), {"keys": KEYS.astype(np.int64)}, r"keys must be uint64 \[40\], not int64"),
        (rows(), {"repeats": 0}, "repeats must be at least 1, not 0"),
        (rows(), {"taps": (5,)}, "boundary 5 cannot be tapped"),
    ],
)
def test_bad_queries_are_refused(inputs, options, message):
    with pytest.raises(BadInput, match=message):
        chip(max_batch=64).run(WHOLE, inputs, **options)


def test_segments_beyond_the_chip_are_refused():
    with pytest.raises(CapabilityError, match=r"segment \(0, 6\]: there are only 5 stages"):
        chip().run(Segment(0, 6), rows())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {"theta": v["theta"]}, r"stage 0 \('mesh1'\) takes parameters \['out_phase', 'phi', 'theta'\], not"),
        (lambda v: v | {"phi": np.zeros(3)}, r"parameter 'phi': the shape must be \[15\], not \[3\]"),
        (lambda v: v | {"phi": np.full(15, np.inf)}, "parameter 'phi': holds NaN or infinity: nothing was written"),
    ],
)
def test_bad_writes_are_refused_and_change_nothing(change, message):
    device = chip()
    before = device.run(WHOLE, rows(), keys=KEYS).outputs
    with pytest.raises(BadInput, match=message):
        device.write(0, change(dict(device.read(0))))
    assert np.array_equal(device.run(WHOLE, rows(), keys=KEYS).outputs, before)


def test_values_outside_a_range_are_refused_but_phases_wrap():
    emulator = SimulatedDevice([EmulatedLinear(2, 2, bias=False, weight_bound=0.5)])
    with pytest.raises(BadInput, match=r"values from 0\.6 to 0\.6 leave the range -0\.5 to 0\.5"):
        emulator.write(0, {"weight": np.full((2, 2), 0.6)})
    emulator.write(0, {"weight": np.full((2, 2), np.float32(0.5))})
    device = chip("ideal")
    before = device.run(WHOLE, rows()).outputs
    device.write(0, {n: v + 2 * np.pi for n, v in device.read(0).items()})
    assert np.allclose(device.run(WHOLE, rows()).outputs, before, atol=1e-6)


def test_changed_indices_are_checked():
    device = chip()
    values = device.read(0)
    device.write(0, values, where={"theta": np.array([0, 14])})
    with pytest.raises(BadInput, match="where names 'theta' with indices outside its 15 values"):
        device.write(0, values, where={"theta": np.array([15])})
    with pytest.raises(BadInput, match="where names 'volts'"):
        device.write(0, values, where={"volts": np.array([0])})
    with pytest.raises(CapabilityError, match=r"has stages 0\.\.4, not 5"):
        device.write(5, values)


def test_it_runs_where_torch_is_missing(run_python):
    done = run_python(
        "import numpy as np\n"
        "from hzo_hil.devices.simulated import SimulatedDevice\n"
        "from hzo_hil.devices.api import Segment\n"
        "from hzo_hil.simulators.chip import build\n"
        "device = SimulatedDevice(build('onn', 'calibrated_chip', ports=4, layers=1))\n"
        "device.write(0, device.models[0].initial(np.random.default_rng(0)))\n"
        "print(device.run(Segment(0, 1), np.zeros((2, 4), np.float32)).outputs.shape)\n",
        without=["torch"],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 4)"
