"""The short form of the fuzz campaign for HZO/1; benchmarks run the long one."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hzo_hil.devices.errors import WireError
from hzo_hil.devices.wire import messages as m
from tests.wire.fuzz_hzo1 import PARSERS, fuzz


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("parser", PARSERS)
def test_mutated_messages_do_no_harm(seed: int, parser: str) -> None:
    try:
        assert fuzz(10_000, seed, (parser,)) == {parser: 10_000}
    finally:
        logging.getLogger("hzo_hil.server").disabled = False


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ((1 << 31, 4, 1, 1, 1), "at most"),
        ((0xFFFFFFFF,) * 5, "at most"),
        ((0, 0xFFFFFFFF, 0xFFFFFFFF, 1, 1), "at most"),
    ],
)
def test_a_size_is_judged_before_memory_is_taken(dims: tuple[int, ...], text: str) -> None:
    desc = m.ARR.pack(1, 5, 0, 1.0, 0.0, *dims)
    with pytest.raises(WireError, match=text):
        m.decode([m.HDR.pack(m.MAGIC, m.RUN, 0, 1, 1, 1, 0, 0), b"", desc, b""])


def test_a_scaled_array_is_restored() -> None:
    codes = np.array([[-2, 3]], np.int16)
    desc = m.ARR.pack(4, 2, 1, 0.5, 10.0, 1, 2, 0, 0, 0)
    message = m.decode([m.HDR.pack(m.MAGIC, m.RESULT, 0, 1, 1, 1, 0, 0), b"", desc, codes.tobytes()])
    np.testing.assert_array_equal(message.arrays[0], np.array([[9.0, 11.5]], np.float32))
