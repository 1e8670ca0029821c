"""Crossbars: mapping to conductances, Kirchhoff's laws for the wires, noise in SI units, drift, clocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import constants

from hzo_hil.simulators import wires
from hzo_hil.simulators.cells import Cells
from hzo_hil.simulators.converters import uniform_port
from hzo_hil.simulators.crossbar import Crossbar
from hzo_hil.simulators.drift import PowerLaw
from hzo_hil.simulators.noise import CHIP_CELL_DRIFT
from hzo_hil.simulators.twins import Twin

KEYS = np.arange(200, dtype=np.uint64)
PCM = (0.26348 / 25, 1.9650 / 25, -1.1731 / 25)


def values_of(model: Crossbar, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    low = model.parameters[0].low
    return {"weight": rng.uniform(low, model.weight_bound, (model.out_features, model.in_features))}


def rows(model: Crossbar, count: int = 200, dtype=np.float64) -> np.ndarray:
    low = -model.in_bound if model.signed_inputs else 0.0
    return np.random.default_rng(3).uniform(low, model.in_bound, (count, model.in_features)).astype(dtype)


def run(model: Crossbar, values, inputs, keys=KEYS, write: int = 1) -> np.ndarray:
    return model.run(model.program(values, write), inputs, keys[: len(inputs)])


# --- wires --------------------------------------------------------------------------------------------------------

CONDUCTANCES = np.array([[100e-6, 20e-6, 5e-6], [40e-6, 150e-6, 60e-6], [10e-6, 80e-6, 120e-6], [90e-6, 30e-6, 70e-6]])
VOLTS = np.array([0.2, 0.1, 0.3, 0.15])


@pytest.mark.parametrize(
    ("resistance", "amperes"),
    [
        (50.0, [3.92527195e-05, 4.53130115e-05, 5.11932704e-05]),
        (0.5, [4.04870921e-05, 4.74770094e-05, 5.34759145e-05]),
    ],
)
def test_currents_are_those_of_badcrossbar(resistance, amperes):
    """Computed with badcrossbar 1.1.0 (Joksas and Mehonic, SoftwareX 12, 100617, 2020): compute(VOLTS, 1 /
    CONDUCTANCES, r_i=resistance).currents.output."""
    assert np.allclose(VOLTS @ wires.exact(CONDUCTANCES, resistance), amperes, rtol=1e-8)


def test_one_cell_is_three_resistors_in_a_row():
    assert wires.exact(np.array([[1e-3]]), 100.0) == pytest.approx(1 / (1000 + 200))


def test_two_cells_of_a_row_are_a_ladder_of_resistors():
    """From the far end: cell and its column wire, plus a segment of row, beside the near cell and its wire; one
    segment."""
    g, r = np.array([[1e-3, 2e-3]]), 100.0
    near, far = 1000 + r, 500 + r
    parallel = 1 / (1 / near + 1 / (far + r))
    node = parallel / (parallel + r)
    assert np.allclose(wires.exact(g, r), [[node / near, node / (far + r)]], rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_without_resistance_wires_do_nothing_and_reciprocity_holds(shape):
    g = np.random.default_rng(0).uniform(0, 1e-4, shape)
    assert np.allclose(wires.exact(g, 0.0), g)
    assert np.allclose(wires.first_order(g, 0.0), g)
    # Driving the columns and reading the rows is the array turned over both diagonals.
    assert np.allclose(wires.exact(g, 20.0), wires.exact(g[::-1, ::-1].T, 20.0).T[::-1, ::-1], rtol=1e-9)


def test_the_first_order_is_exact_to_first_order():
    """Halving a small resistance divides the difference to Kirchhoff's solution by four."""
    g = np.random.default_rng(0).uniform(1e-6, 1e-4, (12, 8))
    off = [np.abs(wires.first_order(g, r) - wires.exact(g, r)).max() for r in (0.2, 0.1, 0.05)]
    assert off[0] / off[1] == pytest.approx(4, rel=0.05)
    assert off[1] / off[2] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("size", "resistance"), [(32, 1.0), (32, 5.0), (48, 5.0), (64, 5.0)])
def test_the_first_order_s_validity_is_as_stated(size, resistance):
    """Of what the wires take from outputs, it misses less than 3 % while they take less than a fifth."""
    rng = np.random.default_rng(size)
    g, x = rng.uniform(0, 25e-6, (size, size)), rng.uniform(-1, 1, (100, size))
    exact = x @ wires.exact(g, resistance)
    taken = np.linalg.norm(x @ g - exact)
    assert taken < 0.2 * np.linalg.norm(x @ g)
    assert np.linalg.norm(x @ wires.first_order(g, resistance) - exact) < 0.03 * taken


def test_impossible_wires_are_refused():
    for bad in (np.array([1e-6]), np.array([[-1e-6]])):
        with pytest.raises(
            ValueError, match=r"must be \[rows, columns\] and, like the resistance 1.0 ohm, not negative"
        ):
            wires.exact(bad, 1.0)
    with pytest.raises(ValueError, match="resistance -1.0 ohm"):
        wires.first_order(np.ones((2, 2)), -1.0)


# --- a perfect crossbar -------------------------------------------------------------------------------------------

PERFECT = {
    "pairs": Crossbar(6, 4),
    "pairs with leakage": Crossbar(6, 4, cells=Cells(2e-6, 30e-6), weight_bound=0.5, in_bound=2.0),
    "single cells": Crossbar(6, 4, differential=False, cells=Cells(1e-6, 10e-6), signed_inputs=False),
    "single cells, signed inputs": Crossbar(3, 5, differential=False, read_voltage=0.1),
}


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_a_perfect_crossbar_is_its_data_sheet(model, dtype, tolerance):
    values, inputs = values_of(model), rows(model, dtype=dtype)
    outputs = run(model, values, inputs)
    assert outputs.dtype == dtype
    assert np.allclose(outputs, inputs @ values["weight"].T.astype(dtype), rtol=tolerance, atol=tolerance)
    assert np.allclose(outputs, model.ideal(np, values, inputs), rtol=tolerance, atol=tolerance)


def test_weights_become_pairs_of_conductances():
    model = Crossbar(2, 2, cells=Cells(1e-6, 21e-6), weight_bound=2.0)
    g = model.conductances(np.array([[2.0, -1.0], [0.0, 5.0]]))
    assert np.allclose(g, 1e-6 * np.array([[21, 1, 1, 1], [1, 11, 21, 1]]))
    assert model.parameters[0].low == -2.0
    single = Crossbar(2, 1, differential=False, cells=Cells(1e-6, 21e-6))
    assert np.allclose(single.conductances(np.array([[0.5, -0.5]])), [[11e-6], [1e-6]])
    assert single.parameters[0].low == 0.0


def test_converters_are_where_they_are_said_to_be():
    model = Crossbar(6, 4, in_bits=4, in_bound=0.5, out_bits=5, out_bound=1.0)
    assert model.input == uniform_port(4, -0.5, 0.5)
    assert model.output == uniform_port(5, -1.0, 1.0)
    unsigned = Crossbar(6, 4, differential=False, signed_inputs=False, out_bits=5, out_bound=1.0)
    assert (unsigned.input.low, unsigned.output.low) == (0.0, 0.0)
    out = run(model, values_of(model), 4 * rows(model))
    assert np.allclose(out / model.output.step, np.rint(out / model.output.step), atol=1e-9)


# --- noise in SI units --------------------------------------------------------------------------------------------


def test_johnson_noise_is_that_of_the_column_s_conductance():
    """4 k T B g; 40,000 rows, |z| < 5 for 2 outputs: false alarm 1.2e-6."""
    model = Crossbar(8, 2, cells=Cells(1e-6, 20e-6), bandwidth=1e9, temperature=350.0, read_voltage=0.05)
    values = values_of(model)
    keys = np.arange(40_000, dtype=np.uint64)
    out = run(model, values, np.zeros((40_000, 8)), keys)
    g = model.conductances(values["weight"]).reshape(8, 2, 2).sum((0, 2))
    amperes = np.sqrt(4 * constants.k * 350 * 1e9 * g)
    expected = amperes / (0.05 * 19e-6)
    assert (np.abs(out.var(axis=0) / expected**2 - 1) * math.sqrt(20_000) < 5).all()


def test_amplifiers_and_plain_noise_add_up():
    """40,000 dark rows, |z| < 5: false alarm 6e-7; and what is declared."""
    model = Crossbar(4, 1, amplifier_noise=2e-8, noise_std=0.01, read_voltage=0.1)
    keys = np.arange(40_000, dtype=np.uint64)
    out = run(model, {"weight": np.zeros((1, 4))}, np.zeros((40_000, 4)), keys)
    expected = (2e-8 / (0.1 * 25e-6)) ** 2 + 0.01**2
    assert model.read_noise == pytest.approx(math.sqrt(expected))
    assert abs(out.var() / expected - 1) * math.sqrt(20_000) < 5


def test_read_noise_is_that_of_every_cell_drawn_anew():
    """Against cells drawn one by one: variance 20,000 rows, |z| < 7 between two estimates: false alarm below 1e-6."""
    model = Crossbar(5, 2, cells=Cells(1e-6, 20e-6, read_noise=0.05))
    values = values_of(model)
    x = rows(model, 1)
    keys = np.arange(20_000, dtype=np.uint64)
    out = run(model, values, np.repeat(x, 20_000, axis=0), keys)
    g = model.conductances(values["weight"])
    cells = g * (1 + 0.05 * np.random.default_rng(0).standard_normal((20_000, *g.shape)))
    currents = np.einsum("i,nio->no", x[0], cells).reshape(20_000, 2, 2)
    one_by_one = (currents[..., 0] - currents[..., 1]) / 19e-6
    assert np.allclose(out.mean(0), one_by_one.mean(0), atol=7 * out.std() / 100)
    assert (np.abs(out.var(0) / one_by_one.var(0) - 1) < 7 * math.sqrt(2 / 10_000)).all()


def test_write_noise_follows_its_polynomial():
    """Of phase-change cells (aihwkit's coefficients); 10,000 cells a level, |z| < 5 for 3 levels: false alarm 2e-6."""
    for share in (0.2, 0.5, 1.0):
        model = Crossbar(100, 100, differential=False, cells=Cells(write_noise=PCM))
        state = model.program({"weight": np.full((100, 100), share)}, 1)
        std = 25e-6 * (PCM[0] + PCM[1] * share + PCM[2] * share**2)
        assert model.cells.write_std(np.array(share * 25e-6)) == pytest.approx(std)
        spread = state.conductances - share * 25e-6
        assert abs(spread.var() / std**2 - 1) * math.sqrt(5000) < 5


def test_no_conductance_falls_below_zero():
    model = Crossbar(30, 30, cells=Cells(write_noise=(0.5,)))
    assert model.program({"weight": np.zeros((30, 30))}, 1).conductances.min() == 0


# --- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "clock"),
    [
        ({"cells": Cells(stuck=0.3)}, "chip"),
        ({"cells": Cells(wire_resistance=20.0)}, "chip"),
        ({"cells": Cells(wire_resistance=20.0, wire_model="exact")}, "chip"),
        ({"cells": Cells(write_noise=(0.02,))}, "write"),
        ({"cells": Cells(read_noise=0.05)}, "shot"),
        ({"noise_std": 0.05}, "shot"),
        ({"bandwidth": 1e9}, "shot"),
        ({"cells": Cells(drift=PowerLaw(0.05, 0.02))}, "drift"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_each_clock_changes_its_own_noise_only(changes, clock):
    model = Crossbar(6, 4, **changes)
    values, inputs = values_of(model), rows(model)
    state = model.program(values, 1)
    base = model.run(state, inputs, KEYS)
    assert not np.allclose(model.run(model.at(state, 50.0), inputs, KEYS), inputs @ values["weight"].T, atol=1e-5)
    assert np.array_equal(base, run(model, values, inputs, write=2)) == (clock != "write")
    assert np.array_equal(base, run(model, values, inputs, keys=KEYS + np.uint64(1000))) == (clock != "shot")
    assert model.drifts == (clock == "drift")
    later = [model.run(model.at(state, t), inputs, KEYS) for t in (50.0, 90.0, 50.0)]
    assert np.array_equal(later[0], later[2])
    assert np.array_equal(later[0], later[1]) == (clock != "drift")


def test_drift_is_a_power_law_from_the_last_write():
    law = PowerLaw(0.05, 0.02, 20.0)
    model = Crossbar(6, 4, cells=Cells(1e-6, 25e-6, drift=law))
    state = model.program(values_of(model), 1)
    assert model.drifts_from_write
    assert np.allclose(model.run(model.at(state, 0.0), np.eye(6), KEYS[:6]), model.run(state, np.eye(6), KEYS[:6]))
    left = law.values(0, 0, CHIP_CELL_DRIFT, 48, 1e4).reshape(6, 8)
    g = state.conductances * left
    expected = (g[:, ::2] - g[:, 1::2]) / 24e-6
    assert np.allclose(model.run(model.at(state, 1e4), np.eye(6), KEYS[:6]), expected, atol=1e-12)
    assert np.array_equal(model.at(model.at(state, 5.0), 1e4).weight.array, model.at(state, 1e4).weight.array)


def test_stuck_cells_are_the_same_at_every_write_and_more_with_more():
    def stuck(part: float, write: int, seed: int = 0) -> np.ndarray:
        model = Crossbar(30, 30, differential=False, cells=Cells(1e-6, stuck=part), seed=seed)
        return model.program({"weight": np.ones((30, 30))}, write).conductances == 1e-6

    assert np.array_equal(stuck(0.1, 1), stuck(0.1, 2))
    assert not np.array_equal(stuck(0.1, 1), stuck(0.1, 1, seed=1))
    assert (stuck(0.2, 1) | stuck(0.1, 1)).sum() == stuck(0.2, 1).sum() > stuck(0.1, 1).sum() > 50


def test_a_row_gets_the_same_answer_in_any_batch():
    model = Crossbar(6, 4, cells=Cells(write_noise=PCM, read_noise=0.05), noise_std=0.02)
    state = model.program(values_of(model), 1)
    inputs = rows(model)
    parts = [model.run(state, inputs[p], KEYS[p]) for p in np.array_split(np.arange(200), 7)]
    assert np.allclose(np.concatenate(parts), model.run(state, inputs, KEYS), rtol=1e-6, atol=1e-12)


# --- torch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
def test_twins_have_the_derivatives_of_differences(model):
    weight = torch.tensor(values_of(model)["weight"], requires_grad=True)
    inputs = torch.tensor(rows(model, 3), requires_grad=True)
    twin = Twin(model)
    assert torch.autograd.gradcheck(lambda x, w: twin(x, weight=w), (inputs, weight))


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.mark.parametrize("place", ["cpu", GPU])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_torch_runs_the_same_physics_and_draws(dtype, tolerance, place):
    cells = Cells(1e-6, write_noise=PCM, read_noise=0.05, wire_resistance=2.0, drift=PowerLaw(0.05))
    model = Crossbar(6, 4, cells=cells, bandwidth=1e8, noise_std=0.02)
    state = model.at(model.program(values_of(model), 1), 30.0)
    inputs = rows(model, dtype=dtype)
    expected = model.run(state, inputs, KEYS)
    out = model.run(state, torch.tensor(inputs, device=place), torch.tensor(KEYS.view(np.int64), device=place))
    assert out.dtype == getattr(torch, np.dtype(dtype).name)
    assert np.allclose(out.cpu().numpy(), expected, atol=tolerance)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "0 to 2 values: at least 1 each"),
        ({"weight_bound": 0.0}, "weight_bound must be finite and above 0"),
        ({"in_bound": math.inf}, "in_bound must be finite and above 0"),
        ({"temperature": -1.0}, "temperature must be finite and not negative"),
        ({"noise_std": -1.0}, "noise_std must be finite and not negative"),
        ({"in_bits": 1}, "2 to 24 bits"),
        ({"out_bits": 8}, "finite ends"),
    ],
)
def test_impossible_crossbars_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Crossbar(**{"in_features": 3, "out_features": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"g_min": 3e-5}, "0 <= g_min < g_max in siemens is needed, not 3e-05 and 2.5e-05"),
        ({"g_min": -1e-6}, "0 <= g_min"),
        ({"stuck": 1.5}, "from 0 to 1, not 1.5"),
        ({"read_noise": -0.1}, "read_noise must be finite and not negative"),
        ({"wire_resistance": -1.0}, "wire_resistance must be finite and not negative"),
        ({"write_noise": (math.nan,)}, "write_noise holds coefficients"),
        ({"wire_model": "spice"}, "unknown wire_model 'spice': known are 'first_order' and 'exact'"),
    ],
)
def test_impossible_cells_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cells(**arguments)
