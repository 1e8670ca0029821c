"""The fake device answers exactly, and fails exactly as scripted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil.devices.api import BoundarySpec, Device, ParameterSpec, Pipelined, Segment, StageSpec
from hzo_hil.devices.errors import BadInput, CapabilityError, DeviceRebooted, LinkLost
from hzo_hil.devices.fake import FakeDevice, Script

WHOLE = Segment(0, 3)


def mlp(script: Script | None = None, **options) -> FakeDevice:
    return FakeDevice.mlp([5, 7, 6, 4], script=script, **{"dtype": "float64", **options})


def rows(count: int, width: int = 5, dtype: str = "float64", seed: int = 1):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(dtype)


def run(device: FakeDevice, inputs=None, segment: Segment = WHOLE, **options):
    inputs = rows(3, dtype=device.capabilities.dtype) if inputs is None else inputs
    return device.run(segment, inputs, **options).outputs


# ---- exactness


def test_it_computes_the_affine_stages_it_says():
    device, x = mlp(activation="tanh"), rows(40)
    expected = x
    for stage in range(3):
        p = device.read(stage)
        expected = np.tanh(expected @ p["weight"].T + p["bias"])
    np.testing.assert_allclose(run(device, x), expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "softplus", "square", "identity"])
def test_a_row_does_not_depend_on_its_batch(dtype, activation):
    device, x = mlp(activation=activation, dtype=dtype), rows(300, dtype=dtype)
    whole = run(device, x)
    for size in range(1, 301):
        assert np.array_equal(run(device, x[:size]), whole[:size]), size
        assert np.array_equal(run(device, x[-size:]), whole[-size:]), size


@given(cuts=st.lists(st.integers(1, 199), unique=True), dtype=st.sampled_from(["float32", "float64"]))
def test_a_row_does_not_depend_on_how_a_batch_is_split(cuts, dtype):
    device, x = mlp(Script(noise=0.1), dtype=dtype, keyed=True), rows(200, dtype=dtype)
    keys = np.arange(200, dtype=np.uint64)
    parts = np.split(np.arange(200), sorted(cuts))
    split = [run(device, np.ascontiguousarray(x[part]), keys=keys[part]) for part in parts]
    assert np.array_equal(np.concatenate(split), run(device, x, keys=keys))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_long_segment_equals_its_stages_and_its_taps(dtype):
    device, x = mlp(dtype=dtype, taps=True), rows(20, dtype=dtype)
    reply = device.run(WHOLE, x, taps=(1, 2))
    first = run(device, x, Segment(0, 1))
    second = run(device, first, Segment(1, 2))
    assert np.array_equal(reply.taps[1], first)
    assert np.array_equal(reply.taps[2], second)
    assert np.array_equal(reply.outputs, run(device, second, Segment(2, 3)))
    assert reply.outputs.dtype == dtype


def test_user_functions_are_stages():
    spec = StageSpec("double", 2, 2, structure="diagonal", linear=True)
    gain = StageSpec("gain", 2, 2, (ParameterSpec("g", (2,), low=1.0),), structure="diagonal")
    device = FakeDevice.functions([(spec, lambda a, p: 2 * a), (gain, lambda a, p: a * p["g"])])
    assert np.array_equal(device.read(1)["g"], [1.0, 1.0])  # 0 is outside its range
    device.write(1, {"g": np.array([3.0, 5.0])})
    assert np.array_equal(run(device, np.ones((1, 2), np.float32), Segment(0, 2)), [[6.0, 10.0]])


def test_it_is_a_device_and_pipelined_only_when_asked():
    assert isinstance(mlp(), Device)
    assert not isinstance(mlp(), Pipelined)
    assert isinstance(mlp(pipelined=True), Device)
    assert isinstance(mlp(pipelined=True), Pipelined)


def test_declared_capabilities_are_passed_on():
    caps = mlp(max_batch=9, taps=True, latency_s=0.5, inner=False, identity="bench").capabilities
    assert (caps.max_batch, caps.taps, caps.latency_s, caps.identity) == (9, True, 0.5, "bench")
    assert [b.drive for b in caps.boundaries] == [True, False, False, True]
    assert [caps.width(b) for b in range(4)] == [5, 7, 6, 4]


# ---- converters


def test_inputs_and_outputs_pass_their_converters():
    ends = BoundarySpec(low=-1.0, high=1.0, in_step=0.5, out_low=-0.2, out_high=0.2, out_step=0.1)
    device = FakeDevice.mlp([1, 1], "identity", bias=False, boundaries=ends, dtype="float64")
    device.write(0, {"weight": np.array([[0.27]])})
    answers = run(device, np.array([[0.3], [0.2], [1.0]]), Segment(0, 1))
    np.testing.assert_allclose(answers, [[0.1], [0.0], [0.2]], atol=1e-12)


def test_a_write_is_rounded_to_the_levels():
    device = FakeDevice.mlp([2, 1], bias=False, parameter={"levels": (-1.0, 0.0, 0.25, 1.0)})
    device.write(0, {"weight": np.array([[0.2, -0.6]])})
    assert np.array_equal(device.read(0)["weight"], [[0.25, -1.0]])


def test_a_partial_write_touches_only_what_it_lists():
    device = FakeDevice.mlp([2, 2], dtype="float64")
    before = device.read(0)
    new = {"weight": np.full((2, 2), 9.0), "bias": np.full(2, 9.0)}
    device.write(0, new, where={"weight": np.array([1])})
    after = device.read(0)
    assert after["weight"][0, 1] == 9.0
    assert np.array_equal(after["weight"].flat[[0, 2, 3]], before["weight"].flat[[0, 2, 3]])
    assert np.array_equal(after["bias"], before["bias"])


def test_a_write_that_moves_too_far_is_refused_and_changes_nothing():
    device = FakeDevice.mlp([2, 2], parameter={"slew": 0.5})
    before = device.read(0)
    near = {name: value + 0.4 for name, value in before.items()}
    with pytest.raises(BadInput, match=r"'bias' would move by 3 in one write, its slew limit is 0.5: split"):
        device.write(0, near | {"bias": before["bias"] + 3})
    assert np.array_equal(device.read(0)["weight"], before["weight"])
    device.write(0, near)
    assert np.array_equal(device.read(0)["weight"], near["weight"])


# ---- noise and drift


def test_noise_belongs_to_the_key_and_not_to_the_call():
    device, x = mlp(Script(noise=0.1), keyed=True), rows(50)
    keys = np.arange(50, dtype=np.uint64)
    first = run(device, x, keys=keys)
    assert np.array_equal(run(device, x, keys=keys), first)
    assert not np.any(run(device, x, keys=keys + np.uint64(50)) == first)
    assert not np.any(run(device, x) == run(device, x))  # without keys every shot is new


@pytest.mark.parametrize("repeats", [1, 4])
def test_noise_is_normal_with_the_scripted_spread_and_repeats_average(repeats):
    """False alarms: below 1e-5; four bounds of 5 standard errors, of mean, spread and neighbours' correlation."""
    device = mlp(Script(noise=0.1, seed=3), keyed=True, repeats=True)
    x = np.repeat(rows(1), 20_000, axis=0)
    shots = run(device, x, keys=np.arange(20_000, dtype=np.uint64), repeats=repeats) - run(mlp(), x)
    expected = 0.1 / np.sqrt(repeats)
    count = shots.size
    assert abs(shots.mean()) < 5 * expected / np.sqrt(count)
    assert abs(shots.std() / expected - 1) < 5 / np.sqrt(2 * count)
    assert abs(np.mean(shots[1:] * shots[:-1])) < 5 * expected**2 / np.sqrt(count)
    assert abs(np.mean(shots[:, 1:] * shots[:, :-1])) < 5 * expected**2 / np.sqrt(count * 3 / 4)


def test_drift_grows_with_each_call():
    device = mlp(Script(drift_per_call=0.01))
    first, second, third = (run(device) for _ in range(3))
    np.testing.assert_allclose(second, first * 1.01)
    np.testing.assert_allclose(third, first * 1.02)


# ---- scripted failures


def test_a_lost_call_is_lost_once():
    device = mlp(Script(lose={1}))
    first = run(device)
    with pytest.raises(LinkLost, match=r"fake device 'fake' did not answer call 1 \(scripted loss\)"):
        run(device)
    assert np.array_equal(run(device), first)


def test_rates_are_seeded():
    def fates(seed: int) -> list[str]:
        device = mlp(Script(seed=seed, lose_rate=0.3, nan_rate=0.3))
        found = []
        for _ in range(60):
            try:
                found.append("nan" if np.isnan(run(device)).any() else "good")
            except LinkLost:
                found.append("lost")
        return found

    assert fates(1) == fates(1) != fates(2)
    assert set(fates(1)) == {"nan", "good", "lost"}


def test_nan_hits_one_value_of_one_call():
    device = mlp(Script(nan={1}, bad_value=np.inf))
    assert [int(np.isinf(run(device)).sum()) for _ in range(3)] == [0, 1, 0]


def test_always_nan_leaves_no_number():
    device = mlp(Script(always_nan=True))
    assert all(np.isnan(run(device)).all() for _ in range(3))


def test_wrong_shapes_and_dtypes_are_sent_when_scripted():
    device = mlp(Script(wrong_shape_at={0}, wrong_dtype_at={1}))
    assert run(device).shape == (3, 3)
    assert run(device).dtype == np.float16
    assert run(device).shape == (3, 4)


def test_after_a_reboot_every_stage_in_use_must_be_written_whole():
    device = mlp(Script(reboot_at={1}))
    before, kept = run(device), [device.read(stage) for stage in range(3)]
    with pytest.raises(DeviceRebooted, match=r"lost its parameters \(call 1\).*still missing: \[0, 1, 2\]"):
        run(device)
    assert not device.read(0)["weight"].any()
    assert "stages [0, 1, 2] were not written since" in device.health().detail
    for stage in (0, 1):
        device.write(stage, kept[stage])
    device.write(2, kept[2], where={"weight": np.arange(24)})
    with pytest.raises(DeviceRebooted, match=r"still missing: \[2\]"):
        run(device)
    assert run(device, segment=Segment(0, 2)).shape == (3, 6)
    device.write(2, kept[2])
    assert np.array_equal(run(device), before)
    assert device.health().ok
    assert device.snapshot() == {"identity": "fake", "calls": 5, "writes": 4, "boots": 1}


def test_a_lost_write_writes_nothing():
    device = mlp(Script(lose_write={0}))
    before = device.read(0)
    changed = {name: value + 1 for name, value in before.items()}
    with pytest.raises(LinkLost, match="did not answer write 0 of stage 0"):
        device.write(0, changed)
    assert np.array_equal(device.read(0)["weight"], before["weight"])
    device.write(0, changed)
    assert np.array_equal(device.read(0)["weight"], changed["weight"])


def test_any_exception_can_be_scripted():
    device = mlp(Script(fail={0: KeyboardInterrupt()}))
    with pytest.raises(KeyboardInterrupt):
        run(device)
    assert run(device).shape == (3, 4)


def test_a_hanging_call_ends_when_told():
    device = mlp(Script(hang={0}))
    threading.Timer(0.05, device.unhang).start()
    with pytest.raises(LinkLost, match="scripted hang"):
        run(device)


def test_latency_is_slept_or_counted():
    real, virtual = mlp(Script(latency_s=0.03)), mlp(Script(latency_s=30.0, delay={1: 5.0}), virtual_time=True)
    start = time.monotonic()
    run(real)
    assert time.monotonic() - start >= 0.03
    start = time.monotonic()
    run(virtual)
    run(virtual)
    assert time.monotonic() - start < 10
    assert virtual.seconds == 65.0


# ---- what it was asked


def test_calls_and_writes_are_recorded():
    device = mlp(keep_inputs=True, keyed=True, taps=True, repeats=True)
    x = rows(2)
    run(device, x, keys=np.array([7, 8], np.uint64), taps=(1,), repeats=2)
    device.write(0, device.read(0), key=11)
    x[:] = 0
    call, write = device.calls[0], device.writes[0]
    assert (call.number, call.segment, call.rows, call.taps, call.repeats) == (0, WHOLE, 2, (1,), 2)
    assert call.keys.tolist() == [7, 8]
    assert np.array_equal(call.inputs, rows(2))
    assert (write.stage, write.key, write.where) == (0, 11, None)
    assert np.array_equal(write.parameters["bias"], device.read(0)["bias"])


def test_overlapping_calls_are_refused():
    device = mlp(Script(hang={0}))

    def hang() -> None:
        with pytest.raises(LinkLost):
            run(device)

    worker = threading.Thread(target=hang)
    worker.start()
    while not device.calls:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="called while another call was running"):
        run(device)
    device.unhang()
    worker.join()
    assert len(device.threads) == 2


def test_a_second_thread_is_refused_when_the_script_says_so():
    device = mlp(Script(one_thread=True))
    worker = threading.Thread(target=run, args=(device,))
    worker.start()
    worker.join()
    with pytest.raises(RuntimeError, match="called from a second thread"):
        run(device)


# ---- refusals

BAD_QUERIES = {
    "has 3 stages and was asked for": {"segment": Segment(0, 4)},
    "cannot be driven at boundary 1": {"segment": Segment(1, 3)},
    "cannot be read at boundary 2": {"segment": Segment(0, 2)},
    "does not declare taps": {"taps": (1,)},
    "2 repeats; they must be declared": {"repeats": 2},
    "does not declare keyed": {"keys": np.arange(3, dtype=np.uint64)},
    "needs \\[batch, 5\\]": {"inputs": rows(3, 4)},
    "inputs of shape \\(0, 5\\)": {"inputs": rows(0)},
    "are C-contiguous float32, needs C-contiguous float64": {"inputs": rows(3, dtype="float32")},
    "are strided float64": {"inputs": rows(6)[::2]},
    "9 rows in one call, max_batch is 8": {"inputs": rows(9)},
    "280 bytes in one call, max_bytes is 200": {"inputs": rows(7)},
    "not finite": {"inputs": np.full((1, 5), np.nan)},
    "inputs 11..11 leave the declared range \\[-10.0, 10.0\\]": {"inputs": np.full((1, 5), 11.0)},
}


@pytest.mark.parametrize("message", BAD_QUERIES)
def test_a_query_beyond_the_capabilities_is_refused_and_not_counted(message):
    device = mlp(inner=False, max_batch=8, max_bytes=200, boundaries=BoundarySpec(low=-10.0, high=10.0))
    with pytest.raises(BadInput, match=message):
        run(device, **BAD_QUERIES[message])
    assert device.calls == []


def test_taps_outside_the_segment_and_keys_of_the_wrong_length_are_refused():
    device = mlp(taps=True, keyed=True)
    with pytest.raises(CapabilityError, match=r"taps \[3\] are not inside \(0, 3\)"):
        run(device, taps=(3,))
    with pytest.raises(BadInput, match="keys of shape .* for 3 rows"):
        run(device, keys=np.arange(2, dtype=np.uint64))


BAD_WRITES = {
    "a write names every parameter": {"weight": np.zeros((4, 6))},
    "'weight' has shape \\(6, 4\\), declared \\(4, 6\\)": {"weight": np.zeros((6, 4)), "bias": np.zeros(4)},
    "'bias' holds values that are not finite": {"weight": np.zeros((4, 6)), "bias": np.full(4, np.inf)},
    "'bias' 3..3 leave the declared range": {"weight": np.zeros((4, 6)), "bias": np.full(4, 3.0)},
}


@pytest.mark.parametrize("message", BAD_WRITES)
def test_a_bad_write_is_refused_and_not_counted(message):
    device = mlp(parameter={"low": -2.0, "high": 2.0})
    with pytest.raises(BadInput, match=message):
        device.write(2, BAD_WRITES[message])
    with pytest.raises(BadInput, match=r"has stages 0\.\.2, not 3"):
        device.write(3, {})
    assert device.writes == []


def test_a_network_that_cannot_be_is_refused():
    with pytest.raises(BadInput, match="unknown activation 'sine'"):
        FakeDevice.mlp([2, 2], "sine")
    with pytest.raises(BadInput, match="3 activations for 2 stages"):
        FakeDevice.mlp([2, 2, 2], ["tanh"] * 3)
    with pytest.raises(BadInput, match="at least two widths"):
        FakeDevice.mlp([2])
