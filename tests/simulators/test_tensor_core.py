"""Blocks of photonic cores: the data sheet is torch's linear and convolution; blocks, noise of partial sums, clocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from hzo_hil.simulators.conv_core import ConvCore
from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.patches import Patches
from hzo_hil.simulators.svd_stage import SVDStage
from hzo_hil.simulators.tensor_core import TensorCore
from hzo_hil.simulators.twins import Twin

KEYS = np.arange(60, dtype=np.uint64)
IMAGES = Patches(3, 7, 6, kernel=3, stride=2, padding=1)

# A detector that is not perfect keeps the blocks apart; its noise is far below what is compared.
APART = Detector(noise_std=1e-14)
PERFECT: dict[str, StageModel] = {
    "one block": TensorCore(4, 4, 4),
    "whole blocks": TensorCore(8, 12, 4),
    "ragged edges": TensorCore(11, 6, 4),
    "apart": TensorCore(11, 6, 4, detector=APART),
    "shared, digital": TensorCore(11, 6, 4, shared=True, partial_sums="digital"),
    "smaller than a core": TensorCore(2, 3, 8, detector=APART),
    "convolution": ConvCore(IMAGES, TensorCore(27, 5, 4)),
    "convolution, apart": ConvCore(Patches(2, 5, 5, 2), TensorCore(8, 3, 4, detector=APART)),
}


def values_of(model: StageModel, seed: int = 0) -> dict[str, np.ndarray]:
    return {"weight": np.random.default_rng(seed).standard_normal(model.parameters[0].shape)}


def rows(model: StageModel, count: int = 60, dtype=np.float64) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (count, model.in_width)).astype(dtype)


def run(model: StageModel, values, inputs, keys=KEYS, write: int = 1) -> np.ndarray:
    return model.run(model.program(values, write), inputs, keys[: len(inputs)])


# --- data sheet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 3e-5)])
def test_perfect_cores_are_their_data_sheet(model, dtype, tolerance):
    values, inputs = values_of(model), rows(model, dtype=dtype)
    outputs = run(model, values, inputs)
    assert outputs.dtype == dtype
    assert outputs.shape == (60, model.out_width)
    assert np.allclose(outputs, model.ideal(np, values, inputs), rtol=tolerance, atol=tolerance)


def test_a_matrix_is_torch_s_linear():
    model = PERFECT["ragged edges"]
    x, w = torch.tensor(rows(model)), torch.tensor(values_of(model)["weight"])
    assert torch.allclose(model.ideal(torch, {"weight": w}, x), functional.linear(x, w), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "out", "kernel", "stride", "padding"),
    [
        ((3, 7, 6), 5, 3, 2, 1),
        ((1, 5, 5), 2, 1, 1, 0),
        ((2, 4, 8), 3, 4, 3, 2),
        ((4, 6, 6), 1, 2, 2, 0),
        ((2, 3, 3), 4, 5, 1, 2),
    ],
)
def test_a_convolution_is_torch_s_conv2d(shape, out, kernel, stride, padding):
    patches = Patches(*shape, kernel, stride, padding)
    model = ConvCore(patches, TensorCore(patches.size, out, 4))
    values, inputs = values_of(model), rows(model, 4)
    expected = functional.conv2d(
        torch.tensor(inputs).reshape(4, *shape), torch.tensor(values["weight"]), stride=stride, padding=padding
    )
    assert patches.out_shape == tuple(expected.shape[2:])
    assert model.out_width == expected[0].numel()
    assert np.allclose(model.ideal(np, values, inputs), expected.reshape(4, -1).numpy(), atol=1e-12)
    assert np.allclose(run(model, values, inputs), expected.reshape(4, -1).numpy(), atol=1e-10)


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
def test_initial_weights_keep_lengths(model):
    weight = model.initial(np.random.default_rng(0))["weight"]
    assert weight.shape == model.parameters[0].shape
    singular = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False)
    assert np.allclose(singular, 1)


# --- blocks -------------------------------------------------------------------------------------------------------

WRONG = MeshErrors(coupler_std=0.1, loss_db=0.05)


def test_blocks_are_physical_cores():
    """Every block is what a stage of its size gives for its part of the matrix, with its own fabrication."""
    model = TensorCore(8, 4, 4, errors=WRONG, seed=5, index=2)
    weight = values_of(model)["weight"]
    out = run(model, {"weight": weight}, np.eye(8))
    for number, core in enumerate(model._cores):
        block = {"weight": weight[:, 4 * number : 4 * number + 4]}
        expected = core.run(core.program(block, 0), np.eye(4), KEYS[:4])
        assert np.allclose(out[4 * number : 4 * number + 4], expected, atol=1e-12)
    assert not np.allclose(out, weight.T, atol=0.05)


def test_a_shared_core_makes_the_same_mistakes_everywhere():
    block = np.random.default_rng(0).standard_normal((4, 4))
    for shared in (True, False):
        model = TensorCore(8, 8, 4, shared=shared, errors=WRONG)
        out = run(model, {"weight": np.tile(block, (2, 2))}, np.eye(8)).reshape(2, 4, 2, 4).swapaxes(1, 2)
        assert np.allclose(out, out[0, 0], atol=1e-9) == shared
    assert len(set(TensorCore(8, 8, 4, shared=True)._cores)) == 1
    assert len({c.index for c in TensorCore(8, 8, 4)._cores}) == 4


def test_the_noise_of_every_block_adds_up():
    """Each block's detectors have a noise of 0.1 times its gain (its largest singular value). Variance of 20,000 dark
    rows for 2 columns of blocks and 2 rows of them, |z| < 5: false alarm 2.4e-6."""
    model = TensorCore(8, 8, 4, detector=Detector(noise_std=0.1))
    weight = values_of(model)["weight"]
    out = run(model, {"weight": weight}, np.zeros((20_000, 8)), np.arange(20_000, dtype=np.uint64))
    gains = np.array(
        [[np.linalg.norm(weight[4 * o : 4 * o + 4, 4 * i : 4 * i + 4], 2) for i in (0, 1)] for o in (0, 1)]
    )
    expected = 0.01 * (gains**2).sum(1)
    for o in (0, 1):
        found = out[:, 4 * o : 4 * o + 4]
        assert abs(found.var() / expected[o] - 1) * math.sqrt(40_000) < 5


def test_partial_sums_are_converted_where_they_are_said_to_be():
    port = uniform_port(6, -2.0, 2.0)
    analog, digital = (TensorCore(8, 4, 4, partial_sums=s, converter=port) for s in ("analog", "digital"))
    values, x = values_of(analog), rows(analog)
    parts = [x[:, i : i + 4] @ values["weight"][:, i : i + 4].T for i in (0, 4)]
    assert np.allclose(run(analog, values, x), convert(sum(parts), port), atol=1e-9)
    assert analog.output == port
    assert (digital.output.high, digital.output.step) == (4.0, port.step)
    assert np.allclose(run(digital, values, x), convert(parts[0], port) + convert(parts[1], port), atol=1e-9)


def test_a_block_of_zeros_is_dark():
    model = TensorCore(8, 4, 4, detector=APART)
    weight = values_of(model)["weight"]
    weight[:, 4:] = 0
    assert np.allclose(run(model, {"weight": weight}, np.eye(8))[4:], 0, atol=1e-9)


def test_noise_of_a_shot_meets_every_position_of_an_image_anew():
    patches = Patches(1, 2, 8, kernel=2, stride=2)
    model = ConvCore(patches, TensorCore(4, 3, 4, errors=MeshErrors(shot_phase_std=0.05)))
    image = np.tile(np.random.default_rng(0).uniform(-1, 1, (2, 2)), (1, 4)).reshape(1, -1)
    out = run(model, values_of(model), np.repeat(image, 5, axis=0)).reshape(5, 3, 4)
    ideal = model.ideal(np, values_of(model), image).reshape(1, 3, 4)
    assert np.abs(out - ideal).max() < 1
    assert np.unique(out[:, 0].round(12)).size == 20
    noisy = ConvCore(patches, TensorCore(4, 3, 4, detector=Detector(noise_std=0.1)))
    assert np.unique(run(noisy, values_of(model), np.repeat(image, 5, axis=0)).round(12)).size == 60


def test_cores_with_noise_of_a_shot_are_stages_with_it():
    """As an SVD stage of the same size: the same spread, by its own draws. 60 rows x 4, |log ratio| < 0.6."""
    errors = MeshErrors(shot_phase_std=0.05)
    core, stage = TensorCore(4, 4, 4, errors=errors), SVDStage(4, 4, errors=errors)
    values, x = values_of(core), rows(core)
    ideal = x @ values["weight"].T
    spreads = [np.abs(run(m, values, x) - ideal).mean() for m in (core, stage)]
    assert 0.01 < spreads[0]
    assert abs(math.log(spreads[0] / spreads[1])) < 0.6


# --- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "clock"),
    [
        ({"errors": MeshErrors(coupler_std=0.05, phase_bias=0.05)}, "chip"),
        ({"errors": MeshErrors(programming_std=0.05)}, "write"),
        ({"errors": MeshErrors(shot_phase_std=0.05)}, "shot"),
        ({"detector": Detector(noise_std=0.05)}, "shot"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.parametrize("shape", ["matrix", "convolution"])
def test_each_clock_changes_its_own_noise_only(shape, changes, clock):
    patches = Patches(2, 4, 4, 2, 2)
    model = TensorCore(6, 5, 4, **changes) if shape == "matrix" else ConvCore(patches, TensorCore(8, 5, 4, **changes))
    values, inputs = values_of(model), rows(model)
    base = run(model, values, inputs)
    assert not np.allclose(base, model.ideal(np, values, inputs), atol=1e-4)
    assert np.array_equal(base, run(model, values, inputs, write=2)) == (clock != "write")
    assert np.array_equal(base, run(model, values, inputs, keys=KEYS + np.uint64(1000))) == (clock != "shot")
    parts = [run(model, values, inputs[p], KEYS[p]) for p in np.array_split(np.arange(60), 7)]
    assert np.allclose(np.concatenate(parts), base, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("flicker", [0.0, 0.01])
def test_the_phases_of_every_core_drift(flicker):
    errors = MeshErrors(phase_drift_std=0.1, phase_drift_tau_s=1.0, shot_phase_std=flicker)
    model = ConvCore(Patches(2, 4, 4, 2, 2), TensorCore(8, 5, 4, errors=errors))
    state, inputs = model.program(values_of(model), 1), rows(model)
    early, late, again = (model.run(model.at(state, t), inputs, KEYS) for t in (1.0, 8.0, 1.0))
    assert model.drifts
    assert np.array_equal(early, again)
    assert not np.allclose(early, late, atol=1e-2)
    still = TensorCore(8, 5, 4)
    assert not still.drifts
    assert still.at(state, 5.0) is state


def test_every_block_of_a_write_draws_for_itself():
    model = TensorCore(8, 8, 4, shared=True, errors=MeshErrors(programming_std=0.05))
    block = np.random.default_rng(0).standard_normal((4, 4))
    out = run(model, {"weight": np.tile(block, (2, 2))}, np.eye(8)).reshape(2, 4, 2, 4).swapaxes(1, 2)
    assert not np.allclose(out[0, 0], out[0, 1], atol=1e-3)


# --- torch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ragged edges", "convolution"])
def test_twins_have_the_derivatives_of_differences(name):
    model = PERFECT[name]
    weight = torch.tensor(values_of(model)["weight"], requires_grad=True)
    inputs = torch.tensor(rows(model, 2), requires_grad=True)
    twin = Twin(model)
    assert torch.autograd.gradcheck(lambda x, w: twin(x, weight=w), (inputs, weight))


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.mark.parametrize("place", ["cpu", GPU])
@pytest.mark.parametrize("flicker", [0.0, 0.02])
@pytest.mark.parametrize("shape", ["matrix", "convolution"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 3e-5)])
def test_torch_runs_the_same_physics_and_draws(dtype, tolerance, shape, flicker, place):
    errors = MeshErrors(coupler_std=0.05, programming_std=0.01, shot_phase_std=flicker)
    core = TensorCore(8, 5, 4, errors=errors, detector=Detector(bandwidth=20e9, noise_std=0.01))
    model = core if shape == "matrix" else ConvCore(Patches(2, 4, 4, 2, 1, 1), core)
    inputs = rows(model, dtype=dtype)
    state = model.program(values_of(model), 1)
    expected = model.run(state, inputs, KEYS)
    out = model.run(state, torch.tensor(inputs, device=place), torch.tensor(KEYS.view(np.int64), device=place))
    assert out.dtype == getattr(torch, np.dtype(dtype).name)
    assert np.allclose(out.cpu().numpy(), expected, atol=tolerance)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_features": 0}, "3 to 0 values: at least 1 each"),
        ({"core": 1}, "a core has at least 2 x 2 ports, not 1"),
        ({"partial_sums": "optical"}, "partial_sums are 'analog' or 'digital', not 'optical'"),
        ({"detector": Detector("intensity")}, "signed outputs need a homodyne detector"),
    ],
)
def test_impossible_cores_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TensorCore(**{"in_features": 3, "out_features": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 4, 2), "channels must be at least 1, not 0"),
        ((1, 4, 4, 2, 0), "stride must be at least 1, not 0"),
        ((1, 4, 4, 2, 1, -1), "padding must not be negative, not -1"),
        ((1, 4, 3, 6, 1, 1), "a kernel of 6 does not fit on 4 x 3 pixels with 1 of padding"),
    ],
)
def test_impossible_convolutions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Patches(*arguments)


def test_a_matrix_must_fit_the_patches():
    with pytest.raises(ValueError, match=r"a patch has 27 values .* but the matrix takes 9"):
        ConvCore(IMAGES, TensorCore(9, 5))
