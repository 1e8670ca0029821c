"""Noise that the host adds to answers: of the size asked, keyed where the device is, and said in its identity."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from hzo_hil.devices.added_noise import AddedNoise
from hzo_hil.devices.api import Device, Pipelined, Query, Segment
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.devices.fake_pipelined import PipelinedFakeDevice
from hzo_hil.opening import open_device
from hzo_hil.study.planning import described_axes, plan_study
from hzo_hil.study.studyfile import StudySection

CHIP = {"kind": "onn", "options": {"layers": 2, "ports": 8}}
WHOLE = Segment(0, 2)
FALSE_ALARM = 1e-9


def opened(**fields) -> Device:
    device = open_device({**CHIP, **fields})
    device.open()
    for k, model in enumerate(device.models):
        device.write(k, {n: np.float32(v) for n, v in model.initial(np.random.default_rng(k)).items()})
    return device


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 8)).astype(np.float32)


def keys(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64) + np.uint64(7)


def added(device: Device, plain: Device, count: int = 400, **options) -> np.ndarray:
    asked = {"keys": keys(count)}
    segment = Segment(0, len(device.capabilities.stages))
    noisy = device.run(segment, rows(count), **asked, **options).outputs
    return noisy.astype(np.float64) - plain.run(segment, rows(count), **asked).outputs


def assert_std(values: np.ndarray, std: float) -> None:
    low, high = (chi2.ppf(p, values.size) for p in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))
    assert low <= np.sum(values**2) / std**2 <= high


def test_it_has_the_size_asked():
    assert_std(added(opened(added_noise=0.3), opened()), 0.3)


def test_repeats_average_it_as_if_it_were_there_in_every_shot():
    assert_std(added(opened(added_noise=0.3), opened(), repeats=9), 0.1)


def test_rows_with_keys_have_theirs_whatever_the_batch():
    device, segment = opened(added_noise=0.3), Segment(0, 1)
    whole = device.run(segment, rows(6), keys=keys(6)).outputs
    parts = [device.run(segment, rows(6)[s], keys=keys(6)[s]).outputs for s in (slice(4, 6), slice(0, 4))]
    assert np.array_equal(whole, np.concatenate(parts[::-1]))


def test_two_boundaries_read_in_one_query_have_noise_of_their_own():
    device, plain = opened(added_noise=0.3), opened()
    found = [d.run(Segment(0, 2), rows(50), keys=keys(50), taps=(1,)) for d in (device, plain)]
    tap, out = (np.asarray(a, np.float64) - b for a, b in zip(*[(r.taps[1], r.outputs) for r in found], strict=True))
    assert_std(tap, 0.3)
    assert abs(np.corrcoef(tap.ravel(), out.ravel())[0, 1]) < 0.31  # 6.1 standard errors of 400 pairs: once in 1e9


def test_a_device_without_keys_draws_one_after_the_other():
    plain = FakeDevice.mlp([3, 4, 2], seed=1, dtype="float64")
    x = np.ones((2000, 3))
    first, again = (AddedNoise(plain, 0.2, lambda *_: pytest.fail("no keys"), seed=5) for _ in range(2))
    first.open()
    noisy = first.run(WHOLE, x).outputs
    assert_std(noisy - plain.run(WHOLE, x).outputs, 0.2)
    assert np.array_equal(noisy, again.run(WHOLE, x).outputs)
    assert not np.array_equal(noisy, first.run(WHOLE, x).outputs)


@pytest.mark.parametrize("bare", [lambda reply: reply.outputs, lambda reply: (100 * reply.outputs).astype(np.int16)])
def test_answers_without_a_reply_around_them_and_whole_numbers_are_noisy_too(bare) -> None:
    class Bare(FakeDevice):
        def run(self, segment, inputs, **options):
            return bare(super().run(segment, inputs, **options))

    plain = Bare(FakeDevice.mlp([3, 4, 2], seed=1)._stages)
    device = AddedNoise(plain, 0.2, lambda *_: pytest.fail("no keys"), seed=5)
    device.open()
    x = np.ones((2000, 3), np.float32)
    assert_std(device.run(WHOLE, x).astype(np.float64) - plain.run(WHOLE, x), 0.2)


def test_a_pipelined_device_stays_one_and_its_errors_pass():
    inner = PipelinedFakeDevice(FakeDevice.mlp([3, 4, 2], seed=1)._stages, window=4, virtual_time=True, keyed=True)
    device = AddedNoise(inner, 0.2, lambda k, at, width: np.ones((len(k), width)))
    device.open()
    assert isinstance(device, Pipelined) and device.window == 4
    x = np.ones((5, 3), np.float32)
    ticket = device.submit(Query(WHOLE, x, keys=keys(5)))
    (number, reply), *_ = device.poll(1.0)
    assert number == ticket
    assert reply.outputs == pytest.approx(inner.run(WHOLE, x, keys=keys(5)).outputs + 0.2, abs=1e-6)
    device.cancel()


def test_whoever_reads_the_run_is_told():
    device = opened(added_noise=0.25)
    assert "noise 0.25 added on the host" in device.capabilities.identity
    assert device.snapshot()["added_noise"] == {"std": 0.25, "note": "added on the host"}
    assert device.capabilities is device.capabilities


def test_a_negative_one_is_refused_in_words():
    with pytest.raises(Exception, match=r"added_noise.*greater than or equal to 0"):
        open_device({**CHIP, "added_noise": -0.1})


def test_an_axis_of_it_is_labelled_in_a_study():
    config = {
        "name": "x", "data": {"name": "digits"}, "network": [{"opaque": "lab"}], "train": {"epochs": 1},
        "devices": {"lab": {"url": "zmq+tcp://127.0.0.1:5555"}},
    }  # fmt: skip
    axes = {"noise": {"field": "devices.lab.added_noise", "values": [0.0, 0.1]}}
    study = plan_study(StudySection(name="x", config=config, axes=axes))
    assert described_axes(study)[0]["note"] == "added on the host"
