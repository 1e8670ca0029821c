"""Rows of a cut, built by copying where few elements move, are those of adding base and offsets up."""

from __future__ import annotations

import numpy as np
import pytest

from hzo_hil.colouring import Dense
from hzo_hil.credit.cut import Probing
from hzo_hil.differences import scheme
from hzo_hil.plan import Cut
from hzo_hil.probes import probe_set

SAMPLES, WIDTH = 7, 48


def probing(differences: str, probes: str, low: float, high: float) -> Probing:
    base = np.random.default_rng(0).uniform(-1, 1, (SAMPLES, WIDTH)).astype(np.float32)
    chosen = scheme(differences)
    return Probing(
        Cut(1, 2), probe_set(probes, not chosen.paired), chosen, 0.03, base, low, high, Dense(WIDTH), key=5
    )  # fmt: skip


def added_up(of: Probing) -> np.ndarray:
    """Every row of every sample as a sum, then clipped: [samples, rows, width]."""
    of.__dict__["_few"] = None
    return of.build(0, of.asked, slice(0, WIDTH)).reshape(SAMPLES, of.rows, WIDTH)


@pytest.mark.parametrize("block", [1 << 17, 3000, 1], ids=lambda n: f"blocks of {n}")
@pytest.mark.parametrize("ends", [(-np.inf, np.inf), (-0.99, 0.98)], ids=["free", "meets its ends"])
@pytest.mark.parametrize("differences", ["central", "forward", "richardson"])
def test_the_same_bits_for_any_range_of_rows_and_columns(differences, ends, block, monkeypatch):
    monkeypatch.setattr("hzo_hil.credit.cut._BLOCK", block)
    expected = added_up(probing(differences, "coordinate", *ends))
    here = probing(differences, "coordinate", *ends)
    assert here._few is not None
    flat = expected.reshape(-1, WIDTH)
    rows = here.rows
    ranges = [(0, here.asked), (1, rows), (3, 2 * rows + 5), (rows, 3 * rows), (here.asked - 2, here.asked)]
    for first, last in ranges:
        for columns in (slice(0, WIDTH), slice(0, 20), slice(20, WIDTH)):
            assert here.build(first, last, columns).tobytes() == flat[first:last, columns].tobytes()


@pytest.mark.parametrize("probes", ["hadamard", "rademacher:9"])
def test_probes_that_move_every_element_are_added_up(probes):
    assert probing("central", probes, -np.inf, np.inf)._few is None
