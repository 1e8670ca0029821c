"""What the firmware computes, bit for bit: against NumPy, and the Cortex-M3 image against the host build."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.firmware.arithmetic import Array, Network
from tests.firmware.line import OK, SATURATED, Line

SEGMENTS = [(0, 1), (0, 2), (1, 2)]
WIDTHS = (4, 8, 3)


def drawn(describe: ModuleType, seed: int, noise: int) -> tuple[bytes, Network]:
    """Parameters as bytes of region 2, and the network they make."""
    rng = np.random.default_rng(seed)
    data, stages = b"", []
    for _, n_in, n_out, kind in describe.STAGES:
        weight = rng.integers(-127, 128, (n_out, n_in)).astype("i1")
        bias = rng.integers(-128, 129, n_out).astype("<i2")
        data += weight.tobytes() + bias.tobytes()
        stages.append((kind, weight, bias))
    return data, Network(stages, noise)


def test_the_description_is_what_these_tests_assume(description: dict[str, Any], describe: ModuleType) -> None:
    assert [tuple(s) for s in description["wire"]["segments"]] == SEGMENTS
    assert describe.WIDTHS == WIDTHS


def answered(line: Line, number: int, segment: int, rows: Array, repeats_log2: int = 0) -> tuple[Array, bool]:
    answer = line.run(number, segment, rows.astype("<i2").tobytes(), repeats_log2)
    assert answer.status & 0x7F == OK
    width = WIDTHS[SEGMENTS[segment][1]]
    return np.frombuffer(answer.data, "<i2").reshape(-1, width), bool(answer.status & SATURATED)


@pytest.mark.parametrize("noise", [0, 1, 16, 1024])
def test_every_segment_is_the_reference_bit_for_bit(
    start_host: Callable[..., int], describe: ModuleType, noise: int
) -> None:
    """Inputs over the whole of int16, ends included, so that sums saturate; single shots and averages."""
    rng = np.random.default_rng(noise)
    with Line(start_host(noise=noise)) as line:
        line.hello()
        number, ended = 0, 0
        for seed in range(6):
            data, network = drawn(describe, seed, noise)
            assert line.write(0, data).status == OK
            for segment, (lo, hi) in enumerate(SEGMENTS):
                for most in (32767, 4096, 40):
                    number += 1
                    rows = rng.integers(-most - 1, most + 1, (1 + number % 31, WIDTHS[lo]))
                    rows[0] = most
                    repeats_log2 = number % 5
                    expected, saturated = network.run(number, lo, hi, rows, repeats_log2)
                    got, flagged = answered(line, number, segment, rows, repeats_log2)
                    np.testing.assert_array_equal(got, expected)
                    assert flagged == saturated
                    ended += saturated
        assert 0 < ended < number


def test_the_declared_noise_is_the_noise(start_host: Callable[..., int], describe: ModuleType) -> None:
    """Standard deviation of 30 x 8,000 draws at dark inputs within 3 % of the declared one, mean within 5 standard
    errors of -1/2 code (rounding down): false alarms below 1e-6, and the seed is fixed by the query's numbers.
    """
    noise, shots = 16, 8000
    _, network = drawn(describe, 0, noise)
    network.stages[1] = ("linear", np.zeros((3, 8)), np.zeros(3))
    rows = np.zeros((30, 8), int)
    values = np.concatenate([network.run(n, 1, 2, rows)[0] for n in range(1, shots // 3)]).astype(float)
    declared = describe.capabilities().read_noise * 2**describe.ACTIVATION_SHIFT
    assert abs(values.std() / declared - 1) < 0.03
    assert abs(values.mean() + 0.5) < 5 * declared / np.sqrt(values.size)
    with Line(start_host(noise=noise)) as line:
        line.hello()
        line.write(0, bytes(describe.layout()[-1]["bias"] + 6))
        np.testing.assert_array_equal(answered(line, 5, 2, rows)[0], network.run(5, 1, 2, rows)[0])


def test_noise_is_the_querys_and_repeats_average_it(start_host: Callable[..., int], describe: ModuleType) -> None:
    with Line(start_host(noise=512)) as line:
        line.hello()
        line.write(0, drawn(describe, 3, 0)[0])
        rows = np.zeros((31, 8), int)
        one, other = answered(line, 1, 2, rows)[0], answered(line, 2, 2, rows)[0]
        assert (one != other).mean() > 0.9
        assert len(np.unique(one, axis=0)) == 31, "rows of one query share their noise"
        mean = answered(line, 3, 2, rows, repeats_log2=8)[0]
        # 93 values each: a ratio of 16 within a quarter has false alarms below 1e-3, and the numbers are fixed.
        assert 12 < one.std(axis=0).mean() / mean.std(axis=0).mean() < 20


def test_the_emulated_board_answers_as_the_host_build(
    start_emulator: Callable[[], Any], start_host: Callable[..., int], describe: ModuleType
) -> None:
    rng = np.random.default_rng(1)
    with Line(start_emulator().port) as board, Line(start_host(noise=describe.NOISE)) as host:
        board.hello()
        host.hello()
        data, network = drawn(describe, 9, describe.NOISE)
        for line in (board, host):
            assert line.write(0, data).status == OK
            assert line.read(2, len(data)) == data
        for number in range(1, 25):
            segment = number % 3
            lo, hi = SEGMENTS[segment]
            rows = rng.integers(-32768, 32768, (1 + number, WIDTHS[lo])) // (1 + 3 * (number % 2))
            got, expected = (answered(line, number, segment, rows, number % 4) for line in (board, host))
            np.testing.assert_array_equal(got[0], expected[0])
            np.testing.assert_array_equal(got[0], network.run(number, lo, hi, rows, number % 4)[0])
            assert got[1] == expected[1]
