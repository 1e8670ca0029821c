"""The short form of the fuzz campaign; benchmarks run the long one."""

from __future__ import annotations

import pytest

from tests.wire.fuzz_hzos import PARSERS, fuzz


@pytest.mark.parametrize("seed", range(3))
def test_mutated_bytes_do_no_harm(seed: int) -> None:
    assert fuzz(4000, seed) == dict.fromkeys(PARSERS, 4000)
