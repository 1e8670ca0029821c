"""Noise of a mesh by its clocks: what each redraws, and how strong it is, against exact float64 references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from hzo_hil.simulators import noise
from hzo_hil.simulators.drift import Wander
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout
from hzo_hil.simulators.phase_noise import PhaseNoise, truncated
from hzo_hil.simulators.stages import MeshStage, SVDStage

SHOTS = 20_000
KEYS = noise.derive(np.arange(SHOTS, dtype=np.uint64), 77)


def fabricated(layout: Layout, **errors) -> ImperfectMesh:
    return ImperfectMesh(layout, MeshErrors(coupler_std=0.1, loss_db=0.1, **errors), seed=3)


def random_phases(layout: Layout) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 2 * math.pi, layout.phases)


class Averaged:
    """Exact moments of the fields behind a mesh whose phases are all blurred independently.

    `kept` is E[e^{i noise}]. Every path crosses a shifter at most once, so the mean field is that of shifters which
    let `kept` pass; a shifter multiplies the coherences between its port and the others by `kept`, too.
    """

    def __init__(self, made: ImperfectMesh, phases: np.ndarray, light: np.ndarray, kept: float) -> None:
        self.mean, self.coherence, self.kept = (
            light.astype(complex),
            np.outer(light, light.conj()).astype(complex),
            kept,
        )
        theta, phi, out_phase = made.layout.split(phases)
        for (upper, lower), inner, outer, c in zip(made.layout.pairs, theta, phi, made.circuit.couplers, strict=True):
            self.shift(upper, outer)
            self.couple([upper, lower], c[0], c[1])
            self.shift(upper, inner)
            self.couple([upper, lower], c[2], c[3])
        for port, phase in enumerate(out_phase):
            self.shift(port, phase)

    def shift(self, port: int, phase: float) -> None:
        self.mean[port] *= self.kept * np.exp(1j * phase)
        power = self.coherence[port, port]
        self.coherence[port] *= self.kept * np.exp(1j * phase)
        self.coherence[:, port] *= self.kept * np.exp(-1j * phase)
        self.coherence[port, port] = power

    def couple(self, ports: list[int], c: float, s: float) -> None:
        matrix = np.eye(len(self.mean), dtype=complex)
        matrix[np.ix_(ports, ports)] = [[c, 1j * s], [1j * s, c]]
        self.mean = matrix @ self.mean
        self.coherence = matrix @ self.coherence @ matrix.conj().T


def blur(std: float, clip: float) -> float:
    """E[e^{i noise}] of a normal law, whole or cut."""
    if not clip:
        return math.exp(-(std**2) / 2)
    law = stats.truncnorm(-clip, clip)
    return integrate.quad(lambda z: math.cos(std * z) * law.pdf(z), -clip, clip)[0]


# --- shot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "std", "clip"),
    [
        (Layout(2), 0.3, 0.0),
        (Layout(5), 0.05, 0.0),
        (Layout(5), 0.6, 0.0),
        (Layout(5), 0.6, 2.0),
        (Layout(4, "reck"), 0.3, 0.0),
        (Layout(8, "butterfly"), 0.3, 0.0),
    ],
)
def test_shot_noise_has_its_exact_mean_and_power(layout, std, clip):
    """Means of 20,000 shots of the fields (variance exact) and of their power (variance estimated) against the
    averaged mesh: up to 24 scores within 5 sigma, false alarm 1.4e-5 for each mesh."""
    made = fabricated(layout, shot_phase_std=std, noise_clip=clip)
    setting = made.set(random_phases(layout), 1)
    light = np.random.default_rng(2).standard_normal(layout.ports)
    shots = made.walk_rows(setting, np.tile(light, (SHOTS, 1)), KEYS)
    exact = Averaged(made, setting.phases, light, blur(std, clip))
    power = np.diag(exact.coherence).real
    assert (power - np.abs(exact.mean) ** 2 > 0).all()
    # Each quadrature carries at most the whole variance.
    spread = np.sqrt((power - np.abs(exact.mean) ** 2) / SHOTS)
    off = shots.mean(axis=0) - exact.mean
    assert np.abs(off.real / spread).max() < 5
    assert np.abs(off.imag / spread).max() < 5
    measured = np.abs(shots) ** 2
    floor = 1e-12  # what passes one node only has no noise of its power
    assert np.abs((measured.mean(axis=0) - power) / (measured.std(axis=0) / math.sqrt(SHOTS) + floor)).max() < 5


def test_small_shot_noise_has_the_variance_of_its_slopes():
    """Variance of each output's two quadratures against sum of squared derivatives, 20,000 shots; the relative error of
    a variance is sqrt(2 / shots), second-order terms add 1e-4: 12 scores within 5 sigma, false alarm 7e-6."""
    layout, std = Layout(6), 1e-3
    made = fabricated(layout, shot_phase_std=std)
    setting = made.set(random_phases(layout), 1)
    light = np.random.default_rng(2).standard_normal((1, 6))
    step = 1e-5
    moved = [made.circuit.walk(setting.phases + sign * step * np.eye(layout.phases), light)[:, 0] for sign in (1, -1)]
    slopes = (moved[0] - moved[1]) / (2 * step)
    shots = made.walk_rows(setting, np.repeat(light, SHOTS, axis=0), KEYS)
    for part in (np.real, np.imag):
        expected = std**2 * (part(slopes) ** 2).sum(axis=0)
        assert np.abs(part(shots).var(axis=0) / expected - 1).max() < 5 * math.sqrt(2 / SHOTS) + 1e-3


def test_a_node_s_theta_and_phi_are_the_two_columns_of_its_hash():
    """The layout of draws that all routes share: column i is theta's, column nodes + i is phi's, outputs apart."""
    layout = Layout(4)
    made = fabricated(layout, shot_phase_std=0.2)
    setting = made.set(random_phases(layout), 1)
    light = np.random.default_rng(2).standard_normal((6, 4))
    keys = KEYS[:6]
    inside = noise.normals(keys, noise.STREAM_SHOT_PHASE, 2 * layout.nodes, np.float64)
    outside = noise.normals(keys, noise.STREAM_SHOT_OUT, layout.ports, np.float64)
    off = 0.2 * np.concatenate([inside, outside], axis=1)
    expected = [made.circuit.walk((setting.phases + o)[None], x[None])[0, 0] for o, x in zip(off, light, strict=True)]
    assert np.abs(made.walk_rows(setting, light, keys) - expected).max() < 1e-13


def test_two_meshes_of_a_stage_draw_from_streams_of_their_own():
    first, second = SVDStage(4, 4, errors=MeshErrors(shot_phase_std=0.1)).meshes
    assert not set(first.shot_streams) & set(second.shot_streams)
    streams = {value for name, value in vars(noise).items() if name.startswith("STREAM_")}
    assert len(streams) == sum(name.startswith("STREAM_") for name in vars(noise))


# --- cut normal laws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.5, 2.0, 4.5])
def test_cut_noise_follows_the_cut_law(clip):
    """Kolmogorov-Smirnov on 200,000 draws: false alarm 1e-6."""
    law = PhaseNoise(0.1, clip)
    draws = law.draw(KEYS[:2000], 3, 100, np.float64).ravel() / 0.1
    assert np.abs(draws).max() <= clip
    assert stats.kstest(draws, stats.truncnorm(-clip, clip).cdf).pvalue > 1e-6
    narrow = truncated(KEYS[:2000], 3, 100, law.lost, np.float32).ravel()
    assert narrow.dtype == np.float32
    assert np.abs(narrow - draws).max() < 1e-6


def test_programming_noise_is_cut_as_well():
    layout = Layout(32)
    made = ImperfectMesh(layout, MeshErrors(programming_std=0.1, noise_clip=1.0))
    off = made.phases(np.zeros(layout.phases), 5)
    assert 0.09 < np.abs(off).max() <= 0.1


# --- drift --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["ou", "flicker"])
def test_phases_wander_by_the_declared_law(law):
    """What is added is the wander of the chip: as strong as declared (4096 shifters, |z| < 5: false alarm 6e-7)."""
    layout = Layout(64)
    made = ImperfectMesh(layout, MeshErrors(phase_drift_std=0.2, phase_drift_law=law, phase_drift_tau_s=5.0), 4, 2)
    setting = made.set(random_phases(layout), 1)
    added = made.at(setting, 7.03).phases - setting.phases
    wander = Wander(law, 0.2, 5.0, 0.1)
    expected = wander.values(4, 2, noise.CHIP_PHASE_DRIFT, layout.phases, 7.03)
    assert np.allclose(added, expected, rtol=0, atol=1e-14)
    assert abs(added.var() / 0.04 - 1) * math.sqrt(layout.phases / 2) < 5


@pytest.mark.parametrize(
    "model",
    [
        MeshStage(6, errors=MeshErrors(phase_drift_std=0.1)),
        SVDStage(5, 4, errors=MeshErrors(phase_drift_std=0.1, shot_phase_std=0.05)),
    ],
    ids=["mesh", "svd"],
)
def test_the_state_at_a_time_is_a_function_of_the_time(model):
    assert model.drifts
    state = model.program(model.initial(np.random.default_rng(0)), 1)
    inputs = np.random.default_rng(1).standard_normal((10, model.in_width))

    def at(seconds: float) -> np.ndarray:
        return model.run(model.at(state, seconds), inputs, KEYS[:10])

    late, early, again = at(50.0), at(1.01), at(50.0)
    assert np.array_equal(late, again)
    assert np.array_equal(at(1.05), early)  # within one step of 0.1 s
    assert np.abs(late - early).max() > 0.01
    assert np.array_equal(model.run(state, inputs, KEYS[:10]), model.run(state, inputs, KEYS[:10]))


def test_the_two_meshes_of_a_stage_drift_apart():
    first, second = SVDStage(8, 8, errors=MeshErrors(phase_drift_std=0.1)).meshes
    zero = np.zeros(first.layout.phases)
    one, other = (m.at(m.set(zero, 0), 3.0).phases for m in (first, second))
    assert np.abs(one - other).max() > 0.05


def test_without_drift_a_state_stays_itself():
    model = MeshStage(4)
    state = model.program(model.initial(np.random.default_rng(0)), 1)
    assert not model.drifts
    assert model.at(state, 100.0) is state


# --- each clock redraws its own ------------------------------------------------------------------------------------

NOISY = MeshErrors(
    coupler_std=0.05, phase_bias=0.1, programming_std=0.05, shot_phase_std=0.05, phase_drift_std=0.05, loss_db=0.1
)


@pytest.mark.parametrize("clock", ["shot", "write", "time", "chip"])
def test_each_clock_redraws_exactly_its_own_noise(clock):
    """With all but one kind of noise switched off, only that kind's clock changes the answer."""
    own = {"shot": "shot_phase_std", "write": "programming_std", "time": "phase_drift_std", "chip": "phase_bias"}
    inputs = np.random.default_rng(1).standard_normal((5, 4))

    def answer(errors: MeshErrors, turned: str) -> np.ndarray:
        model = MeshStage(4, errors=errors, seed=int(turned == "chip"))
        values = model.initial(np.random.default_rng(0))
        state = model.at(model.program(values, 8 + (turned == "write")), 5.0 + 20 * (turned == "time"))
        return model.run(state, inputs, KEYS[5:10] if turned == "shot" else KEYS[:5])

    only = MeshErrors(**{own[clock]: 0.05})
    usual = answer(only, "")
    # The chip's seed also names its drift.
    others = [c for c in own if c != clock and (c, clock) != ("chip", "time")]
    assert all(np.array_equal(answer(only, other), usual) for other in others)
    assert np.abs(answer(only, clock) - usual).max() > 1e-3
    assert np.abs(answer(NOISY, clock) - answer(NOISY, "")).max() > 1e-3
