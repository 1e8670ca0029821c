"""Rings and banks against closed forms, a full solution of the fields, torchonn's numbers and energy balance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import constants

from hzo_hil.simulators.converters import uniform_port
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.drift import Wander
from hzo_hil.simulators.ring import Ring
from hzo_hil.simulators.ring_bank import RingBank
from hzo_hil.simulators.ring_heaters import BankErrors
from hzo_hil.simulators.twins import Twin

RINGS = {
    "lossless": Ring(),
    "asymmetric": Ring(0.95, 0.8, 0.97),
    "hq": Ring(0.99, 0.99, 0.987),
    "lq": Ring(0.85, 0.85, 0.845),
    "all-pass": Ring(0.9, 1.0, 0.88),
}
PHASES = np.linspace(-2 * math.pi, 2 * math.pi, 2001)
KEYS = np.arange(64, dtype=np.uint64)


def values_of(bank: RingBank, seed: int = 0) -> dict[str, np.ndarray]:
    return bank.initial(np.random.default_rng(seed))


def powers(bank: RingBank, rows: int = 64, dtype=np.float64) -> np.ndarray:
    low = -1.0 if bank.signed else 0.0
    return np.random.default_rng(3).uniform(low, 1, (rows, bank.wavelengths)).astype(dtype)


def run(bank: RingBank, values, inputs, keys=KEYS, write: int = 1) -> np.ndarray:
    return bank.run(bank.program(values, write), inputs, keys[: len(inputs)])


# --- one ring -----------------------------------------------------------------------------------------------------


def fields_of(ring: Ring, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Powers through, dropped and through on the drop bus, from the couplers' equations for the fields.

    Couplers [[r, i k], [i k, r]]; half of the loss and of the phase on each side of the ring. Input at one bus only.
    """
    found = []
    half = math.sqrt(ring.a) * np.exp(0.5j * phase)
    k1, k2 = math.sqrt(1 - ring.r1**2), math.sqrt(1 - ring.r2**2)
    for p in half:
        # Unknowns: field in the ring behind coupler 1 and behind coupler 2.
        matrix = np.array([[1, -ring.r1 * p], [-ring.r2 * p, 1]])
        upper = np.linalg.solve(matrix, [1j * k1, 0])
        lower = np.linalg.solve(matrix, [0, 1j * k2])
        through = ring.r1 + 1j * k1 * p * upper[1]
        drop = 1j * k2 * p * upper[0]
        back = ring.r2 + 1j * k2 * p * lower[0]
        found.append([abs(through) ** 2, abs(drop) ** 2, abs(back) ** 2])
    return tuple(np.array(found).T)


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
def test_the_closed_forms_solve_the_couplers_equations(ring):
    phases = PHASES[::20]
    through, drop, back = fields_of(ring, phases)
    assert np.allclose(ring.through(np, phases), through, atol=1e-12)
    assert np.allclose(ring.drop(np, phases), drop, atol=1e-12)
    assert np.allclose(ring.through_drop_bus(np, phases), back, atol=1e-12)


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
def test_light_is_never_amplified_and_kept_without_loss(ring):
    total = ring.through(np, PHASES) + ring.drop(np, PHASES)
    assert total.max() <= 1 + 1e-12
    assert (total.min() > 1 - 1e-12) == (ring.a == 1)
    assert min(ring.through(np, PHASES).min(), ring.drop(np, PHASES).min()) >= -1e-15


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
def test_half_height_is_where_fwhm_says(ring):
    """Of the dip behind the ring, which every ring has: its depth halves at fwhm / 2 from the resonance."""
    edge = math.pi * ring.fwhm / ring.free_spectral_range
    depth = 1 - ring.through(np, np.array([0.0, edge, -edge]))
    assert np.allclose(depth[1:], depth[0] / 2, rtol=1e-12)
    assert ring.quality == pytest.approx(constants.c / ring.wavelength / ring.fwhm)


def test_a_fine_ring_is_a_lorentzian_with_the_textbook_width():
    """Bogaerts et al. (2012), eq. 10: fwhm = (1 - r1 r2 a) c / (pi n_g L sqrt(r1 r2 a)); exact as r1 r2 a goes to 1."""
    ring = Ring(0.999, 0.999, 0.9995)
    around = 0.999**2 * 0.9995
    length = 2 * math.pi * ring.radius
    assert ring.fwhm == pytest.approx(
        (1 - around) * constants.c / (math.pi * ring.group_index * length * math.sqrt(around)), rel=1e-6
    )
    offset = np.linspace(-10, 10, 201) * ring.fwhm
    lorentz = 1 / (1 + (2 * offset / ring.fwhm) ** 2)
    line = ring.drop(np, 2 * math.pi * offset / ring.free_spectral_range)
    assert np.abs(line / line.max() - lorentz).max() < 1e-5


def test_a_symmetric_ring_without_loss_drops_all_on_resonance():
    assert Ring(0.9, 0.9, 1.0).drop(np, 0.0) == pytest.approx(1.0)
    assert Ring(0.9, 0.9 * 0.95, 0.95).reach[1] < 1


def test_critical_coupling_leaves_nothing_behind_the_ring():
    assert Ring(0.9, 1.0, 0.9).through(np, 0.0) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("r", "a", "bandwidth_nm", "quality", "agrees"),
    [
        (0.99, 0.987, 0.2278, 6754.780509, True),
        (0.93, 0.925, 1.5068, 1021.1965755, True),
        (0.85, 0.845, 2.522, 610.1265, False),
    ],
    ids=["HQ", "MQ", "LQ"],
)
def test_torchonn_s_bandwidths(r, a, bandwidth_nm, quality, agrees):
    """Stored in torchonn/devices/mrr.py (classes MRRConfig_5um_*): one bus, index 2.4 at 1538.739 nm without
    dispersion, width where half of the light passes. HQ and MQ follow from the line shape to 0.5 %; LQ does not
    follow from its own r and a (which give 3.34 nm), so it is not reproduced."""
    ring = Ring(r, 1.0, a, radius=5e-6, group_index=2.4, wavelength=1538.739e-9)
    phases = np.linspace(0, math.pi, 1_000_001)
    half = 2 * phases[np.searchsorted(ring.through(np, phases), 0.5)]
    hertz = half / (2 * math.pi) * ring.free_spectral_range
    nanometres = hertz * ring.wavelength**2 / constants.c * 1e9
    assert (abs(nanometres / bandwidth_nm - 1) < 5e-3) == agrees
    assert (abs(ring.wavelength * 1e9 / nanometres / quality - 1) < 5e-3) == agrees
    if not agrees:
        assert nanometres == pytest.approx(3.337, rel=1e-3)


def test_torchonn_s_rings_with_a_second_bus():
    """What the presets of the design come to in a weight bank: computed here, kept against change."""
    found = [Ring(r, r, a) for r, a in ((0.99, 0.987), (0.93, 0.925), (0.85, 0.845))]
    assert [round(ring.quality) for ring in found] == [4514, 669, 297]
    assert [round(ring.reach[1], 3) for ring in found] == [0.211, 0.301, 0.315]
    assert [round(ring.reach[0], 3) for ring in found] == [-1.0, -0.984, -0.923]


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
def test_weights_are_inverted_to_phases(ring):
    low, high = ring.reach
    wanted = np.linspace(low, high, 501)
    phases = ring.phase_of(wanted)
    assert np.allclose(ring.drop(np, phases) - ring.through(np, phases), wanted, atol=1e-9)
    assert phases.min() >= 0
    assert phases.max() <= math.pi
    everywhere = ring.drop(np, PHASES) - ring.through(np, PHASES)
    assert everywhere.min() == pytest.approx(low)
    assert everywhere.max() == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ring_takes_tensors(dtype):
    ring = RINGS["hq"]
    phase = torch.linspace(-0.3, 0.3, 61, dtype=dtype)
    assert np.allclose(
        ring.drop(torch, phase), ring.drop(np, phase.double().numpy()), atol=1e-4 if dtype == torch.float32 else 1e-12
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r1": 1.0}, r"r1 1.0 must be in \(0, 1\)"),
        ({"r2": 0.0}, r"r2 0.0 in \(0, 1\]"),
        ({"a": 1.01}, "a ring has no gain"),
        ({"a": 0.0}, r"must be in \(0, 1\]"),
        ({"radius": -1e-6}, "radius must be finite and above 0"),
        ({"wavelength": math.inf}, "wavelength must be finite and above 0"),
    ],
)
def test_impossible_rings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Ring(**changes)


def test_a_ring_without_a_resonance_has_no_width():
    with pytest.raises(ValueError, match="never falls to half its height"):
        _ = Ring(0.3, 0.3, 0.5).fwhm


# --- banks --------------------------------------------------------------------------------------------------------

PERFECT = {
    "weights": RingBank(6, 4, wdm=False, scale=1.7),
    "signed weights": RingBank(6, 4, wdm=False, signed=True),
    "phases": RingBank(6, 4, trained="phase", ring=Ring(0.9, 0.92, 0.97)),
    "phases of lone rings": RingBank(5, 3, trained="phase", wdm=False, scale=0.5),
    "one ring": RingBank(1, 2, trained="phase"),
}


@pytest.mark.parametrize("bank", PERFECT.values(), ids=PERFECT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_a_perfect_bank_is_its_data_sheet(bank, dtype, tolerance):
    values, inputs = values_of(bank), powers(bank, dtype=dtype)
    outputs = run(bank, values, inputs)
    assert outputs.dtype == dtype
    assert outputs.shape == (64, bank.outputs)
    assert np.allclose(outputs, bank.ideal(np, values, inputs), rtol=tolerance, atol=tolerance)


def test_drop_and_through_share_the_light():
    for ring, kept in ((Ring(0.9, 0.8, 1.0), True), (Ring(0.9, 0.8, 0.95), False)):
        bank = RingBank(8, 5, ring, trained="phase")
        phases = np.random.default_rng(0).uniform(0, 2 * math.pi, (5, 8))
        drop, through = bank._bank(np, phases)
        assert (drop > 0).all()
        assert (through > 0).all()
        assert np.allclose(drop + through, 1, atol=1e-12) == kept
        assert (drop + through).max() <= 1 + 1e-12


def test_two_rings_in_a_row_are_a_pile_of_plates():
    """The mean over the phase between two rings of their interference (a Fabry-Perot) is the sum of powers."""
    ring = Ring(0.8, 0.85, 0.96)
    bank = RingBank(2, 1, ring, trained="phase")
    phases = np.array([[0.4, 1.1]])
    drop, through = bank._bank(np, phases)
    for channel in range(2):
        met = phases[0] + bank._offsets.array[:, channel]
        t, d, back = ring.through(np, met), ring.drop(np, met), ring.through_drop_bus(np, met)
        turn = np.exp(1j * np.linspace(0, 2 * math.pi, 4096, endpoint=False))
        passed = np.sqrt(t[0] * t[1]) / (1 - np.sqrt(d[0] * d[1]) * turn)
        assert through[0, channel] == pytest.approx((np.abs(passed) ** 2).mean(), rel=1e-12)
        assert drop[0, channel] == pytest.approx(d[0] + t[0] * d[1] * back[0] / (1 - d[0] * d[1]), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rings_without_loss_on_one_channel_drop_it_once(dtype):
    """Both on the resonance of channel 0: the first drops all of it, and nothing is left to bounce."""
    bank = RingBank(2, 1, Ring(0.9, 0.9), trained="phase")
    phases = np.array([[0.0, -bank._offsets.array[1, 0]]], dtype)
    drop, through = bank._bank(np, phases)
    assert drop[0, 0] == pytest.approx(1, abs=1e-6)
    assert through[0, 0] == pytest.approx(0, abs=1e-6)
    assert np.allclose(drop + through, 1, atol=1e-6)


def test_far_channels_do_not_disturb_each_other():
    """WDM crosstalk of a Lorentzian falls with the square of the spacing in widths."""
    errors = []
    for r in (0.99, 0.98, 0.96):
        ring = Ring(r, r)
        bank = RingBank(4, 3, ring, trained="phase")
        phases = ring.phase_of(np.random.default_rng(0).uniform(-0.9, 0.9, (3, 4)))
        drop, through = bank._bank(np, phases)
        errors.append(np.abs(drop - through - (ring.drop(np, phases) - ring.through(np, phases))).max() / ring.fwhm**2)
    assert max(errors) / min(errors) < 1.3
    assert errors[0] * Ring(0.99, 0.99).fwhm ** 2 < 5e-3


def test_weights_meet_the_other_rings_unless_told_otherwise():
    values = values_of(RingBank(8, 4))
    alone, together = (run(RingBank(8, 4, wdm=wdm), values, np.eye(8)).T for wdm in (False, True))
    assert np.allclose(alone, values["weight"], atol=1e-12)
    assert 1e-3 < np.abs(together - alone).max() < 0.2


def test_weights_out_of_reach_are_counted_and_clipped():
    bank = RingBank(3, 2, Ring(0.93, 0.93, 0.925), wdm=False)
    high = bank.parameters[0].high
    weight = np.full((2, 3), -0.5)
    weight[0, 1], weight[1, 2] = high + 0.25, high + 0.5
    state = bank.program({"weight": weight}, 1)
    assert state.out_of_reach == 2
    assert state.worst_miss == pytest.approx(0.5)
    assert run(bank, {"weight": weight}, np.eye(3))[1, 0] == pytest.approx(high)
    assert bank.program({"weight": np.full((2, 3), high)}, 1).out_of_reach == 0


def test_negative_powers_are_cut_off_unless_inputs_are_signed():
    values = values_of(PERFECT["weights"])
    inputs = np.array([[-1.0, 0.5, -0.2, 0.0, 1.0, 0.3]])
    out = run(PERFECT["weights"], values, inputs)
    assert np.allclose(out, run(PERFECT["weights"], values, np.maximum(inputs, 0)))
    assert PERFECT["weights"].input.low == 0
    values = values_of(PERFECT["signed weights"])
    signed = run(PERFECT["signed weights"], values, inputs)
    assert np.allclose(signed, inputs @ values["weight"].T, atol=1e-12)


def test_both_diodes_have_shot_noise_and_share_one_amplifier():
    """Variance of 20,000 rows against 2 q (I_drop + I_through + 2 I_dark) B + 4 k T B / R; |z| < 5: false alarm 6e-7
    for each of two."""
    detector = Detector("intensity", responsivity=0.8, dark_current=1e-6, load=1e4, bandwidth=1e10, full_scale=1e-4)
    bank = RingBank(1, 1, Ring(0.9, 0.9, 0.99), trained="phase", detector=detector, scale=2.0)
    keys = np.arange(20_000, dtype=np.uint64)
    values = {"phase": np.array([[0.1]])}
    out = run(bank, values, np.ones((20_000, 1)), keys)
    lit = bank.ring.drop(np, 0.1) + bank.ring.through(np, 0.1)
    current = 0.8 * 1e-4
    shot = 2 * constants.e * 1e10 * (current * lit + 2e-6)
    thermal = 4 * constants.k * 300 * 1e10 / 1e4
    expected = (shot + thermal) / current**2 * 2.0**2
    assert abs(out.var() / expected - 1) * math.sqrt(10_000) < 5
    dark = run(bank, values, np.zeros((20_000, 1)), keys)
    assert abs(dark.var() / bank.read_noise**2 - 1) * math.sqrt(10_000) < 5


def test_two_passes_have_twice_the_dark_noise():
    """Variance of 20,000 dark rows, |z| < 5: false alarm 6e-7."""
    bank = RingBank(2, 1, signed=True, detector=Detector("intensity", noise_std=0.1))
    out = run(bank, values_of(bank), np.zeros((20_000, 2)), np.arange(20_000, dtype=np.uint64))
    assert bank.read_noise == pytest.approx(0.1 * math.sqrt(2))
    assert abs(out.var() / bank.read_noise**2 - 1) * math.sqrt(10_000) < 5


# --- imperfections and their clocks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bank", "clock"),
    [
        (RingBank(6, 4, errors=BankErrors(resonance_std=5e9)), "chip"),
        (RingBank(6, 4, errors=BankErrors(crosstalk=0.01)), "chip"),
        (RingBank(6, 4, errors=BankErrors(programming_std=0.01)), "write"),
        (RingBank(6, 4, detector=Detector("intensity", noise_std=0.1)), "shot"),
        (RingBank(6, 4, drift=Wander(std=5e9)), "drift"),
    ],
    ids=["resonance", "crosstalk", "programming", "shot", "drift"],
)
def test_each_clock_changes_its_own_noise_only(bank, clock):
    values, inputs = values_of(bank), powers(bank)
    state = bank.program(values, 1)
    base = bank.run(state, inputs, KEYS)
    assert np.array_equal(base, run(bank, values, inputs, write=2)) == (clock != "write")
    assert np.array_equal(base, run(bank, values, inputs, keys=KEYS + np.uint64(1000))) == (clock != "shot")
    assert bank.drifts == (clock == "drift")
    later = [bank.run(bank.at(state, t), inputs, KEYS) for t in (5.0, 7.0, 5.0)]
    assert np.array_equal(later[0], later[2])
    assert np.array_equal(later[0], later[1]) == (clock != "drift")


def test_chips_differ_and_another_strength_is_the_same_chip():
    weak, strong, other = (
        RingBank(5, 3, errors=BankErrors(resonance_std=s), seed=n) for s, n in ((1e9, 4), (2e9, 4), (1e9, 5))
    )
    zero = np.zeros((3, 5))
    felt = [b._felt(zero, 1) for b in (weak, strong, other)]
    assert np.allclose(2 * felt[0], felt[1], rtol=1e-12)
    assert not np.allclose(felt[0], felt[2], atol=1e-6)
    assert felt[0].std() == pytest.approx(2 * math.pi * 1e9 / weak.ring.free_spectral_range, rel=0.6)


def test_a_warm_heater_moves_only_the_rings_beside_it():
    bank = RingBank(4, 3, trained="phase", errors=BankErrors(crosstalk=0.1, calibrated_at=1.0))
    set_ = np.ones((3, 4))
    set_[1, 2] = 3.0
    moved = bank._felt(set_, 1) - set_
    expected = np.zeros((3, 4))
    expected[[0, 2, 1, 1], [2, 2, 1, 3]] = 0.1 * 2.0
    assert np.allclose(moved, expected)


def test_drift_moves_every_resonance_by_its_own_path():
    bank = RingBank(3, 2, trained="phase", drift=Wander(std=2e9, tau_s=1.0))
    state = bank.program(values_of(bank), 1)
    shift = bank.drift.values(bank.seed, bank.index, 121, 6, 4.0).reshape(2, 3)
    moved = {"phase": state.phases + 2 * math.pi * shift / bank.ring.free_spectral_range}
    perfect = RingBank(3, 2, trained="phase")
    assert np.allclose(
        bank.run(bank.at(state, 4.0), np.eye(3), KEYS[:3]), perfect.ideal(np, moved, np.eye(3)), atol=1e-12
    )


def test_converters_of_heaters_give_few_weights():
    errors = BankErrors(phase_bits=6)
    bank = RingBank(4, 3, wdm=False, errors=errors)
    levels = np.array(bank.parameters[0].levels)
    assert (np.diff(levels) > 0).all()
    assert bank.parameters[0].low == levels[0]
    values = values_of(bank)
    out = run(bank, values, np.eye(4)).T
    nearest = levels[np.abs(values["weight"][..., None] - levels).argmin(-1)]
    assert np.allclose(out, nearest, atol=1e-9)
    by_phase = RingBank(4, 3, trained="phase", errors=errors)
    assert by_phase.parameters[0].levels == errors.levels


def test_ports_saturate_and_quantise():
    bank = RingBank(4, 3, wdm=False, input=uniform_port(4, 0.0, 0.5), output=uniform_port(5, -1.0, 1.0))
    out = run(bank, values_of(bank), 3 * powers(bank))
    assert np.allclose(out / bank.output.step, np.rint(out / bank.output.step), atol=1e-9)


# --- torch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", PERFECT.values(), ids=PERFECT)
def test_twins_have_the_derivatives_of_differences(bank):
    values = {n: torch.tensor(0.9 * v, requires_grad=True) for n, v in values_of(bank).items()}
    inputs = torch.tensor(powers(bank, 3), requires_grad=True)
    twin = Twin(bank)
    assert torch.autograd.gradcheck(
        lambda x, *v: twin(x, **dict(zip(values, v, strict=True))), (inputs, *values.values())
    )


NOISY = RingBank(
    6, 4, Ring(0.95, 0.95, 0.99), signed=True, errors=BankErrors(resonance_std=1e9, programming_std=1e-3),
    detector=Detector("intensity", bandwidth=1e10, full_scale=1e-4, noise_std=0.01),
)  # fmt: skip


@pytest.mark.parametrize(
    "place",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_torch_runs_the_same_physics_and_draws(dtype, tolerance, place):
    inputs = powers(NOISY, dtype=dtype)
    state = NOISY.program(values_of(NOISY), 1)
    expected = NOISY.run(state, inputs, KEYS)
    keys = torch.tensor(KEYS.view(np.int64), device=place)
    out = NOISY.run(state, torch.tensor(inputs, device=place), keys)
    assert out.dtype == getattr(torch, np.dtype(dtype).name)
    assert np.allclose(out.cpu().numpy(), expected, atol=tolerance)


def test_a_row_gets_the_same_answer_in_any_batch():
    state = NOISY.program(values_of(NOISY), 1)
    inputs = powers(NOISY)
    parts = [NOISY.run(state, inputs[p], KEYS[p]) for p in np.array_split(np.arange(64), 5)]
    assert np.allclose(np.concatenate(parts), NOISY.run(state, inputs, KEYS), rtol=1e-6, atol=1e-9)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wavelengths": 0, "outputs": 2}, "0 wavelengths to 2 outputs: at least 1 each"),
        ({"trained": "bias"}, "trained is 'weight' or 'phase', not 'bias'"),
        ({"detector": Detector("homodyne")}, "diodes read intensities, not homodyne"),
        ({"scale": 0.0}, "scale must be finite and above 0"),
        ({"spacing": 1e12}, r"5 channels 1e\+12 Hz apart do not fit into a free spectral range of 4.056e\+12 Hz"),
        ({"spacing": -1.0}, "do not fit"),
    ],
)
def test_impossible_banks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RingBank(**{"wavelengths": 5, "outputs": 2, **arguments})


@pytest.mark.parametrize("name", ["resonance_std", "crosstalk", "programming_std", "phase_bits"])
def test_negative_errors_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        BankErrors(**{name: -1})
