"""Propagation against closed forms of wave optics, then stages of phase masks: errors, clocks, detectors, twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import fresnel

from hzo_hil.simulators.angular_spectrum import propagate, transfer
from hzo_hil.simulators.converters import uniform_port
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.diffractive import Diffractive, OpticsErrors
from hzo_hil.simulators.drift import Wander
from hzo_hil.simulators.image_plane import spots
from hzo_hil.simulators.noise import CHIP_SHIFT
from hzo_hil.simulators.twins import Twin

GREEN = 532e-9
KEYS = np.arange(40, dtype=np.uint64)


def axis(pixels: int, pitch: float) -> np.ndarray:
    return (np.arange(pixels) - (pixels - 1) / 2) * pitch


# --- free space ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part_of_rayleigh", [0.2, 0.6, 1.0])
def test_a_gaussian_beam_has_its_width_phase_and_curvature(part_of_rayleigh):
    """Siegman, Lasers, ch. 17: u = w0/w exp(-r^2/w^2 + i (k z + k r^2 / 2R - arctan(z/zR))), w0 = 100 um, paraxial."""
    pixels, pitch, waist = 192, 4.5e-6, 100e-6
    rayleigh = math.pi * waist**2 / GREEN
    z = part_of_rayleigh * rayleigh
    x = axis(pixels, pitch)
    r2 = x[:, None] ** 2 + x**2
    found = propagate(np, np.exp(-r2 / waist**2).astype(complex), transfer(pixels, pitch, GREEN, z))
    width, radius = waist * math.hypot(1, z / rayleigh), z * (1 + (rayleigh / z) ** 2)
    k = 2 * math.pi / GREEN
    phase = k * z + k * r2 / (2 * radius) - math.atan(z / rayleigh)
    exact = waist / width * np.exp(-r2 / width**2 + 1j * phase)
    assert np.abs(found - exact).max() < 3e-5
    intensity = np.abs(found) ** 2
    assert 2 * math.sqrt((x[:, None] ** 2 * intensity).sum() / intensity.sum()) == pytest.approx(width, rel=1e-5)
    centre = found[95:97, 95:97].mean() * np.exp(-1j * k * z)
    assert np.angle(centre) == pytest.approx(-math.atan(z / rayleigh), abs=1e-3)


@pytest.mark.parametrize(("half", "z", "fresnel_number"), [(100, 20e-3, 3.76), (25, 20e-3, 0.235)])
def test_a_slit_diffracts_as_fresnel_s_integrals_say(half, z, fresnel_number):
    """A square slit (Goodman, Introduction to Fourier Optics, 4.5.1), between the near and the far field. The rest is
    what the band limit takes from its sharp edges: 0.3 % of the intensity's norm."""
    pixels, pitch = 512, 2e-6
    assert (half * pitch) ** 2 / (GREEN * z) == pytest.approx(fresnel_number, rel=2e-2)
    x = axis(pixels, pitch)
    inside = (np.abs(x) < half * pitch).astype(float)
    field = propagate(np, np.outer(inside, inside).astype(complex), transfer(pixels, pitch, GREEN, z))
    scale = math.sqrt(2 / (GREEN * z))
    (s1, c1), (s2, c2) = (fresnel(scale * (end - x)) for end in (half * pitch, -half * pitch))
    line = ((c1 - c2) ** 2 + (s1 - s2) ** 2) / 2
    exact = np.outer(line, line)
    assert np.linalg.norm(np.abs(field) ** 2 - exact) < 4e-3 * np.linalg.norm(exact)


def test_plane_waves_keep_their_size_and_turn_by_their_own_axial_frequency():
    pixels, pitch, z = 24, 1e-6, 3e-6
    gap = transfer(pixels, pitch, GREEN, z)
    frequency = np.fft.fftfreq(2 * pixels, pitch)
    for down, right in ((0, 0), (3, 5), (-4, 2)):
        u, v = frequency[down], frequency[right]
        assert gap[down, right] == pytest.approx(
            np.exp(2j * math.pi * z * math.sqrt(GREEN**-2 - u**2 - v**2)), abs=1e-9
        )


def test_evanescent_waves_are_dropped():
    """At pixels of about a quarter of the wavelength, frequencies beyond 1 / wavelength do not travel."""
    gap = transfer(32, 0.26 * GREEN, GREEN, 0.0)
    frequency = np.fft.fftfreq(64, 0.26 * GREEN)
    travels = frequency[:, None] ** 2 + frequency**2 < GREEN**-2
    assert np.array_equal(np.abs(gap) > 0, travels)
    assert np.allclose(np.abs(gap[travels]), 1)


@pytest.mark.parametrize("z", [1e-3, 1e-2, 1e-1])
def test_the_band_limit_is_that_of_matsushima_and_shimobaba(z):
    """Eq. 13 of the paper, for waves in a plane: |u| < 1 / (wavelength sqrt((2 du z)^2 + 1))."""
    pixels, pitch = 256, 2e-6
    step = 1 / (2 * pixels * pitch)
    limit = 1 / (GREEN * math.hypot(2 * step * z, 1))
    frequency = np.fft.fftfreq(2 * pixels, pitch)
    passed = np.abs(frequency[np.abs(transfer(pixels, pitch, GREEN, z)[0]) > 0]).max()
    assert limit - step <= passed <= limit or passed == np.abs(frequency).max() < limit


def test_light_that_stays_on_the_grid_is_neither_lost_nor_made():
    x = axis(128, 5e-6)
    beam = np.exp(-(x[:, None] ** 2 + x**2) / (80e-6) ** 2)
    for dtype, tolerance in ((np.complex128, 1e-12), (np.complex64, 1e-6)):
        gap = transfer(128, 5e-6, GREEN, 5e-3)
        out = propagate(np, beam.astype(dtype), gap.astype(dtype))
        assert out.dtype == dtype
        assert (np.abs(out) ** 2).sum() / (beam**2).sum() == pytest.approx(1, abs=tolerance)


def test_no_field_gains_power():
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((20, 16, 16)) + 1j * rng.standard_normal((20, 16, 16))
    out = propagate(np, fields, transfer(16, 3e-6, GREEN, 1e-4))
    assert ((np.abs(out) ** 2).sum((1, 2)) <= (np.abs(fields) ** 2).sum((1, 2)) * (1 + 1e-12)).all()


def test_two_distances_are_their_sum():
    """For a beam well inside the grid: neither its edge nor the band limit matters."""
    x = axis(128, 5e-6)
    beam = np.exp(-(x[:, None] ** 2 + x**2) / (80e-6) ** 2).astype(complex)
    twice = propagate(np, propagate(np, beam, transfer(128, 5e-6, GREEN, 2e-3)), transfer(128, 5e-6, GREEN, 3e-3))
    assert np.allclose(twice, propagate(np, beam, transfer(128, 5e-6, GREEN, 5e-3)), atol=1e-7)


def test_light_beyond_an_edge_does_not_come_back_at_the_other():
    field = np.zeros((32, 32), complex)
    field[0, 16] = 1
    out = np.abs(propagate(np, field, transfer(32, 2e-6, GREEN, 1e-5))) ** 2
    assert out[20:].sum() < 1e-4 * out.sum()


@pytest.mark.parametrize("shift", [(3, -2), (0.5, 0.25)])
def test_a_shift_moves_the_field(shift):
    x = axis(64, 5e-6)

    def beam(down: float, right: float) -> np.ndarray:
        return np.exp(-((x[:, None] - down * 5e-6) ** 2 + (x - right * 5e-6) ** 2) / (40e-6) ** 2).astype(complex)

    out = propagate(np, beam(0, 0), transfer(64, 5e-6, GREEN, 0.0, shift))
    assert np.allclose(out, beam(*shift), atol=1e-6)


# --- stages -------------------------------------------------------------------------------------------------------

PERFECT = {
    "detectors": Diffractive(16, 2, spots(16, 4, 3), input_pixels=4, scale=3.0),
    "camera": Diffractive(12, 1, camera=6, input_pixels=3),
    "every pixel": Diffractive(8, 3, distance=1e-3),
    "as many inputs as pixels": Diffractive(20, 1, spots(20, 3, 4)),
    "too wide for a matrix": Diffractive(36, 1, spots(36, 3, 4)),
}


def values_of(model: Diffractive, seed: int = 0) -> dict[str, np.ndarray]:
    return model.initial(np.random.default_rng(seed))


def images(model: Diffractive, rows: int = 40, dtype=np.float64) -> np.ndarray:
    return np.random.default_rng(7).uniform(-1, 1, (rows, model.in_width)).astype(dtype)


def run(model: Diffractive, values, inputs, keys=KEYS, write: int = 1) -> np.ndarray:
    return model.run(model.program(values, write), inputs, keys[: len(inputs)])


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_a_perfect_stage_is_its_data_sheet(model, dtype, tolerance):
    values, inputs = values_of(model), images(model, dtype=dtype)
    outputs = run(model, values, inputs)
    assert outputs.dtype == dtype
    assert outputs.shape == (40, model.out_width)
    assert np.allclose(outputs, model.ideal(np, values, inputs), rtol=tolerance, atol=tolerance)


def test_the_matrix_and_the_walk_agree(monkeypatch):
    model = PERFECT["detectors"]
    state = model.program(values_of(model), 1)
    by_matrix = model.run(state, images(model), KEYS)
    assert "matrix" in state.made
    monkeypatch.setattr("hzo_hil.simulators.diffractive._COMPILED", 15)
    assert np.allclose(model.run(state, images(model), KEYS), by_matrix, rtol=1e-10)
    assert not model._fixed


def test_a_row_gets_the_same_answer_in_any_batch(monkeypatch):
    model = Diffractive(
        16, 2, spots(16, 4, 3), errors=OpticsErrors(shot_phase_std=0.2), detector=Detector("intensity", noise_std=0.1)
    )
    state = model.program(values_of(model), 1)
    inputs = images(model)
    whole = model.run(state, inputs, KEYS)
    parts = [model.run(state, inputs[p], KEYS[p]) for p in np.array_split(np.arange(40), 7)]
    assert np.allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-9)
    monkeypatch.setattr("hzo_hil.simulators.diffractive._BYTES", 1)
    assert np.allclose(model.run(state, inputs, KEYS), whole, rtol=1e-6, atol=1e-9)
    assert model.run(state, inputs[:0], KEYS[:0]).shape == (0, 4)


def test_a_lens_gathers_the_light():
    """A mask with the phase of a lens puts a plane wave into the diffraction-limited spot of its focus."""
    pixels, pitch, focus = 64, 8e-6, 20e-3
    model = Diffractive(pixels, pitch=pitch, distance=focus, detectors=((30, 30, 4, 4), (0, 0, 64, 64)))
    x = axis(pixels, pitch)
    lens = np.mod(-math.pi * (x[:, None] ** 2 + x**2) / (GREEN * focus), 2 * math.pi)
    flat, focused = (run(model, {"phase": p[None]}, np.ones((1, pixels**2)))[0] for p in (np.zeros((64, 64)), lens))
    airy = GREEN * focus / (pixels * pitch) / pitch  # half width of the spot in pixels
    assert airy < 3
    assert focused[0] > 60 * flat[0]
    assert focused[0] * 16 > 0.5 * focused[1] * 4096


def test_inputs_cover_squares_of_pixels():
    model = Diffractive(6, input_pixels=3, distance=0.0)
    inputs = np.arange(9.0)[None]
    out = run(model, {"phase": np.zeros((1, 6, 6))}, inputs).reshape(6, 6)
    assert np.allclose(out, np.kron(inputs.reshape(3, 3), np.ones((2, 2))) ** 2, atol=1e-10)


def test_detectors_and_cameras_take_means():
    picture = np.random.default_rng(0).uniform(0, 1, (1, 36))
    phase = {"phase": np.zeros((1, 6, 6))}
    area = Diffractive(6, distance=0.0, detectors=((1, 2, 3, 2), (0, 0, 1, 1)), scale=2.0)
    intensity = picture.reshape(6, 6) ** 2
    assert np.allclose(run(area, phase, picture), [[2 * intensity[1:4, 2:4].mean(), 2 * intensity[0, 0]]])
    camera = Diffractive(6, distance=0.0, camera=2)
    assert np.allclose(run(camera, phase, picture), intensity.reshape(2, 3, 2, 3).mean((1, 3)).reshape(1, 4))


@pytest.mark.parametrize(("count", "side"), [(1, 8), (4, 8), (10, 5), (3, 7), (7, 4), (2, 10)])
def test_spots_lie_apart_and_inside(count, side):
    used = np.zeros((32, 32), int)
    places = spots(32, count, side)
    assert len(places) == count
    for top, left, height, width in places:
        assert min(top, left) >= 0
        assert (height, width) == (side, side)
        used[top : top + side, left : left + side] += 1
    assert used.max() == 1
    assert used.sum() == count * side**2


# --- imperfections and their clocks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "clock"),
    [
        ({"errors": OpticsErrors(shift_std=0.5)}, "chip"),
        ({"errors": OpticsErrors(distance_std=1e-4)}, "chip"),
        ({"errors": OpticsErrors(mask_std=0.2)}, "chip"),
        ({"errors": OpticsErrors(loss_db=0.5)}, "chip"),
        ({"errors": OpticsErrors(phase_bits=3)}, "chip"),
        ({"errors": OpticsErrors(programming_std=0.1)}, "write"),
        ({"errors": OpticsErrors(shot_phase_std=0.1)}, "shot"),
        ({"detector": Detector("intensity", noise_std=0.1)}, "shot"),
        ({"drift": Wander(std=0.5)}, "drift"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_each_clock_changes_its_own_noise_only(changes, clock):
    model = Diffractive(16, 2, spots(16, 4, 3), input_pixels=4, **changes)
    perfect = Diffractive(16, 2, spots(16, 4, 3), input_pixels=4)
    values, inputs = values_of(model), images(model)
    state = model.program(values, 1)
    base = model.run(state, inputs, KEYS)
    assert not np.allclose(model.run(model.at(state, 3.0), inputs, KEYS), perfect.ideal(np, values, inputs), atol=1e-5)
    assert np.array_equal(base, run(model, values, inputs, write=2)) == (clock != "write")
    assert np.array_equal(base, run(model, values, inputs, keys=KEYS + np.uint64(1000))) == (clock != "shot")
    later = [model.run(model.at(state, t), inputs, KEYS) for t in (3.0, 9.0, 3.0)]
    assert np.array_equal(later[0], later[2])
    assert np.array_equal(later[0], later[1]) == (clock != "drift")


def test_a_mask_moved_down_is_a_picture_moved_up():
    """Whole pixels: mask and detectors displaced together see the picture displaced the other way."""
    model = Diffractive(24, distance=2e-4, pitch=8e-6, errors=OpticsErrors(shift_std=1.0))
    places = np.array([[2.0, -1.0], [2.0, -1.0]])
    model.__dict__["_drawn"] = lambda tag, shape: places if tag == CHIP_SHIFT else np.zeros(shape)
    picture = np.zeros((24, 24))
    picture[8:16, 9:15] = np.random.default_rng(0).uniform(0.2, 1, (8, 6))
    values = values_of(model)
    moved = np.roll(picture, (-2, 1), (0, 1))
    expected = Diffractive(24, distance=2e-4, pitch=8e-6).ideal(np, values, moved.reshape(1, -1))
    assert np.allclose(run(model, values, picture.reshape(1, -1)), expected, atol=1e-9)


def test_chips_differ_and_another_strength_is_the_same_chip():
    def drawn(std: float, seed: int) -> np.ndarray:
        model = Diffractive(8, errors=OpticsErrors(mask_std=std), seed=seed)
        return model.program({"phase": np.full((1, 8, 8), 1.0)}, 1).phases - 1

    assert np.allclose(2 * drawn(0.1, 0), drawn(0.2, 0))
    assert not np.allclose(drawn(0.1, 0), drawn(0.1, 1), atol=0.01)


def test_loss_is_in_decibels_of_power():
    inputs = images(PERFECT["camera"])
    lossy = Diffractive(12, 3, camera=6, input_pixels=3, errors=OpticsErrors(loss_db=1.0))
    clear = Diffractive(12, 3, camera=6, input_pixels=3)
    assert np.allclose(run(lossy, values_of(lossy), inputs) / run(clear, values_of(clear), inputs), 10**-0.3)


def test_modulators_have_levels():
    full, part = OpticsErrors(phase_bits=2), OpticsErrors(phase_bits=2, phase_range=math.pi)
    assert np.allclose(full.levels, np.arange(5) * math.pi / 2)
    assert np.allclose(part.levels, np.arange(4) * math.pi / 3)
    model = Diffractive(4, errors=full)
    assert (model.parameters[0].period, model.parameters[0].edge) == (2 * math.pi, "wrap")
    asked = np.full((1, 4, 4), 6.2)
    asked[0, 0, 0] = 1.7
    state = model.program({"phase": asked}, 1)
    assert np.allclose(np.exp(1j * state.phases[0, 1]), 1)
    assert state.phases[0, 0, 0] == pytest.approx(math.pi / 2)
    limited = Diffractive(4, errors=part)
    assert (limited.parameters[0].period, limited.parameters[0].high) == (0, math.pi)
    assert limited.program({"phase": asked}, 1).phases.max() == pytest.approx(math.pi)


def test_ports_saturate_and_quantise():
    model = Diffractive(8, input_pixels=4, input=uniform_port(4, -0.5, 0.5), output=uniform_port(6, 0.0, 1.0))
    out = run(model, values_of(model), 3 * images(model))
    assert np.allclose(out / model.output.step, np.rint(out / model.output.step), atol=1e-9)


# --- torch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [PERFECT["camera"], Diffractive(6, 2, spots(6, 2, 2), input_pixels=2, scale=2.0)])
def test_twins_have_the_derivatives_of_differences(model):
    values = torch.tensor(values_of(model)["phase"], requires_grad=True)
    inputs = torch.tensor(images(model, 2), requires_grad=True)
    twin = Twin(model)
    assert torch.autograd.gradcheck(lambda x, phase: twin(x, phase=phase), (inputs, values))


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.mark.parametrize("place", ["cpu", GPU])
@pytest.mark.parametrize("flicker", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_torch_runs_the_same_physics_and_draws(dtype, tolerance, flicker, place):
    errors = OpticsErrors(shift_std=0.3, mask_std=0.1, programming_std=0.05, shot_phase_std=flicker, phase_bits=6)
    detector = Detector("intensity", bandwidth=1e9, full_scale=1e-6, noise_std=0.01)
    model = Diffractive(16, 2, spots(16, 4, 3), 4, errors=errors, detector=detector, scale=2.0)
    inputs = images(model, dtype=dtype)
    state = model.program(values_of(model), 1)
    expected = model.run(state, inputs, KEYS)
    out = model.run(state, torch.tensor(inputs, device=place), torch.tensor(KEYS.view(np.int64), device=place))
    assert out.dtype == getattr(torch, np.dtype(dtype).name)
    assert np.allclose(out.cpu().numpy(), expected, rtol=1e-4, atol=tolerance)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "at least 1 mask, not 0"),
        ({"input_pixels": 5}, "input_pixels 5 do not fit on masks of 16 pixels: take a divisor"),
        ({"camera": -1}, "a camera of -1 pixels does not fit on 16"),
        ({"detectors": ((10, 0, 8, 2),)}, "a detector at row 10, column 0 of 8 x 2 pixels leaves the 16 x 16 pixels"),
        ({"detector": Detector("homodyne")}, "a camera reads intensities, not homodyne"),
        ({"scale": -1.0}, "scale must be finite and above 0"),
        ({"distance": -1e-3}, "distance -0.001 m not negative"),
        ({"pitch": 0.0}, "pitch 0.0 m"),
    ],
)
def test_impossible_optics_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Diffractive(**{"pixels": 16, **arguments})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_db": -0.1}, "loss_db must be finite and not negative"),
        ({"shift_std": math.inf}, "shift_std must be finite"),
        ({"phase_range": 7.0}, "at most 2 pi"),
        ({"phase_range": 0.0}, "phase_range must be above 0"),
        ({"phase_bits": 13}, "1 to 12 bits"),
    ],
)
def test_impossible_errors_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        OpticsErrors(**changes)


def test_detectors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"10 detectors of 12 x 12 pixels do not fit on 32 x 32"):
        spots(32, 10, 12)
